"""Readers, writers and sample data, as napari finds and calls them."""

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from napari.components import ViewerModel
from napari.layers import Image, Layer, Points, Surface
from npe2 import PluginManifest
from scipy.spatial.transform import Rotation

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.plugin.layers import gaussians as gaussian_layers
from napari_gsvolume.plugin.layers.conversion import METADATA_KEY
from napari_gsvolume.plugin.layers.gaussians import gaussian_layer, gaussians_of
from napari_gsvolume.plugin.layers.projections import scan_of
from napari_gsvolume.plugin.readers import gaussian_reader, nifti_reader
from napari_gsvolume.plugin.writers import WriteError
from napari_gsvolume.tomography.projections import project, write_projections
from napari_gsvolume.tomography.scan import circular_scan

pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")

PLUGIN = "napari-gsvolume"
TURN = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * [0.5, -2, 3]
AFFINE[:3, 3] = 12, -34, 56.5


@pytest.fixture
def viewer(npe2pm):
    """A viewer without a window, that knows our plugin and no other."""
    with npe2pm.tmp_plugin(package=PLUGIN):
        yield ViewerModel()


@pytest.fixture
def nifti(tmp_path):
    """Write a file through nibabel; return its path and data."""

    def nifti(shape, name="scan.nii.gz", units=("mm", "sec"), dtype=np.int16, affine=AFFINE, **fields):
        data = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16).astype(dtype)
        made = nib.Nifti1Image(data, affine, dtype=data.dtype)
        made.header.set_xyzt_units(*units)
        for field, value in fields.items():
            made.header[field] = value
        made.to_filename(tmp_path / name)
        return tmp_path / name, data

    return nifti


@pytest.fixture
def model():
    random = np.random.default_rng(3)
    factors = np.linalg.qr(random.normal(size=(9, 3, 3)))[0] / random.uniform(0.8, 3, (9, 1, 3))
    grid = Grid((10, 11, 12), [[3, 0, 0.2, -7], [0, 2, 0, 5], [0.1, 0, -1, 0.5], [0, 0, 0, 1]], ("mm",) * 3)
    tensors = (torch.from_numpy(a) for a in (random.uniform(0, 10, (9, 3)), factors, random.normal(size=9)))
    return GaussianVolume(*tensors, grid, -1.5, {"settings": {"seed": 3}})


def indices(shape):
    return np.random.default_rng(1).uniform(0, np.array(shape) - 1, (6, len(shape)))


def assert_same_gaussians(a, b):
    for name in ("means", "factors", "weights"):
        np.testing.assert_array_equal(getattr(a, name).numpy(), getattr(b, name).numpy())
    assert (a.grid, a.background, a.metadata) == (b.grid, b.background, b.metadata)


class TestManifest:
    def test_is_valid_and_all_it_names_is_there(self):
        manifest = PluginManifest.from_distribution(PLUGIN)
        manifest.validate_imports()
        for command in manifest.contributions.commands:
            module, name = command.python_name.split(":")
            assert callable(getattr(importlib.import_module(module), name))

    def test_no_command_is_left_over_or_missing(self):
        contributions = PluginManifest.from_distribution(PLUGIN).contributions
        offered = ("widgets", "readers", "writers", "sample_data", "keybindings")
        used = {entry.command for kind in offered for entry in getattr(contributions, kind) or []}
        assert used == {command.id for command in contributions.commands}

    def test_gaussians_of_both_kinds_of_layers_are_written_to_all_kinds_of_files(self):
        contributions = PluginManifest.from_distribution(PLUGIN).contributions
        for kind in ("surface", "points"):
            offered = [w for w in contributions.writers if w.layer_types == [kind]]
            assert [(w.display_name, w.filename_extensions) for w in offered] == [
                ("Gaussians", [".gsv", ".safetensors"]),
                ("Gaussian splats (PLY)", [".ply"]),
            ]


class TestReadingNifti:
    @pytest.mark.parametrize(("unit", "expected"), [("mm", "mm"), ("micron", "um"), ("meter", "m"), (0, "pixel")])
    def test_a_volume_lies_where_the_file_says(self, viewer, nifti, unit, expected):
        path, data = nifti((5, 6, 7), units=(unit, 0))
        [layer] = viewer.open(path, plugin=PLUGIN)
        assert isinstance(layer, Image)
        assert layer.name == "scan"
        assert layer.data.dtype == np.int16
        np.testing.assert_array_equal(layer.data, data.T)
        for index in indices(layer.data.shape):
            world = (AFFINE @ [*index[::-1], 1])[2::-1]
            np.testing.assert_allclose(layer.data_to_world(index), world, atol=1e-4)
        assert layer.units == Image(data, units=(expected,) * 3).units

    @pytest.mark.parametrize(("unit", "expected"), [("sec", "second"), ("msec", "millisecond"), (0, "pixel")])
    def test_a_series_has_time_first(self, viewer, nifti, unit, expected):
        path, data = nifti((5, 6, 7, 3), units=("mm", unit), pixdim=[1, 0.5, 2, 3, 2.5, 1, 1, 1])
        [layer] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(layer.data, data.T)
        for index in indices(layer.data.shape):
            space = (AFFINE @ [*index[:0:-1], 1])[2::-1]
            np.testing.assert_allclose(layer.data_to_world(index), [2.5 * index[0], *space], atol=1e-4)
        assert layer.units == Image(data, units=(expected, "mm", "mm", "mm")).units
        assert layer.axis_labels == ("t", "z", "y", "x")

    def test_colours(self, viewer, tmp_path):
        data = np.random.default_rng(0).integers(0, 255, (5, 6, 7, 3)).astype(np.uint8)
        stored = data.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        nib.Nifti1Image(stored, AFFINE).to_filename(tmp_path / "rgb.nii")
        [layer] = viewer.open(tmp_path / "rgb.nii", plugin=PLUGIN)
        assert layer.rgb
        np.testing.assert_array_equal(layer.data, data.transpose(2, 1, 0, 3))
        for index in indices((7, 6, 5)):
            np.testing.assert_allclose(layer.data_to_world(index), (AFFINE @ [*index[::-1], 1])[2::-1], atol=1e-4)

    def test_an_image_of_two_axes(self, viewer, nifti):
        path, data = nifti((5, 6), affine=np.diag([0.5, -2, 3, 1]))
        [layer] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(layer.data, data.T)
        np.testing.assert_allclose(layer.data_to_world([1, 1]), [-2, 0.5])

    def test_several_files_at_once(self, viewer, nifti):
        made = [nifti((4, 5, n), name) for n, name in ((6, "a.nii"), (7, "b.nii.gz"))]
        opened = viewer.open([path for path, _ in made], plugin=PLUGIN)
        assert [layer.name for layer in opened] == ["a", "b"]
        for layer, (_, data) in zip(opened, made, strict=True):
            np.testing.assert_array_equal(layer.data, data.T)

    @pytest.mark.parametrize("name", ["A.NII", "a.b.Nii.GZ"])
    def test_names_in_capitals(self, viewer, nifti, name):
        path, data = nifti((4, 5, 6), "small.nii.gz" if name.endswith("GZ") else "small.nii")
        path = path.rename(path.with_name(name))
        for plugin in (PLUGIN, None):
            [layer] = viewer.open(path, plugin=plugin)
            np.testing.assert_array_equal(layer.data, data.T)

    def test_damage_is_one_sentence_and_adds_no_layer(self, viewer, nifti, refused):
        good, _ = nifti((4, 5, 6))
        bad = good.with_name("bad.nii.gz")
        bad.write_bytes(good.read_bytes()[:-20])
        with refused(FileFormatError, str(bad)):
            viewer.open(bad, plugin=PLUGIN)
        assert len(viewer.layers) == 0
        viewer.open(good, plugin=PLUGIN)
        assert len(viewer.layers) == 1

    def test_a_stack_of_projections_has_the_geometry_beside_it(self, viewer, tmp_path):
        volume = np.random.default_rng(0).random((5, 8, 7)).astype(np.float32)
        stack = project(volume, circular_scan(volume.shape, 2.0, [0, 30, 60]))
        path = tmp_path / "P.nii.gz"
        write_projections(path, stack)
        [layer] = viewer.open(path, plugin=PLUGIN)
        assert layer.name == "P"
        np.testing.assert_allclose(layer.data, stack.images, rtol=1e-6)
        scan = scan_of(layer.metadata)
        np.testing.assert_allclose(scan.sources, stack.scan.sources)
        assert scan.shape == volume.shape
        for sidecar in ('{"RepetitionTime": 2.0}', "not JSON", '{"format": "napari-gsvolume scan", "version": 1}'):
            path.with_name("P.json").write_text(sidecar)
            [layer] = viewer.open(path, plugin=PLUGIN)
            assert scan_of(layer.metadata) is None
            assert layer.data.shape == stack.images.shape

    def test_other_files_are_left_to_others(self):
        assert nifti_reader("scan.tif") is None
        assert nifti_reader(["a.nii", "b.tif"]) is None
        assert gaussian_reader("scan.nii") is None


class TestWritingNifti:
    PLACES = (
        {"scale": (3, 1, 2), "translate": (5, -2, 7), "rotate": TURN, "units": ("mm",) * 3},
        {"scale": (3, -1, 2), "shear": (0.2, 0, 0.1), "units": ("um",) * 3},
        {"affine": [[0, 0, 1, 5], [2, 0, 0, 6], [0, 3, 0, 4], [0, 0, 0, 1]]},
    )

    @pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place))
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_a_volume_comes_back_where_it_was(self, viewer, tmp_path, place, suffix):
        data = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
        layer = Image(data, name="mine", **place)
        [path] = layer.save(str(tmp_path / f"saved{suffix}"), plugin=PLUGIN)
        [again] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, data)
        for index in indices(data.shape):
            np.testing.assert_allclose(again.data_to_world(index), layer.data_to_world(index), atol=1e-4)
        assert again.units == layer.units

    def test_an_image_of_two_axes(self, viewer, tmp_path):
        layer = Image(np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32), scale=(2, 3), translate=(1, -4))
        [path] = layer.save(str(tmp_path / "flat.nii"), plugin=PLUGIN)
        [again] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, layer.data)
        np.testing.assert_allclose(again.data_to_world([2, 3]), layer.data_to_world([2, 3]))

    def test_a_series_keeps_its_time_step(self, viewer, tmp_path):
        data = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
        layer = Image(data, scale=(2.5, 3, 1, 2), translate=(0, 5, -2, 7), units=("ms", "mm", "mm", "mm"))
        [path] = layer.save(str(tmp_path / "series.nii.gz"), plugin=PLUGIN)
        [again] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, data)
        for index in indices(data.shape):
            np.testing.assert_allclose(again.data_to_world(index), layer.data_to_world(index), atol=1e-4)
        assert again.units == layer.units

    def test_of_a_pyramid_the_finest_level(self, viewer, tmp_path):
        data = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
        layer = Image([data, data[::2, ::2, ::2]], multiscale=True, scale=(3, 1, 2))
        [path] = layer.save(str(tmp_path / "pyramid.nii"), plugin=PLUGIN)
        [again] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, data)
        np.testing.assert_allclose(again.scale, (3, 1, 2))

    @pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float64])
    def test_numbers_of_any_type(self, viewer, tmp_path, dtype):
        data = np.arange(120).reshape(4, 5, 6).astype(dtype)
        [path] = Image(data).save(str(tmp_path / "numbers.nii"), plugin=PLUGIN)
        [again] = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(again.data, data)

    def test_the_header_is_kept_but_for_the_place(self, viewer, nifti, tmp_path):
        path, _ = nifti((4, 5, 6), descrip=b"a head", sform_code=4, qform_code=1)
        [layer] = viewer.open(path, plugin=PLUGIN)
        layer.translate = (1, 2, 3)
        [saved] = layer.save(str(tmp_path / "again.nii"), plugin=PLUGIN)
        image = nib.load(saved)
        assert image.header["descrip"].item() == b"a head"
        assert image.header["sform_code"] == 4
        np.testing.assert_allclose(image.affine[2::-1, 3], layer.data_to_world([0, 0, 0]), atol=1e-4)

    def test_colours_are_refused(self, viewer, refused, tmp_path):
        layer = Image(np.zeros((8, 8, 3), np.uint8), rgb=True, name="colours")
        with refused(WriteError, "'colours'", "RGB"):  # through napari, which keeps a ValueError to itself
            layer.save(str(tmp_path / "colours.nii"), plugin=PLUGIN)
        assert list(tmp_path.iterdir()) == []

    def test_five_axes_are_refused(self, viewer, refused, tmp_path):
        layer = Image(np.zeros((2, 2, 3, 4, 5), np.uint8), name="mine")
        with refused(WriteError, "'mine'", "5 axes"):
            layer.save(str(tmp_path / "mine.nii"), plugin=PLUGIN)
        assert list(tmp_path.iterdir()) == []


class TestGaussians:
    def test_saved_from_a_surface_and_opened_again(self, viewer, model, tmp_path):
        layer = Layer.create(*gaussian_layer("T1", model))
        assert isinstance(layer, Surface)
        [path] = layer.save(str(tmp_path / "mine.safetensors"), plugin=PLUGIN)
        assert_same_gaussians(GaussianVolume.load(path), model)
        density, surface = viewer.open(path, plugin=PLUGIN)
        assert (density.name, surface.name) == ("mine · density", "mine · gaussians")
        np.testing.assert_array_equal(density.data, model.sample())
        assert density.metadata[METADATA_KEY] == model.metadata
        for index in indices(model.grid.shape):
            expected = model.grid.affine[:-1] @ [*index, 1]
            np.testing.assert_allclose(density.data_to_world(index), expected)
            np.testing.assert_allclose(surface.data_to_world(index), expected)
        assert density.units == surface.units == layer.units
        [again] = surface.save(str(tmp_path / "again.safetensors"), plugin=PLUGIN)
        assert_same_gaussians(GaussianVolume.load(again), model)

    @pytest.mark.parametrize("most", [5, 5000], ids=["points", "surface"])
    def test_saved_small_and_opened_again(self, viewer, model, tmp_path, monkeypatch, most):
        monkeypatch.setattr(gaussian_layers, "most_ellipsoids", lambda: most)
        layer = Layer.create(*gaussian_layer("T1", model))
        [path] = layer.save(str(tmp_path / "mine.gsv"), plugin=PLUGIN)
        assert path.endswith("mine.gsv")
        read = GaussianVolume.load(path)
        for plugin in (PLUGIN, None):
            density, gaussians = viewer.open(path, plugin=plugin)
            assert density.name.startswith("mine · density")
            np.testing.assert_array_equal(density.data, read.sample())
            assert gaussians_of(gaussians.metadata).grid == model.grid
            for index in indices(model.grid.shape):
                np.testing.assert_allclose(density.data_to_world(index), model.grid.affine[:-1] @ [*index, 1])
        assert gaussian_reader([path, str(tmp_path / "other.SAFETENSORS")]) is not None

    def test_saved_for_splat_viewers(self, viewer, model, tmp_path):
        layer = Layer.create(*gaussian_layer("T1", model))
        [path] = layer.save(str(tmp_path / "mine.ply"), plugin=PLUGIN)
        assert Path(path).read_bytes().startswith(b"ply\n")
        assert gaussian_reader(path) is None

    def test_flat_ones_are_not_for_splat_viewers(self, viewer, refused, tmp_path):
        flat = GaussianVolume(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1), Grid((4, 5)))
        layer = Layer.create(*gaussian_layer("T1", flat))
        with refused(WriteError, "2D"):
            layer.save(str(tmp_path / "flat.ply"), plugin=PLUGIN)
        assert list(tmp_path.iterdir()) == []

    def test_damage_of_a_small_file_is_one_sentence(self, viewer, refused, model, tmp_path):
        path = tmp_path / "bad.gsv"
        model.save(path)
        path.write_bytes(path.read_bytes()[:-7])
        with refused(FileFormatError, str(path)):
            viewer.open(path, plugin=PLUGIN)
        assert len(viewer.layers) == 0

    def test_saved_from_points_less_those_deleted(self, viewer, model, tmp_path, monkeypatch):
        monkeypatch.setattr(gaussian_layers, "most_ellipsoids", lambda: 5)
        layer = Layer.create(*gaussian_layer("T1", model))
        assert isinstance(layer, Points)
        layer.selected_data = {0, 4}
        layer.remove_selected()
        [path] = layer.save(str(tmp_path / "fewer.safetensors"), plugin=PLUGIN)
        fewer = GaussianVolume.load(path)
        np.testing.assert_array_equal(fewer.means, model.means[[1, 2, 3, 5, 6, 7, 8]])
        np.testing.assert_array_equal(fewer.factors, model.factors[[1, 2, 3, 5, 6, 7, 8]])
        assert fewer.metadata == model.metadata

    def test_none_left_are_saved_too(self, viewer, model, tmp_path, monkeypatch):
        monkeypatch.setattr(gaussian_layers, "most_ellipsoids", lambda: 5)
        layer = Layer.create(*gaussian_layer("T1", model))
        layer.selected_data = set(range(9))
        layer.remove_selected()
        [path] = layer.save(str(tmp_path / "none.safetensors"), plugin=PLUGIN)
        density, points = viewer.open(path, plugin=PLUGIN)
        np.testing.assert_array_equal(density.data, np.float32(model.background))
        assert len(points.data) == 0

    def test_other_points_are_refused(self, viewer, refused, tmp_path):
        layer = Points(np.zeros((3, 3)), name="landmarks")
        with refused(WriteError, "'landmarks'", "no Gaussians"):
            layer.save(str(tmp_path / "landmarks.safetensors"), plugin=PLUGIN)
        assert list(tmp_path.iterdir()) == []

    def test_damage_is_one_sentence(self, viewer, refused, model, tmp_path):
        path = tmp_path / "bad.safetensors"
        model.save(path)
        path.write_bytes(path.read_bytes()[:-7])
        with refused(FileFormatError, str(path)):
            viewer.open(path, plugin=PLUGIN)
        assert len(viewer.layers) == 0


@pytest.mark.parametrize("key", ["anatomy", "vessels", "mri"])
def test_sample_data(viewer, key):
    [layer] = viewer.open_sample(PLUGIN, key)
    assert isinstance(layer, Image)
    assert layer.ndim == 3
    assert np.isfinite(layer.data).all()
    assert np.ptp(layer.data) > 0
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert (layer.scale > 0).all()


def test_all_samples_are_tested():
    keys = {sample.key for sample in PluginManifest.from_distribution(PLUGIN).contributions.sample_data}
    assert keys == {"anatomy", "vessels", "mri"}
