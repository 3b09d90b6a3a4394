import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nibabel.testing import data_path
from scipy.spatial.transform import Rotation

from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.grid import Grid
from napari_gsvolume.io.nifti import NiftiImage, read_nifti, write_nifti

SAMPLES = Path(data_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nifti")


@pytest.fixture
def volume() -> tuple[np.ndarray, Grid]:
    data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    affine = [[3, 0, 0, -7], [0, 2, 0, 5], [0, 0, 1, 0.5], [0, 0, 0, 1]]
    return data, Grid(data.shape, affine, ("mm",) * 3)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """Write a file through nibabel, with header fields set by name."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine, dtype=data.dtype)
    content = bytearray(image.to_bytes())
    fields = np.frombuffer(content, image.header.template_dtype, count=1)  # nibabel itself would mend them
    for name, value in header.items():
        fields[name] = value
    path.write_bytes(content)
    return path


def assert_same_grid(got: Grid, expected: Grid) -> None:
    """Equal within the float32 that a NIfTI-1 header stores: a ten-thousandth of a voxel at most."""
    assert got.shape == expected.shape
    assert got.units == expected.units
    scale = np.abs(expected.affine).max(axis=1, keepdims=True) + expected.voxel_size.min()
    np.testing.assert_allclose(got.affine / scale, expected.affine / scale, atol=5e-7)


@st.composite
def affines(draw: st.DrawFn, ndim: int) -> np.ndarray:
    """Oblique, anisotropic, flipped and mildly sheared, as registration leaves them."""
    number = st.floats(-1, 1, width=32)
    linear = np.eye(ndim)
    for i in range(ndim):
        for j in range(i):
            linear[i, j] = 0.3 * draw(number)
    if ndim == 3:
        linear = Rotation.from_rotvec(3 * np.array([draw(number) for _ in range(3)])).as_matrix() @ linear
    sizes = [draw(st.floats(1e-3, 1e3)) * draw(st.sampled_from([-1, 1])) for _ in range(ndim)]
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = linear * sizes
    affine[:-1, -1] = [1e3 * draw(number) for _ in range(ndim)]
    return affine


class TestRoundTrip:
    @given(st.data(), st.sampled_from([2, 3]), st.sampled_from(["mm", "meter", "micrometer", "pixel"]))
    @settings(max_examples=60, deadline=None)
    def test_any_data_on_any_grid(self, folder: Path, data: st.DataObject, ndim: int, unit: str) -> None:
        shape = data.draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=6))
        array = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(width=32)))
        grid = Grid(shape, data.draw(affines(ndim)), (unit,) * ndim)
        path = folder / data.draw(st.sampled_from(["any.nii", "any.nii.gz"]))
        write_nifti(path, array, grid)
        image = read_nifti(path)
        assert image.data.dtype == np.float32
        np.testing.assert_array_equal(image.data, array)
        assert_same_grid(image.grid, grid)
        assert (image.rgb, image.time_step, image.time_unit) == (False, None, None)

    @given(st.data())
    @settings(max_examples=30, deadline=None)
    def test_nibabel_sees_the_same_world(self, folder: Path, data: st.DataObject) -> None:
        affine = data.draw(affines(3))
        write_nifti(folder / "world.nii", np.zeros((2, 3, 4)), Grid((2, 3, 4), affine))
        zyx = np.array([1, 2, 3])
        world = nib.affines.apply_affine(nib.load(folder / "world.nii").affine, zyx[::-1])
        expected = nib.affines.apply_affine(affine, zyx)[::-1]
        np.testing.assert_allclose(world, expected, rtol=1e-5, atol=1e-5 * np.abs(affine).max())

    def test_axes_are_reversed(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        data, grid = volume
        write_nifti(tmp_path / "a.nii", data, grid)
        stored = nib.load(tmp_path / "a.nii")
        assert stored.shape == (6, 5, 4)
        assert stored.get_fdata()[5, 1, 2] == data[2, 1, 5]
        np.testing.assert_allclose(stored.affine, [[1, 0, 0, 0.5], [0, 2, 0, 5], [0, 0, 3, -7], [0, 0, 0, 1]])

    @pytest.mark.parametrize(("step", "unit"), [(2.5, "second"), (40.0, "millisecond"), (1.0, "pixel")])
    def test_time(self, tmp_path: Path, step: float, unit: str) -> None:
        data = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
        write_nifti(tmp_path / "t.nii.gz", data, Grid((3, 4, 5)), time_step=step, time_unit=unit)
        image = read_nifti(tmp_path / "t.nii.gz")
        np.testing.assert_array_equal(image.data, data)
        assert image.grid.shape == (3, 4, 5)
        assert (image.time_step, image.time_unit) == (step, unit)

    @pytest.mark.parametrize("dtype", [np.int16, np.float64, np.bool_, ">f4"])
    def test_other_real_types_are_written_as_float32(self, tmp_path: Path, dtype: object) -> None:
        data = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
        write_nifti(tmp_path / "a.nii", data, Grid(data.shape))
        assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.float32
        np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").data, data)

    def test_an_axis_too_long_for_nifti1(self, tmp_path: Path) -> None:
        data = np.arange(40_000, dtype=np.float32).reshape(1, 1, -1)
        like = read_nifti(save(tmp_path / "like.nii", np.zeros((2, 2, 2), np.int16), descrip=b"kept"))
        for source in (None, like):
            write_nifti(tmp_path / "long.nii", data, Grid(data.shape), like=source)
            image = read_nifti(tmp_path / "long.nii")
            np.testing.assert_array_equal(image.data, data)
        assert image.header["descrip"].item() == b"kept"


class TestUnits:
    @pytest.mark.parametrize(
        ("units", "written", "factors"),
        [
            (("millimeter",) * 3, "mm", (1, 1, 1)),
            (("µm",) * 3, "micrometer", (1, 1, 1)),
            (("nm",) * 3, "micrometer", (1e-3, 1e-3, 1e-3)),
            (("cm",) * 3, "mm", (10, 10, 10)),
            (("micrometer", "mm", "mm"), "mm", (1e-3, 1, 1)),
            (("mm", "mm", "second"), "pixel", (1, 1, 1)),
        ],
    )
    def test_lengths_are_converted(
        self, tmp_path: Path, units: tuple[str, ...], written: str, factors: tuple[float, ...]
    ) -> None:
        affine = np.array([[2, 0, 0, 1], [0, 3, 0, 2], [0.5, 0, 4, 3], [0, 0, 0, 1.0]])
        write_nifti(tmp_path / "u.nii", np.zeros((2, 2, 2)), Grid((2, 2, 2), affine, units))
        expected = np.diag([*factors, 1.0]) @ affine
        assert_same_grid(read_nifti(tmp_path / "u.nii").grid, Grid((2, 2, 2), expected, (written,) * 3))

    @pytest.mark.parametrize(("code", "unit"), [(0, "pixel"), (1, "meter"), (2, "mm"), (3, "micrometer"), (7, "pixel")])
    def test_header_codes(self, tmp_path: Path, code: int, unit: str) -> None:
        path = save(tmp_path / "u.nii", np.zeros((2, 2, 2), np.uint8), xyzt_units=code | 8)
        assert read_nifti(path).grid.units == (unit,) * 3


class TestStoredNumbers:
    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i2"])
    def test_integers_stay(self, tmp_path: Path, dtype: str) -> None:
        data = np.arange(24).reshape(2, 3, 4).astype(dtype)
        image = nib.Nifti1Image(
            data, np.eye(4), nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<"), dtype=dtype
        )
        image.to_filename(tmp_path / "i.nii")
        got = read_nifti(tmp_path / "i.nii").data
        assert got.dtype == np.dtype(dtype).newbyteorder("=")
        assert got.dtype.isnative
        np.testing.assert_array_equal(got, data.T)

    @pytest.mark.parametrize(
        ("slope", "inter", "kept"), [(1, 0, True), (0, 5, True), (np.nan, 0, True), (0.5, -3, False)]
    )
    def test_scaling(self, tmp_path: Path, slope: float, inter: float, kept: bool) -> None:
        data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        got = read_nifti(save(tmp_path / "s.nii", data, scl_slope=slope, scl_inter=inter)).data
        assert got.dtype == (np.int16 if kept else np.float32)
        np.testing.assert_array_equal(got.T, data if kept else data * 0.5 - 3)

    def test_double_becomes_single(self, tmp_path: Path) -> None:
        data = np.array([[[np.pi, 1e300, np.nan]]])
        got = read_nifti(save(tmp_path / "d.nii", data)).data
        np.testing.assert_array_equal(got.ravel(), np.array([np.pi, np.inf, np.nan], np.float32))

    def test_complex_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileFormatError, match="complex64"):
            read_nifti(save(tmp_path / "c.nii", np.zeros((2, 2, 2), np.complex64)))

    @pytest.mark.parametrize("names", ["RGB", "RGBA"])
    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
    def test_colours(self, tmp_path: Path, names: str, shape: tuple[int, ...]) -> None:
        channels = np.random.default_rng(1).integers(0, 256, (*shape, len(names)), np.uint8)
        data = np.zeros(shape, [(name, "u1") for name in names])
        for i, name in enumerate(names):
            data[name] = channels[..., i]
        image = read_nifti(save(tmp_path / "rgb.nii", data))
        assert image.rgb
        assert image.data.dtype == np.uint8
        np.testing.assert_array_equal(image.data, np.moveaxis(channels.T, 0, -1))
        assert image.grid.shape == shape[:3][::-1]


class TestShapes:
    @pytest.mark.parametrize(
        ("stored", "read"),
        [
            ((2, 3), (3, 2)),
            ((2, 3, 1), (1, 3, 2)),
            ((2, 3, 4, 1), (4, 3, 2)),
            ((2, 3, 4, 1, 1), (4, 3, 2)),
            ((2, 3, 1, 1), (1, 3, 2)),
            ((2, 3, 4, 5, 1), (5, 4, 3, 2)),
            ((2, 3, 1, 5), (5, 1, 3, 2)),
        ],
    )
    def test_trailing_axes(self, tmp_path: Path, stored: tuple[int, ...], read: tuple[int, ...]) -> None:
        data = np.arange(np.prod(stored), dtype=np.int16).reshape(stored)
        image = read_nifti(save(tmp_path / "s.nii", data))
        np.testing.assert_array_equal(image.data, data.reshape(read[::-1]).T)
        assert image.grid.shape == (read if len(read) < 4 else read[1:])
        assert (image.time_step is None) == (len(read) < 4)

    @pytest.mark.parametrize("stored", [(5,), (2, 3, 4, 1, 3)])
    def test_too_few_or_too_many_axes(self, tmp_path: Path, stored: tuple[int, ...]) -> None:
        with pytest.raises(FileFormatError, match="2 to 4 axes"):
            read_nifti(save(tmp_path / "s.nii", np.zeros(stored, np.int16)))

    def test_a_time_step_of_zero_is_one(self, tmp_path: Path) -> None:
        pixdim = [1, 1, 1, 1, 0, 0, 0, 0]
        image = read_nifti(save(tmp_path / "t.nii", np.zeros((2, 3, 4, 5), np.int16), pixdim=pixdim))
        assert (image.time_step, image.time_unit) == (1.0, "pixel")

    def test_a_tilted_slice_keeps_its_place(self, tmp_path: Path) -> None:
        coronal = np.array([[1.0, 0, 0, 5], [0, 0, 1, 6], [0, 2, 0, 7], [0, 0, 0, 1]])
        image = read_nifti(save(tmp_path / "s.nii", np.zeros((2, 3), np.int16), coronal))
        assert image.data.shape == image.grid.shape == (1, 3, 2)
        np.testing.assert_allclose(image.grid.affine[:-1, -1], [7, 6, 5])
        np.testing.assert_allclose(image.grid.affine[:-1, 1], [2, 0, 0])

    @pytest.mark.parametrize("shape", [(3, 2), (2, 3, 5), (1, 2, 3, 4), (0, 2, 3, 4)])
    def test_data_off_the_grid(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="do not lie on a grid"):
            write_nifti(tmp_path / "s.nii", np.zeros(shape), Grid((2, 3, 4) if shape[0] == 0 else (2, 3)))
        assert not list(tmp_path.iterdir())


class TestSampleFiles:
    @pytest.mark.parametrize(
        "name",
        [
            "anatomical.nii",
            "example4d.nii.gz",
            "example_nifti2.nii.gz",
            "functional.nii",
            "reoriented_anat_moved.nii",
            "resampled_anat_moved.nii",
            "standard.nii.gz",
        ],
    )
    def test_as_nibabel_reads_them(self, tmp_path: Path, name: str) -> None:
        theirs, ours = nib.load(SAMPLES / name), read_nifti(SAMPLES / name)
        np.testing.assert_array_equal(ours.data, np.asarray(theirs.dataobj, np.float32).T)
        flip = np.eye(4)[[2, 1, 0, 3]]
        np.testing.assert_array_equal(ours.grid.affine, flip @ theirs.affine @ flip)
        assert ours.grid.shape == theirs.shape[:3][::-1]

        write_nifti(tmp_path / "copy.nii.gz", ours.data, ours.grid, like=ours)
        copy = read_nifti(tmp_path / "copy.nii.gz")
        np.testing.assert_array_equal(copy.data, ours.data)
        assert_same_grid(copy.grid, ours.grid)
        assert (copy.time_step, copy.time_unit) == (ours.time_step, ours.time_unit)

    def test_time_of_the_example(self) -> None:
        image = read_nifti(SAMPLES / "example4d.nii.gz")
        assert (image.time_step, image.time_unit) == (2000.0, "second")
        assert image.grid.units == ("mm",) * 3
        assert image.data.shape == (2, 24, 96, 128)

    def test_cifti_is_refused(self) -> None:
        with pytest.raises(FileFormatError, match="2 to 4 axes"):
            read_nifti(SAMPLES / "row_major.dconn.nii")


class TestHeaderKept:
    @pytest.fixture
    def source(self, tmp_path: Path) -> NiftiImage:
        image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
        image.header.set_xyzt_units("micron", "msec")
        image.header["descrip"] = b"scanned by hand"
        image.header["cal_max"] = 7
        image.header["pixdim"][4] = 2.5
        image.header.set_slope_inter(2, 10)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note"))
        image.set_qform(image.affine, 1)
        image.set_sform(image.affine, 4)
        image.to_filename(tmp_path / "source.nii")
        return read_nifti(tmp_path / "source.nii")

    def test_fields(self, tmp_path: Path, source: NiftiImage) -> None:
        source.header.set_slope_inter(2, 10)  # as a header from elsewhere may hold it
        data = np.full(source.grid.shape, 0.25, np.float32)
        write_nifti(tmp_path / "out.nii", data, source.grid, like=source)
        out = read_nifti(tmp_path / "out.nii")
        for name in (
            "descrip",
            "cal_max",
            "xyzt_units",
            "qform_code",
            "sform_code",
            "pixdim",
            "srow_x",
            "quatern_b",
        ):
            np.testing.assert_array_equal(out.header[name], source.header[name], name)
        assert out.header.extensions[0].get_content() == b"a note"
        assert out.header.get_data_dtype() == np.float32
        np.testing.assert_array_equal(out.data, data)  # neither the old slope nor the old type

    def test_the_source_is_left_alone(self, tmp_path: Path, source: NiftiImage) -> None:
        before = source.header.binaryblock
        write_nifti(tmp_path / "out.nii", np.zeros((1, 1, 1)), Grid((1, 1, 1)), like=source)
        assert source.header.binaryblock == before

    def test_another_grid_replaces_the_affine(self, tmp_path: Path, source: NiftiImage) -> None:
        grid = source.grid.resampled(2)
        write_nifti(tmp_path / "out.nii", np.zeros(grid.shape), grid, like=source)
        out = read_nifti(tmp_path / "out.nii")
        assert_same_grid(out.grid, grid)
        np.testing.assert_allclose(out.header.get_qform(), out.header.get_sform(), atol=1e-6)
        assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (1, 4)

    @pytest.mark.parametrize(("qform", "sform", "expected"), [(0, 0, (0, 2)), (1, 0, (1, 1)), (0, 3, (0, 3))])
    def test_codes_that_would_hide_the_affine(
        self, tmp_path: Path, source: NiftiImage, qform: int, sform: int, expected: tuple[int, int]
    ) -> None:
        source.header["qform_code"], source.header["sform_code"] = qform, sform
        grid = Grid((2, 2, 2), np.diag([4.0, 5, 6, 1]), source.grid.units)
        write_nifti(tmp_path / "out.nii", np.zeros(grid.shape), grid, like=source)
        out = read_nifti(tmp_path / "out.nii")
        assert_same_grid(out.grid, grid)
        assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == expected

    def test_a_qform_does_not_claim_a_sheared_affine(self, tmp_path: Path, source: NiftiImage) -> None:
        affine = np.eye(4)
        affine[0, 1] = 0.5
        grid = Grid(source.grid.shape, affine, source.grid.units)
        write_nifti(tmp_path / "out.nii", source.data, grid, like=source)
        out = read_nifti(tmp_path / "out.nii")
        assert_same_grid(out.grid, grid)
        assert (int(out.header["qform_code"]), int(out.header["sform_code"])) == (0, 4)

    def test_time_of_another_image(self, tmp_path: Path) -> None:
        source = read_nifti(SAMPLES / "functional.nii")
        data, grid = np.zeros((3, 2, 2, 2)), Grid((2, 2, 2))
        write_nifti(tmp_path / "kept.nii", data, grid, like=source)
        write_nifti(tmp_path / "set.nii", data, grid, like=source, time_step=0.5, time_unit="pixel")
        kept, changed = read_nifti(tmp_path / "kept.nii"), read_nifti(tmp_path / "set.nii")
        assert (kept.time_step, kept.time_unit) == (source.time_step, source.time_unit) == (2.0, "second")
        assert (changed.time_step, changed.time_unit) == (0.5, "pixel")


def assert_one_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    for word in words:
        assert word in text


class TestDamage:
    @pytest.mark.parametrize("name", ["bad.nii", "bad.nii.gz"])
    @pytest.mark.parametrize(
        "content", [b"", b"hello", b"patient,age\n" * 100, bytes(1000), b"\x1f\x8b", b"\x1f\x8bno gzip" * 99]
    )
    def test_foreign(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError) as caught:
            read_nifti(tmp_path / name)
        assert_one_sentence(caught.value, name)

    def test_a_gzipped_text(self, tmp_path: Path) -> None:
        (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
        with pytest.raises(FileFormatError, match="not a NIfTI file"):
            read_nifti(tmp_path / "text.nii.gz")

    @pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
    @pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.5, 0.999])
    def test_truncated(self, tmp_path: Path, name: str, part: float) -> None:
        path = tmp_path / name
        data = np.random.default_rng(2).normal(size=(16, 16, 16))
        write_nifti(path, data, Grid(data.shape))
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(FileFormatError) as caught:
            read_nifti(path)
        assert_one_sentence(caught.value, name)

    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_gzip_notices_every_cut_and_flipped_bit(self, folder: Path, data: st.DataObject) -> None:
        path = folder / "packed.nii.gz"
        numbers = np.random.default_rng(3).normal(size=(4, 4, 4)).astype(np.float32)
        write_nifti(path, numbers, Grid((4, 4, 4)))
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(10, len(content) - 1))  # after the gzip header, whose fields are free
        cut = data.draw(st.booleans())
        if cut:
            content = content[:place]
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_nifti(path).data, numbers)  # a bit that means nothing
        except FileFormatError as error:
            assert_one_sentence(error, "packed.nii.gz", "gzip stream is damaged or cut short")
        else:
            assert not cut

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    @pytest.mark.filterwarnings("ignore")  # numpy's, on numbers beyond all reason
    def test_a_damaged_header_is_read_or_refused(self, folder: Path, data: st.DataObject) -> None:
        content = bytearray((SAMPLES / "resampled_anat_moved.nii").read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 360))] = data.draw(st.integers(0, 255))
        path = folder / "damaged.nii"
        path.write_bytes(content)
        try:
            image = read_nifti(path)
        except FileFormatError as error:
            assert_one_sentence(error, "damaged.nii")
        else:
            assert np.isfinite(np.linalg.inv(image.grid.affine)).all()
            assert image.data.shape[-3 - image.rgb :][:3] == image.grid.shape or image.grid.ndim == 2

    def test_an_affine_without_inverse(self, tmp_path: Path) -> None:
        path = save(tmp_path / "flat.nii", np.zeros((2, 2, 2), np.int16), srow_z=[0, 0, 0, 0])
        with pytest.raises(FileFormatError) as caught:
            read_nifti(path)
        assert_one_sentence(caught.value, "flat.nii", "affine cannot be inverted")

    def test_an_affine_of_nan(self, tmp_path: Path) -> None:
        path = save(tmp_path / "nan.nii", np.zeros((2, 2), np.int16), srow_x=[np.nan, 0, 0, 0])
        with pytest.raises(FileFormatError) as caught:
            read_nifti(path)
        assert_one_sentence(caught.value, "nan.nii", "NaN")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            read_nifti(tmp_path / "gone.nii")
        assert_one_sentence(caught.value, "gone.nii")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
            read_nifti(tmp_path)
        assert_one_sentence(caught.value, str(tmp_path))


class TestAtomicWrite:
    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, volume: tuple[np.ndarray, Grid], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.nii.gz"
        write_nifti(path, *volume)
        before = path.read_bytes()

        def full_disk(self: object, file: object) -> None:
            file.write(b"half a fi")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nib.Nifti1Image, "to_stream", full_disk)
        with pytest.raises(OSError, match="No space left") as caught:
            write_nifti(path, *volume)
        assert_one_sentence(caught.value, "a.nii.gz", str(tmp_path))
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_interrupt_leaves_nothing(
        self, tmp_path: Path, volume: tuple[np.ndarray, Grid], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(source: object, target: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_nifti(tmp_path / "a.nii", *volume)
        assert not list(tmp_path.iterdir())

    def test_a_folder_in_the_way(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        (tmp_path / "a.nii").mkdir()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
            write_nifti(tmp_path / "a.nii", *volume)
        assert_one_sentence(caught.value, "a.nii", str(tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]

    def test_no_folder(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            write_nifti(tmp_path / "none" / "a.nii", *volume)
        assert_one_sentence(caught.value, "a.nii", str(tmp_path / "none"))

    def test_a_file_as_folder(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
            write_nifti(tmp_path / "file" / "a.nii", *volume)
        assert_one_sentence(caught.value, "a.nii", str(tmp_path / "file"))

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError) as caught:
                write_nifti(tmp_path / "a.nii", *volume)
        finally:
            tmp_path.chmod(0o700)
        assert_one_sentence(caught.value, "a.nii", str(tmp_path))

    def test_through_a_link(self, tmp_path: Path, volume: tuple[np.ndarray, Grid]) -> None:
        (tmp_path / "real.nii").write_bytes(b"old")
        try:
            (tmp_path / "link.nii").symlink_to(tmp_path / "real.nii")
        except OSError:
            pytest.skip("no links here")
        write_nifti(tmp_path / "link.nii", *volume)
        assert (tmp_path / "link.nii").is_symlink()
        np.testing.assert_array_equal(read_nifti(tmp_path / "real.nii").data, volume[0])


class TestRefusals:
    @pytest.mark.parametrize("name", ["a.img", "a.nii.zip", "a", "nii"])
    def test_names(self, tmp_path: Path, volume: tuple[np.ndarray, Grid], name: str) -> None:
        with pytest.raises(ValueError, match=r"ends in \.nii or \.nii\.gz"):
            write_nifti(tmp_path / name, *volume)

    def test_complex(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="complex128"):
            write_nifti(tmp_path / "c.nii", np.zeros((2, 2), complex), Grid((2, 2)))

    def test_time_unit(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no time unit fortnight"):
            write_nifti(tmp_path / "t.nii", np.zeros((2, 2, 2, 2)), Grid((2, 2, 2)), time_unit="fortnight")
