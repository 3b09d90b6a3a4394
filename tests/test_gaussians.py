import json
import os
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.errors import FileFormatError
from napari_gsvolume.io.gaussians import read_gaussians, write_gaussians
from napari_gsvolume.kernels import reference

# Voxels as scanners leave them: anisotropic, oblique, away from the origin.
AFFINES = {
    2: [[0.5, 0.1, -3], [-0.2, 2, 7], [0, 0, 1]],
    3: [[3, 0.2, -0.1, -40], [-0.5, 0.9, 0.2, 25], [0.3, 0.1, -1.1, 8], [0, 0, 0, 1]],
}


def volume(ndim: int, n: int = 40, seed: int = 0) -> GaussianVolume:
    """Return Gaussians of all shapes, some of them outside of the grid."""
    random = np.random.default_rng(seed)
    shape = (11, 14, 19)[-ndim:]
    means = random.uniform(-3, np.array(shape) + 2, (n, ndim))
    axes = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    factors = axes / random.uniform(0.5, 5, (n, 1, ndim)) @ np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    weights = random.uniform(10, 100, n) * random.choice([-1, 1], n)
    grid = Grid(shape, AFFINES[ndim], ("mm",) * ndim)
    return GaussianVolume(means, factors, weights, grid, -1000.5, {"seed": seed})


def formula(model: GaussianVolume, points: np.ndarray) -> np.ndarray:
    _, e = reference.basis(torch.from_numpy(points), model.means.double(), model.factors.double())
    return (e @ model.weights.double()).numpy() + model.background


def centres(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.indices(shape), -1).astype(np.float64)


def world(grid: Grid, index: np.ndarray) -> np.ndarray:
    return index @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]


def index(grid: Grid, points: np.ndarray) -> np.ndarray:
    return np.linalg.solve(grid.affine[:-1, :-1], (points - grid.affine[:-1, -1])[..., None])[..., 0]


def tolerance(model: GaussianVolume) -> float:
    """Return what the kernels' exponential and float32 may change; the step at the cut is 40 times that."""
    return 1e-4 * model.weights.abs().numpy().max(initial=0) + 1e-6 * abs(model.background)


@pytest.fixture(params=[2, 3])
def model(request: pytest.FixtureRequest) -> GaussianVolume:
    return volume(request.param)


class TestModel:
    @pytest.mark.parametrize("name", ["means", "factors", "weights"])
    def test_shapes_must_fit(self, model: GaussianVolume, name: str) -> None:
        tensors = {n: getattr(model, n) for n in ("means", "factors", "weights")}
        tensors[name] = tensors[name][1:]
        with pytest.raises(ValueError, match=r"Gaussians in \dD need .* of shape"):
            GaussianVolume(**tensors, grid=model.grid)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("name", ["means", "factors", "weights"])
    def test_numbers_must_be_finite(self, model: GaussianVolume, name: str, bad: float) -> None:
        tensors = {n: getattr(model, n).clone() for n in ("means", "factors", "weights")}
        tensors[name].view(-1)[3] = bad
        with pytest.raises(ValueError, match=f"{name} of the Gaussians hold NaN"):
            GaussianVolume(**tensors, grid=model.grid)

    def test_the_background_must_be_finite(self, model: GaussianVolume) -> None:
        with pytest.raises(ValueError, match="background must be finite"):
            GaussianVolume(model.means, model.factors, model.weights, model.grid, np.nan)

    def test_covariances_invert_precisions(self, model: GaussianVolume) -> None:
        assert len(model) == 40
        W = model.factors.double()
        identity = torch.eye(model.ndim, dtype=torch.float64).expand(40, -1, -1)
        torch.testing.assert_close(model.covariances.double() @ W @ W.mT, identity, rtol=0, atol=1e-4)


class TestEvaluate:
    def test_is_the_formula_anywhere(self, model: GaussianVolume) -> None:
        shape = np.array(model.grid.shape)
        points = np.random.default_rng(1).uniform(-shape, 2 * shape, (4000, model.ndim))
        expected = formula(model, points)
        assert (expected == model.background).any()
        assert (expected != model.background).mean() > 0.05
        # Computed in float64: only the result is rounded.
        np.testing.assert_allclose(model.evaluate(points), expected, atol=1e-7 * abs(expected).max())

    @pytest.mark.parametrize("n", [0, 1])
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_none_and_one(self, ndim: int, n: int) -> None:
        model = volume(ndim, n)
        points = centres(model.grid.shape).reshape(-1, ndim)
        np.testing.assert_allclose(model.evaluate(points), formula(model, points), rtol=1e-6)
        np.testing.assert_allclose(model.sample().ravel(), formula(model, points), atol=tolerance(model))

    def test_shape_follows_the_points(self, model: GaussianVolume) -> None:
        points = np.random.default_rng(2).uniform(0, 9, (2, 3, model.ndim))
        values = model.evaluate(points)
        assert values.shape == (2, 3)
        assert values.dtype == np.float32
        assert model.evaluate(points[1, 2].tolist()) == values[1, 2]
        assert model.evaluate(points[:0]).shape == (0, 3)

    def test_one_point_far_away_does_not_change_the_others(self, model: GaussianVolume) -> None:
        points = np.random.default_rng(3).uniform(0, 9, (50, model.ndim))
        far = np.vstack([points, np.full(model.ndim, 1e12), np.full(model.ndim, -1e12)])
        np.testing.assert_allclose(model.evaluate(far)[:-2], model.evaluate(points), rtol=1e-6)
        np.testing.assert_array_equal(model.evaluate(far)[-2:], np.float32(model.background))

    @pytest.mark.parametrize("shape", [(), (4,), (5, 4), (3, 1)])
    def test_points_of_another_dimension(self, model: GaussianVolume, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="have shape"):
            model.evaluate(np.zeros(shape))

    def test_points_must_be_finite(self, model: GaussianVolume) -> None:
        with pytest.raises(ValueError, match="NaN or infinite"):
            model.evaluate([[0.0] * (model.ndim - 1) + [np.nan]])


class TestSample:
    def test_own_grid(self, model: GaussianVolume) -> None:
        values = model.sample()
        assert values.shape == model.grid.shape
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, model.evaluate(centres(model.grid.shape)), atol=tolerance(model))

    @pytest.mark.parametrize("scale", [2, 0.5, (3, 1, 1.3)], ids=str)
    def test_scaled(self, model: GaussianVolume, scale: Any) -> None:
        factors = np.broadcast_to(scale, 3)[-model.ndim :]
        values = model.sample(scale=factors)
        np.testing.assert_array_equal(values.shape, np.round(np.array(model.grid.shape) * factors))
        points = (centres(values.shape) + 0.5) / factors - 0.5  # the faces at -0.5 stay in place
        np.testing.assert_allclose(values, model.evaluate(points), atol=tolerance(model))
        assert values.std() > 1

    def test_oblique_grid(self, model: GaussianVolume) -> None:
        ndim = model.ndim
        turned = np.eye(ndim + 1)
        turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
        turned[:ndim, ndim] = 2
        grid = Grid((13, 9, 17)[:ndim], np.array(AFFINES[ndim]) @ turned @ np.diag([0.7, *[1.2] * (ndim - 1), 1]))
        values = model.sample(grid)
        assert values.shape == grid.shape
        points = index(model.grid, world(grid, centres(grid.shape)))
        np.testing.assert_allclose(values, model.evaluate(points), atol=tolerance(model))
        assert values.std() > 1

    def test_grid_or_scale(self, model: GaussianVolume) -> None:
        with pytest.raises(ValueError, match="not both"):
            model.sample(model.grid, scale=2)

    def test_grid_of_another_dimension(self, model: GaussianVolume) -> None:
        with pytest.raises(ValueError, match="cannot be put on"):
            model.sample(Grid((4, 5) if model.ndim == 3 else (4, 5, 6)))


class TestOnGrid:
    def test_is_the_same_function_of_the_world(self, model: GaussianVolume) -> None:
        affine = np.diag([0.5, 2, 3, 1])[-model.ndim - 1 :, -model.ndim - 1 :]
        affine[:-1, -1] = 4
        affine[0, 1] = 0.3
        other = model.on_grid(Grid((5, 6, 7)[: model.ndim], affine))
        assert other.grid.shape == (5, 6, 7)[: model.ndim]
        assert (other.background, other.metadata) == (model.background, model.metadata)
        assert torch.equal(other.weights, model.weights)
        inside = np.random.default_rng(4).uniform(0, np.array(model.grid.shape) - 1, (1000, model.ndim))
        points = world(model.grid, inside)
        np.testing.assert_allclose(
            other.evaluate(index(other.grid, points)), model.evaluate(inside), atol=tolerance(model)
        )
        assert model.evaluate(inside).std() > 1

    def test_there_and_back(self, model: GaussianVolume) -> None:
        there = model.on_grid(Grid((5, 6, 7)[: model.ndim]))
        assert not torch.allclose(there.means, model.means)
        back = there.on_grid(model.grid)
        torch.testing.assert_close(back.means, model.means, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(back.covariances, model.covariances, rtol=1e-4, atol=1e-4)


class TestQuaternions:
    GRID = Grid((9, 9, 9))

    @given(
        # Within a factor of 100: float32 factors of longer Gaussians know the long axis too badly.
        hnp.arrays(np.float64, (4, 3), elements=st.floats(0.2, 20)),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    @settings(deadline=None)
    def test_round_trip(self, sigma: np.ndarray, seed: int, mirrored: bool) -> None:
        random = np.random.default_rng(seed)
        axes = Rotation.random(4, random).as_matrix()
        factors = axes / sigma[:, None] @ Rotation.random(4, random).as_matrix()
        if mirrored:
            factors[:, :, 0] *= -1
        model = GaussianVolume(np.zeros((4, 3)), factors, np.ones(4), self.GRID)
        scales, quaternions = model.scales_and_quaternions()
        np.testing.assert_allclose(scales, -np.sort(-sigma), rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, rtol=1e-6)
        assert (quaternions[:, 0] >= 0).all()
        again = GaussianVolume.from_scales_and_quaternions(
            np.zeros((4, 3)), scales, quaternions, np.ones(4), self.GRID, background=3, metadata={"a": 1}
        )
        assert (again.background, again.metadata) == (3, {"a": 1})
        # Covariances compare the long axes, precisions the short ones.
        for got, expected in [
            (again.covariances, axes * sigma[:, None] ** 2 @ axes.transpose(0, 2, 1)),
            (again.factors @ again.factors.mT, axes / sigma[:, None] ** 2 @ axes.transpose(0, 2, 1)),
        ]:
            error = np.linalg.norm(got.numpy() - expected, axis=(1, 2))
            assert (error <= 1e-3 * np.linalg.norm(expected, axis=(1, 2))).all()

    def test_tensors_are_taken_too(self) -> None:
        model = volume(3)
        scales, quaternions = map(torch.from_numpy, model.scales_and_quaternions())
        again = GaussianVolume.from_scales_and_quaternions(model.means, scales, quaternions, model.weights, model.grid)
        assert torch.equal(again.means, model.means)
        torch.testing.assert_close(again.covariances, model.covariances, rtol=1e-4, atol=1e-4)

    def covariance(self, scales: list[float], quaternion: list[float]) -> np.ndarray:
        model = GaussianVolume.from_scales_and_quaternions([[0, 0, 0]], [scales], [quaternion], [1], self.GRID)
        return model.covariances[0].numpy()  # rows and columns z, y, x

    def test_scales_without_rotation_are_x_y_z(self) -> None:
        np.testing.assert_allclose(self.covariance([4, 2, 1], [1, 0, 0, 0]), np.diag([1, 4, 16]), rtol=1e-5)

    def test_a_quarter_turn_about_z_takes_x_to_y(self) -> None:
        turn = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]  # w, x, y, z
        np.testing.assert_allclose(self.covariance([4, 2, 1], turn), np.diag([1, 16, 4]), atol=1e-5)

    def test_a_turn_about_z_is_from_x_towards_y(self) -> None:
        angle = np.pi / 6
        long = np.array([0, np.sin(angle), np.cos(angle)])  # z, y, x
        expected = np.eye(3) + 15 * np.outer(long, long)
        turn = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
        np.testing.assert_allclose(self.covariance([4, 1, 1], turn), expected, atol=1e-5)

    def test_along_x_and_turned_to_y(self) -> None:
        factors = np.array([np.diag([1, 1 / 2, 1 / 4]), np.diag([1, 1 / 4, 1 / 2])])  # axes z, y, x
        model = GaussianVolume(np.zeros((2, 3)), factors, np.ones(2), self.GRID)
        scales, quaternions = model.scales_and_quaternions()
        np.testing.assert_allclose(scales, [[4, 2, 1], [4, 2, 1]], rtol=1e-6)
        # Half turns about the axes leave a Gaussian as it is, so the columns count up to their signs.
        columns = Rotation.from_quat(quaternions, scalar_first=True).as_matrix()
        np.testing.assert_allclose(abs(columns[0]), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(abs(columns[1]), [[0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)

    def test_lengths_of_quaternions_do_not_matter(self) -> None:
        np.testing.assert_allclose(
            self.covariance([4, 2, 1], [0.2, 0.4, -0.6, 0.8]), self.covariance([4, 2, 1], [1, 2, -3, 4]), rtol=1e-5
        )

    def test_none(self) -> None:
        scales, quaternions = volume(3, 0).scales_and_quaternions()
        assert (scales.shape, quaternions.shape) == ((0, 3), (0, 4))
        again = GaussianVolume.from_scales_and_quaternions(np.zeros((0, 3)), scales, quaternions, [], self.GRID)
        assert len(again) == 0

    def test_only_in_3d(self) -> None:
        with pytest.raises(ValueError, match="these Gaussians are 2D"):
            volume(2).scales_and_quaternions()

    @pytest.mark.parametrize("bad", [0, -1, np.nan])
    def test_scales_must_be_positive(self, bad: float) -> None:
        with pytest.raises(ValueError, match="must be positive"):
            self.covariance([4, bad, 1], [1, 0, 0, 0])


TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def any_volume(draw: st.DrawFn) -> GaussianVolume:
    ndim, n = draw(st.sampled_from([2, 3])), draw(st.integers(0, 4))
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    arrays = [draw(hnp.arrays(np.float32, s, elements=numbers)) for s in ((n, ndim), (n, ndim, ndim), (n,))]
    affine = np.array(AFFINES[ndim])
    affine[:-1, -1] = draw(st.lists(st.floats(-1e9, 1e9), min_size=ndim, max_size=ndim))
    words = st.lists(TEXT, min_size=ndim, max_size=ndim)
    shape = draw(st.lists(st.integers(1, 10**6), min_size=ndim, max_size=ndim))
    background = draw(st.floats(allow_nan=False, allow_infinity=False))
    metadata = draw(st.dictionaries(TEXT, JSON, max_size=3))
    return GaussianVolume(*arrays, Grid(shape, affine, draw(words), draw(words)), background, metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gaussians")


def assert_same(got: GaussianVolume, expected: GaussianVolume) -> None:
    for name in ("means", "factors", "weights"):
        a, b = getattr(got, name), getattr(expected, name)
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))  # bits: zeros have signs
    assert got.grid == expected.grid
    assert np.array_equal(got.grid.affine.view(np.int64), expected.grid.affine.view(np.int64))
    assert repr(got.background) == repr(float(expected.background))
    assert json.dumps(got.metadata) == json.dumps(expected.metadata)


def assert_one_sentence(error: Exception, *words: str) -> None:
    """What the user sees: one line, with the file and the reason."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert not text.endswith("..")
    for word in words:
        assert word in text


class TestSaveAndLoad:
    @given(any_volume())
    @settings(deadline=None)
    def test_every_bit_comes_back(self, folder: Path, model: GaussianVolume) -> None:
        write_gaussians(folder / "any.safetensors", model)
        assert_same(read_gaussians(folder / "any.safetensors"), model)

    def test_methods(self, tmp_path: Path, model: GaussianVolume) -> None:
        model.save(str(tmp_path / "a.safetensors"))
        assert_same(GaussianVolume.load(str(tmp_path / "a.safetensors")), model)

    @pytest.mark.parametrize("background", [np.float32(0.1), np.float64(0.1), np.int16(-3)])
    def test_numpy_background(self, tmp_path: Path, model: GaussianVolume, background: float) -> None:
        model = GaussianVolume(model.means, model.factors, model.weights, model.grid, background)
        model.save(tmp_path / "a.safetensors")
        assert GaussianVolume.load(tmp_path / "a.safetensors").background == background

    def test_memory_layout_and_gradients_do_not_matter(self, tmp_path: Path, model: GaussianVolume) -> None:
        turned = GaussianVolume(model.means, model.factors.mT.requires_grad_(), model.weights, model.grid)
        assert not turned.factors.is_contiguous()
        turned.save(tmp_path / "a.safetensors")
        assert torch.equal(GaussianVolume.load(tmp_path / "a.safetensors").factors, model.factors.mT)

    def test_other_programs_can_read_it(self, tmp_path: Path, model: GaussianVolume) -> None:
        model.save(tmp_path / "a.safetensors")
        tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
        assert set(tensors) == {"means", "factors", "weights"}
        assert torch.equal(tensors["factors"], model.factors)
        with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
            texts = file.metadata()
        assert set(texts) == {"format", "grid", "background", "metadata"}
        assert texts["format"] == "napari-gsvolume/1"
        assert json.loads(texts["grid"]) == model.grid.to_dict()
        assert texts["background"] == "-1000.5"
        assert json.loads(texts["metadata"]) == {"seed": 0}

    def test_a_loaded_volume_does_not_hang_on_its_file(self, tmp_path: Path, model: GaussianVolume) -> None:
        path = tmp_path / "a.safetensors"
        model.save(path)
        loaded = GaussianVolume.load(path)
        path.write_bytes(bytes(path.stat().st_size))
        assert_same(loaded, model)
        loaded.save(path)
        assert_same(GaussianVolume.load(path), model)

    @pytest.mark.parametrize("name", ["a.npz", "a.safetensors.gz", "a", "safetensors"])
    def test_names(self, tmp_path: Path, model: GaussianVolume, name: str) -> None:
        with pytest.raises(
            ValueError, match=r"ends in \.safetensors, \.gsv or \.ply; got " + re.escape(name)
        ) as caught:
            model.save(tmp_path / name)
        assert_one_sentence(caught.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("thing", [{1, 2}, np.float32(1), object()])
    def test_metadata_that_json_cannot_hold(self, tmp_path: Path, model: GaussianVolume, thing: object) -> None:
        model.metadata["thing"] = thing
        with pytest.raises(ValueError, match="cannot be written as JSON") as caught:
            model.save(tmp_path / "a.safetensors")
        assert_one_sentence(caught.value, type(thing).__name__)
        assert not list(tmp_path.iterdir())


def packed(texts: dict[str, str] | None = None, *leave_out: str, **tensors: torch.Tensor) -> bytes:
    """Return a file of one Gaussian in 2D with some of its texts and tensors changed."""
    grid = json.dumps(Grid((4, 5)).to_dict())
    all_texts = {"format": "napari-gsvolume/1", "grid": grid, "background": "0.0", "metadata": "{}", **(texts or {})}
    all_tensors = {"means": torch.zeros(1, 2), "factors": torch.eye(2)[None], "weights": torch.ones(1), **tensors}
    return safetensors.torch.save(
        {k: v for k, v in all_tensors.items() if k not in leave_out},
        {k: v for k, v in all_texts.items() if k not in leave_out},
    )


def bare(header: bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + data


def grid_with(**changes: object) -> dict[str, str]:
    return {"grid": json.dumps(Grid((4, 5)).to_dict() | changes)}


class TestDamage:
    def refused(self, path: Path, content: bytes, *words: str) -> None:
        path.write_bytes(content)
        with pytest.raises(FileFormatError) as caught:
            read_gaussians(path)
        assert_one_sentence(caught.value, str(path), *words)

    def test_what_the_others_change_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_bytes(packed())
        assert len(read_gaussians(tmp_path / "a.safetensors")) == 1

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"hello",
            b"patient,age\n" * 100,
            bytes(1000),
            b"\xff" * 1000,
            b"PK\x03\x04" + bytes(500),
            *(bare(b"{}", claimed=size) for size in (10**7, 2**31, 2**33, 2**63, 2**64 - 1)),
            bare(b"{"),
            bare(b"[]"),
            bare(b'{"means": 3}'),
            bare(b"{" + b'"a":{' * 10_000),
            bare(b'{"means":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(12)),
            bare(b'{"means":{"dtype":"F32","shape":[9000000000000000000,9],"data_offsets":[0,16]}}', bytes(16)),
            bare(b'{"means":{"dtype":"F31","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        ],
        ids=lambda content: repr(content[:40]),
    )
    def test_not_a_safetensors_file(self, tmp_path: Path, content: bytes) -> None:
        self.refused(tmp_path / "bad.safetensors", content, "damaged, or no safetensors file")

    @pytest.mark.parametrize("texts", [None, {"format": "pt"}, {"format": "napari-gsvolume"}])
    def test_other_programs(self, tmp_path: Path, texts: dict[str, str] | None) -> None:
        content = safetensors.torch.save({"weights": torch.ones(3)}, texts)
        self.refused(tmp_path / "foreign.safetensors", content, "of another program")

    def test_a_newer_format(self, tmp_path: Path) -> None:
        content = packed({"format": "napari-gsvolume/2"}, "grid")
        self.refused(tmp_path / "new.safetensors", content, "napari-gsvolume/2", "newer")

    @pytest.mark.parametrize("name", ["means", "factors", "weights", "grid", "background", "metadata"])
    def test_missing_parts(self, tmp_path: Path, name: str) -> None:
        self.refused(tmp_path / "bad.safetensors", packed(None, name), f"has no {name}")

    @pytest.mark.parametrize(
        ("tensors", "word"),
        [
            ({"means": torch.zeros(2, 2)}, "means"),
            ({"means": torch.zeros(1, 3)}, "means"),
            ({"means": torch.zeros(2)}, "means"),
            ({"factors": torch.ones(1, 2)}, "factors"),
            ({"factors": torch.ones(1, 3, 3)}, "factors"),
            ({"weights": torch.ones(2)}, "2 Gaussians"),
            ({"weights": torch.ones(1, 1)}, "weights"),
            ({"weights": torch.tensor(1.0)}, "weights"),
            ({"means": torch.zeros(1, 2, dtype=torch.float64)}, "means"),
            ({"weights": torch.ones(1, dtype=torch.int32)}, "weights"),
            ({"weights": torch.ones(1, dtype=torch.bfloat16)}, "weights"),
            ({"means": torch.tensor([[0, np.nan]])}, "NaN"),
            ({"factors": torch.tensor([[[1, 0], [np.inf, 1]]])}, "infinite"),
            ({"weights": torch.tensor([-np.inf])}, "infinite"),
        ],
    )
    def test_tensors(self, tmp_path: Path, tensors: dict[str, torch.Tensor], word: str) -> None:
        self.refused(tmp_path / "bad.safetensors", packed(None, **tensors), word)

    @pytest.mark.parametrize(
        "texts",
        [
            {"grid": ""},
            {"grid": "{"},
            {"grid": "[]"},
            {"grid": "null"},
            {"grid": "{}"},
            {"grid": "[" * 200_000},
            grid_with(shape=[4, 5, 6]),
            grid_with(shape=[0, 5]),
            grid_with(shape=4),
            grid_with(shape=["a", "b"]),
            grid_with(shape=[float("inf"), 5]),
            grid_with(affine=[[1, 0], [0, 1]]),
            grid_with(affine=[[1], [0, 1]]),
            grid_with(affine=[[10**400, 0, 0], [0, 1, 0], [0, 0, 1]]),
            grid_with(affine=np.zeros((3, 3)).tolist()),
            grid_with(affine=np.full((3, 3), np.nan).tolist()),
            grid_with(affine="matrix"),
            grid_with(units=["mm"]),
            grid_with(units=7),
            grid_with(axis_labels={}),
        ],
        ids=lambda texts: texts["grid"][:60],
    )
    def test_grid(self, tmp_path: Path, texts: dict[str, str]) -> None:
        self.refused(tmp_path / "bad.safetensors", packed(texts), "its grid")

    @pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e999", "0.0.0", "np.float64(1.0)"])
    def test_background(self, tmp_path: Path, text: str) -> None:
        self.refused(tmp_path / "bad.safetensors", packed({"background": text}))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '"a"', "{'a': 1}", "[" * 200_000])
    def test_metadata(self, tmp_path: Path, text: str) -> None:
        self.refused(tmp_path / "bad.safetensors", packed({"metadata": text}), "its metadata are damaged")

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_truncated_anywhere(self, tmp_path: Path, ndim: int) -> None:
        path = tmp_path / "cut.safetensors"
        write_gaussians(path, volume(ndim, 3))
        content = path.read_bytes()
        for length in range(len(content)):
            self.refused(path, content[:length], "damaged")
        self.refused(path, content + b"\0", "damaged")

    @given(st.data())
    @settings(max_examples=400, deadline=None)
    @pytest.mark.filterwarnings("ignore")  # numpy's, on numbers beyond all reason
    def test_any_damage_is_read_or_refused(self, folder: Path, data: st.DataObject) -> None:
        path = folder / "damaged.safetensors"
        write_gaussians(path, volume(3, 2))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            model = read_gaussians(path)
        except FileFormatError as error:
            assert_one_sentence(error, str(path))
        else:
            assert torch.isfinite(model.factors).all()
            assert np.isfinite(np.linalg.inv(model.grid.affine)).all()

    def test_a_large_foreign_file_is_not_read(self, tmp_path: Path) -> None:
        path, size = tmp_path / "large.safetensors", 2**28
        header = json.dumps({"means": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
        with path.open("wb") as file:
            file.write(bare(header))
            file.truncate(8 + len(header) + size)  # a hole
        tracemalloc.start()
        try:
            with pytest.raises(FileFormatError, match="of another program"):
                read_gaussians(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            read_gaussians(tmp_path / "gone.safetensors")
        assert_one_sentence(caught.value, "gone.safetensors")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
            read_gaussians(tmp_path)
        assert_one_sentence(caught.value, str(tmp_path))


class TestAtomicWrite:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        path = tmp_path / "a.safetensors"
        write_gaussians(path, volume(2))
        return path

    def test_a_failed_write_leaves_the_old_file(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = old.read_bytes()
        write = Path.write_bytes

        def full_disk(path: Path, content: bytes) -> None:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space left") as caught:
            write_gaussians(old, volume(3))
        assert_one_sentence(caught.value, "a.safetensors", str(old.parent))
        assert old.read_bytes() == before
        assert list(old.parent.iterdir()) == [old]

    @pytest.mark.parametrize("raised", [KeyboardInterrupt, PermissionError(13, "Permission denied")])
    def test_a_failed_replacement_leaves_the_old_file(
        self, old: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
    ) -> None:
        before = old.read_bytes()

        def fail(source: object, target: object) -> None:
            raise raised

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises((KeyboardInterrupt, PermissionError)):
            write_gaussians(old, volume(3))
        assert old.read_bytes() == before
        assert list(old.parent.iterdir()) == [old]

    def test_success_leaves_one_file(self, old: Path) -> None:
        write_gaussians(old, volume(3))
        assert_same(read_gaussians(old), volume(3))
        assert list(old.parent.iterdir()) == [old]

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            write_gaussians(tmp_path / "none" / "a.safetensors", volume(2))
        assert_one_sentence(caught.value, "a.safetensors", str(tmp_path / "none"))

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").mkdir()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the system
            write_gaussians(tmp_path / "a.safetensors", volume(2))
        assert_one_sentence(caught.value, "a.safetensors", str(tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, old: Path) -> None:
        before = old.read_bytes()
        old.parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError) as caught:
                write_gaussians(old, volume(3))
        finally:
            old.parent.chmod(0o700)
        assert_one_sentence(caught.value, "a.safetensors", str(old.parent))
        assert old.read_bytes() == before
