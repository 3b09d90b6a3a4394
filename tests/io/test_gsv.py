"""The compact files: entropy coder, rounding, container."""

import base64
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import napari_gsvolume as gsv
from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.fitting.file_size import fit_to_size
from napari_gsvolume.io.gsv.entropy import Reader, Writer
from napari_gsvolume.io.gsv.format import decode, default_step, encode, write_gsv
from napari_gsvolume.io.gsv.quantization import FINEST, classes, dequantise, quantise
from napari_gsvolume.kernels.constants import SUPPORT
from napari_gsvolume.progress import Budget

SHAPE = (20, 24, 28)


def gaussians(n: int, ndim: int = 3, seed: int = 0, stretch: float = 1.5) -> GaussianVolume:
    """Return Gaussians of many sizes and orientations, some centred outside of the grid."""
    random = np.random.default_rng(seed)
    shape = SHAPE[-ndim:]
    rotations = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    sigma = np.exp(random.normal(0.5, 0.4 * stretch, (n, ndim)).clip(-1, 3))
    means = random.uniform(-3, np.array(shape) + 2, (n, ndim))
    weights = random.normal(0, 100, n)
    grid = Grid(shape, np.diag([*random.uniform(0.5, 2, ndim), 1]), ("millimeter",) * ndim)
    return GaussianVolume(means, rotations / sigma[:, None, :], weights, grid, 37.5, {"metrics": {"psnr_db": 31.25}})


def parts(model: GaussianVolume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(t.double().numpy() for t in (model.means, model.factors, model.weights))


# The coder ------------------------------------------------------------------------------------------------------------

small = hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 40))


class TestEntropy:
    @settings(deadline=None)
    @given(st.lists(st.integers(-(2**39), 2**39), max_size=5), small, small, small)
    def test_whatever_is_written_is_read(self, numbers, values, totals, symbols):
        totals = totals + 1
        left = totals // 3
        sizes = values + np.arange(len(values)) % 5 + 1
        writer = Writer()
        for number in numbers:
            writer.number(number)
        writer.uniform(values, sizes)
        writer.split(left, totals)
        writer.counted(symbols, 41)
        writer.centred(values - 20)
        writer.centred(values, from_zero=True)
        reader = Reader(writer.content())
        assert [reader.number() for _ in numbers] == numbers
        np.testing.assert_array_equal(reader.uniform(sizes), values)
        np.testing.assert_array_equal(reader.split(totals), left)
        np.testing.assert_array_equal(reader.counted(len(symbols), 41), symbols)
        np.testing.assert_array_equal(reader.centred(len(values)), values - 20)
        np.testing.assert_array_equal(reader.centred(len(values), from_zero=True), values)

    def test_it_takes_hardly_more_than_the_entropy(self):
        random = np.random.default_rng(0)
        values = np.rint(random.normal(7, 5, 5000)).astype(np.int64)
        writer = Writer()
        writer.centred(values)
        _, counts = np.unique(values, return_counts=True)
        entropy = -(counts * np.log2(counts / 5000)).sum()
        assert 8 * len(writer.content()) < 1.02 * entropy + 64

    def test_splitting_a_crowd_costs_less_than_splitting_it_evenly_would(self):
        totals = np.full(400, 6)
        writer = Writer()
        writer.split(np.where(np.arange(400) % 2, 6, 0), totals)  # all on one side: two cases, not seven
        assert 8 * len(writer.content()) < 400 * 2

    def test_an_absurd_table_is_refused(self):
        writer = Writer()
        for number in (0, 2**30, 0):
            writer.number(number)
        with pytest.raises(ValueError, match="range"):
            Reader(writer.content() + bytes(16)).centred(10)


# Rounding -------------------------------------------------------------------------------------------------------------


class TestRounding:
    @pytest.mark.parametrize("ndim", [2, 3])
    @pytest.mark.parametrize("step", [0.5, 5.0, 50.0])
    def test_errors_stay_within_their_steps(self, ndim, step):
        model = gaussians(400, ndim)
        means, factors, weights = parts(model)
        codes, kept = quantise(means, factors, weights, step, 1)
        new_means, new_factors, _ = dequantise(codes, step, 1)
        fineness = np.exp2(-np.minimum(classes(codes.amplitudes), FINEST).astype(float))
        a = np.einsum("nab,na->nb", factors[kept], new_means - means[kept])
        # Half a step along each axis in the Gaussian's metric (of the rounded shape: some more), or of a cell.
        assert (np.linalg.norm(a, axis=1) <= 2.5 * np.sqrt(ndim) / 2 * fineness).mean() > 0.95
        sigma = 1 / np.linalg.svd(factors[kept], compute_uv=False)[:, ::-1]
        new_sigma = 1 / np.linalg.svd(new_factors, compute_uv=False)[:, ::-1]
        assert (np.abs(np.log(new_sigma / sigma)) <= fineness[:, None] / 2 + 1e-9).all()

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_the_error_in_the_volume_is_that_of_the_theory(self, ndim):
        # Ten numbers (six in 2D) a Gaussian, each with an error of step^2 / 12.
        model = gaussians(120, ndim, stretch=1.0)
        step = 4.0
        new = decode(encode(model, step))
        error = (new.sample().astype(float) - model.sample()) ** 2
        expected = 120 * (ndim + 1) * (ndim + 2) / 2 * step**2 / 12
        assert 0.3 * expected < error.sum() < 1.5 * expected

    def test_a_finer_step_is_nearer_and_larger(self):
        model = gaussians(100)
        exact = model.sample()
        errors, sizes = [], []
        for step in (16.0, 4.0, 1.0, 0.25):
            content = encode(model, step)
            errors.append(float(np.abs(decode(content).sample() - exact).max()))
            sizes.append(len(content))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.02 * np.abs(exact).max()
        assert sizes == sorted(sizes)

    def test_gaussians_weaker_than_half_a_step_go(self):
        model = gaussians(50)
        amplitude = model.weights.abs() * np.pi**0.75 / torch.linalg.det(model.factors).abs().sqrt()
        step = float(1.9 * amplitude.median())
        assert len(decode(encode(model, step))) == int((amplitude > step / 2).sum())

    def test_the_orientation_of_a_needle_and_of_a_disc_is_kept(self):
        grid = Grid((32, 32, 32))
        random = np.random.default_rng(1)
        rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
        for sigma in ([1, 1, 9], [1, 9, 9], [0.5, 3, 9]):
            factors = rotation / np.array(sigma, float)
            model = GaussianVolume([[16, 16, 16]], factors[None], [100.0], grid)
            new = decode(encode(model, 1.0))
            old, rounded = model.covariances[0].double(), new.covariances[0].double()
            assert torch.linalg.norm(rounded - old) < 0.05 * torch.linalg.norm(old)
            assert torch.linalg.norm(rounded.inverse() - old.inverse()) < 0.05 * torch.linalg.norm(old.inverse())


# The container --------------------------------------------------------------------------------------------------------


@st.composite
def models(draw) -> GaussianVolume:
    ndim, n = draw(st.sampled_from([2, 3])), draw(st.integers(0, 30))
    seed, stretch = draw(st.integers(0, 10**6)), draw(st.floats(0, 4))
    return gaussians(n, ndim, seed, stretch)


class TestFile:
    @settings(deadline=None, max_examples=60)
    @given(models(), st.floats(-3, 5))
    @example(gaussians(1), 0.0)
    @example(gaussians(0), 0.0)
    @example(gaussians(3000), 1.0)
    def test_a_decoded_file_is_encoded_to_the_same_bytes(self, model, log_step):
        content = encode(model, 10**log_step)
        new = decode(content)
        assert encode(new) == content
        assert new.grid == model.grid
        assert new.background == model.background
        assert {**new.metadata, "gsv": None} == {**model.metadata, "gsv": None}
        again = decode(content)
        for name in ("means", "factors", "weights"):
            torch.testing.assert_close(getattr(new, name), getattr(again, name), rtol=0, atol=0)

    def test_through_a_file_by_its_ending(self, tmp_path: Path):
        model = gaussians(200)
        model.save(tmp_path / "m.gsv")
        new = GaussianVolume.load(tmp_path / "m.gsv")
        assert (tmp_path / "m.gsv").stat().st_size < 14 * 200 + 250
        noise = new.sample() - model.sample()
        assert np.sqrt((noise**2).mean()) < 0.01 * np.ptp(model.sample())
        with pytest.raises(ValueError, match=r"ends in \.gsv"):
            write_gsv(tmp_path / "m.bin", model)
        assert [path.name for path in tmp_path.iterdir()] == ["m.gsv"]

    def test_every_gaussian_takes_fewer_than_fourteen_bytes_and_costs_little_quality(self):
        volume, grid = gsv.phantoms.anatomical_phantom(32)
        result = gsv.fit(volume, gaussians=200, iterations=40, grid=grid)
        rounded = result.with_gaussians(decode(encode(result.gaussians)), volume)
        assert result.psnr_db - rounded.psnr_db < 0.15
        assert result.n_bytes < 14 * result.n_gaussians

    def test_metadata_that_json_cannot_hold(self, tmp_path: Path):
        model = gaussians(3)
        model.metadata["thing"] = object()
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            model.save(tmp_path / "a.gsv")
        assert not list(tmp_path.iterdir())

    def test_the_default_step_follows_the_error_of_the_fit(self):
        model = gaussians(50)
        steps = []
        for psnr in (20.0, 40.0):
            model.metadata["metrics"] = {"psnr_db": psnr, "data_range": 1000.0}
            steps.append(default_step(model))
        assert steps[0] == pytest.approx(10 * steps[1], rel=1e-3)
        model.metadata.clear()
        assert default_step(model) > 0


class TestDamage:
    def content(self) -> bytes:
        return encode(gaussians(40), 2.0)

    def sealed(self, content: bytes) -> bytes:
        """Return the content with a checksum that fits."""
        return content[:4] + struct.pack("<I", zlib.crc32(content[8:])) + content[8:]

    @given(st.binary(max_size=300))
    @settings(deadline=None)
    def test_random_bytes(self, data):
        for content in (data, b"GSV1" + data, self.sealed(b"GSV1" + data)):
            with pytest.raises(ValueError, match="it"):
                decode(content)

    def test_every_single_changed_byte_is_noticed(self):
        content = self.content()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 0x55
            with pytest.raises(ValueError, match=r"damaged|no \.gsv|version"):
                decode(bytes(damaged))

    def test_cut_short(self):
        content = self.content()
        for length in range(len(content)):
            with pytest.raises(ValueError, match=r"damaged|no \.gsv"):
                decode(content[:length])

    def test_damage_under_a_fitting_checksum_never_crashes(self):
        # The coded integers are damaged, the checksum made to fit: Gaussians or one clear error, nothing else.
        content = self.content()
        random = np.random.default_rng(0)
        for _ in range(400):
            damaged = bytearray(content)
            for position in random.integers(8, len(content), random.integers(1, 6)):
                damaged[position] = random.integers(256)
            try:
                model = decode(self.sealed(bytes(damaged)))
            except ValueError:
                continue
            assert len(model) <= len(content)

    def test_a_claim_of_a_billion_gaussians_costs_nothing(self):
        content = self.content()
        length = struct.unpack_from("<H", content, 8)[0]
        from napari_gsvolume.io.gsv import format as module

        text = zlib.decompressobj(-15, zdict=module._DICTIONARY).decompress(content[10 : 10 + length])
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=module._DICTIONARY)
        head = deflate.compress(text.replace(b'"n":40', b'"n":1000000000')) + deflate.flush()
        forged = content[:8] + struct.pack("<H", len(head)) + head + content[10 + length :]
        with pytest.raises(ValueError, match="damaged"):
            decode(self.sealed(forged))

    def test_the_error_names_the_file(self, tmp_path: Path):
        path = tmp_path / "bad.gsv"
        path.write_bytes(b"GSV1 and more")
        with pytest.raises(FileFormatError, match=r"bad\.gsv cannot be read: it is damaged"):
            GaussianVolume.load(path)
        path.write_bytes(b"GSV9 and more")
        with pytest.raises(FileFormatError, match="newer"):
            GaussianVolume.load(path)
        with pytest.raises(FileNotFoundError, match=r"none\.gsv cannot be read"):
            GaussianVolume.load(tmp_path / "none.gsv")


@pytest.fixture(scope="module")
def phantom():
    return gsv.phantoms.anatomical_phantom(32)


# Fits for a size ------------------------------------------------------------------------------------------------------


class TestSize:
    @pytest.mark.parametrize("asked", [{"ratio": 60}, {"target_bytes": 900}, {"ratio": 60, "gaussians": 250}])
    def test_the_file_is_as_small_as_asked_and_is_the_result(self, phantom, tmp_path, asked):
        volume, grid = phantom
        result = gsv.fit(volume, grid=grid, iterations=25, **asked)
        result.gaussians.save(tmp_path / "m.gsv")
        size = (tmp_path / "m.gsv").stat().st_size
        limit = asked.get("target_bytes", 4 * volume.size / asked.get("ratio", 1))
        assert 0.8 * limit < size <= limit
        assert size == result.n_bytes
        decoded = GaussianVolume.load(tmp_path / "m.gsv").sample().astype(float)
        psnr = 20 * np.log10(np.ptp(volume) / np.sqrt(((decoded - volume) ** 2).mean()))
        assert result.psnr_db == pytest.approx(psnr, abs=0.01)
        assert result.gaussians.metadata["metrics"]["ssim"] == result.ssim

    def test_fitting_again_makes_up_for_some_of_the_rounding(self, phantom):
        volume, grid = phantom
        *_, step = gsv.fit_steps(volume, grid=grid, gaussians=150, iterations=40)
        objective, whole = step.objective, step.gaussians
        state, rounding = fit_to_size(objective, whole, 900, Budget())
        plain = decode(encode(whole, rounding))
        fitted = objective.evaluate(state).mean_square
        rounded = float(((plain.sample().astype(float) - volume) ** 2).mean()) / np.ptp(volume) ** 2
        assert fitted < rounded

    def test_a_size_too_small_for_anything_is_refused(self, phantom):
        volume, grid = phantom
        with pytest.raises(ValueError, match="too small for even one Gaussian"):
            gsv.fit(volume, grid=grid, iterations=3, target_bytes=30)

    def test_both_at_once_is_refused(self, phantom):
        with pytest.raises(ValueError, match="not both"):
            gsv.fit(phantom[0], ratio=100, target_bytes=900)


def test_the_support_is_part_of_the_format():
    # A decoder of another cut would show another volume: docs/formats.md names it.
    assert SUPPORT == 3.3


def test_a_large_offset_of_intensities_survives():
    volume, grid = gsv.phantoms.anatomical_phantom(24)
    high = 1_234_567 + 10 * volume / np.ptp(volume)
    result = gsv.fit(high, grid=grid, gaussians=100, iterations=20)
    decoded = result.with_gaussians(decode(encode(result.gaussians)), high)
    assert decoded.psnr_db > result.psnr_db - 0.5


def test_a_ratio_that_leaves_no_bytes_is_refused_at_once():
    with pytest.raises(ValueError, match="too small for even one Gaussian"):
        gsv.fit_steps(gsv.phantoms.vessel_phantom(16)[0], ratio=1e9)


def test_exports_are_not_read_back(tmp_path: Path):
    gaussians(5).save(tmp_path / "a.ply")
    with pytest.raises(FileFormatError, match="for other viewers"):
        GaussianVolume.load(tmp_path / "a.ply")


STORED = (
    "M^jcYE%FP`Spa>~%ME}q3<J=GDwL1&8-"
    "`KX9V!kK)N;(pmS3JEp(bdb7}^TP>TY5Q4#+fBv?K_gnvTkxmWTisIeR3OOqZR;<%Y3V$NtYSnrZa6x{0;>U9$G_KaLZg)kFrPM`"
    "tVhTA5NPK0c4q49?sE2q#zofXD(30000z0d(|^L}&YJptsM<$!Z%t1gxXbBJVsPPgMkSw1@YN9S>wq$%@$M&(^q~I>k5tQojip3U"
    "F6|uZh7Ox3Cam@gQP$JP<Td30PQNI^G5"
)


def test_a_file_of_this_version_is_read_for_ever():
    model = decode(base64.b85decode(STORED))
    assert model.weights.tolist() == pytest.approx(
        [-104.82460021972656, -118.8781967163086, 140.1024932861328, -1.542199969291687, 35.46900177001953], rel=1e-5
    )
    values = model.evaluate([[5, 6, 7], [10.5, 12.25, 14], [15, 20, 3]])
    assert values.tolist() == pytest.approx([37.5, 34.18199920654297, 37.5], rel=1e-4)
    assert (model.grid.shape, model.background) == ((20, 24, 28), 37.5)
