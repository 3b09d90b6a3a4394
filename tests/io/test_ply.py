from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.io.gaussian_ply import write_ply

Refused = Callable[..., AbstractContextManager[Any]]

NAMES = [
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]
# To the world (z, y, x): turned, sheared and anisotropic; the same mirrored; as most files have it.
AFFINES = {
    "sheared": [[3, 0.7, -0.1, -40], [-0.5, 0.9, 0.2, 25], [0.3, 0.1, 1.1, 8], [0, 0, 0, 1]],
    "mirrored": [[3, 0.7, -0.1, -40], [-0.5, 0.9, 0.2, 25], [-0.3, -0.1, -1.1, 8], [0, 0, 0, 1]],
    "diagonal": np.diag([5, 2, 0.5, 1]),
}


def volume(affine: Any = None, n: int = 30, seed: int = 0, background: float = -1000.5) -> GaussianVolume:
    """Return Gaussians of all shapes, some of them negative, some outside of the grid."""
    random = np.random.default_rng(seed)
    shape = (11, 14, 19)
    means = random.uniform(-3, np.array(shape) + 2, (n, 3))
    axes = np.linalg.qr(random.normal(size=(n, 3, 3)))[0]
    factors = axes / random.uniform(0.5, 5, (n, 1, 3)) @ np.linalg.qr(random.normal(size=(n, 3, 3)))[0]
    weights = random.uniform(10, 100, n) * random.choice([-1, 1], n)
    return GaussianVolume(means, factors, weights, Grid(shape, affine, ("mm",) * 3), background)


def separate(weights: list[float], background: float) -> GaussianVolume:
    """Return round Gaussians too far from each other to overlap."""
    means = np.zeros((len(weights), 3))
    means[:, 0] = 50 * np.arange(len(weights))
    factors = np.repeat(np.eye(3)[None], len(weights), axis=0)
    return GaussianVolume(means, factors, weights, Grid((50 * len(weights), 9, 9)), background)


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the file as viewers do: a header of lines, then rows of little-endian float32."""
    header, _, rows = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kind, name, count = lines[2].split()
    assert (kind, name) == ("element", "vertex")
    assert lines[3:] == [f"property float {name}" for name in NAMES]
    table = np.frombuffer(rows, "<f4").reshape(int(count), len(NAMES))
    return dict(zip(NAMES, table.T.astype(np.float64), strict=True))


def columns(vertices: dict[str, np.ndarray], *names: str) -> np.ndarray:
    return np.stack([vertices[name] for name in names], -1)


def colours(vertices: dict[str, np.ndarray]) -> np.ndarray:
    return 0.5 + 0.28209479 * columns(vertices, "f_dc_0", "f_dc_1", "f_dc_2")


def opacities(vertices: dict[str, np.ndarray]) -> np.ndarray:
    return 1 / (1 + np.exp(-vertices["opacity"]))


def rotations(vertices: dict[str, np.ndarray]) -> np.ndarray:
    """Return the matrices of the quaternions, spelt out as the rasteriser of 3D Gaussian Splatting does."""
    w, x, y, z = (vertices[f"rot_{i}"] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


class TestPlace:
    @pytest.mark.parametrize("affine", AFFINES)
    def test_positions_and_covariances_are_those_of_the_world_in_xyz(self, tmp_path: Path, affine: str) -> None:
        model = volume(AFFINES[affine])
        write_ply(tmp_path / "a.ply", model)
        vertices = read(tmp_path / "a.ply")

        A, shift = model.grid.affine[:3, :3], model.grid.affine[:3, 3]
        means = model.means.double().numpy() @ A.T + shift
        np.testing.assert_allclose(columns(vertices, "x", "y", "z"), means[:, ::-1], rtol=1e-5, atol=1e-5)

        W = model.factors.double().numpy()
        covariances = (A @ np.linalg.inv(W @ W.transpose(0, 2, 1)) @ A.T)[:, ::-1, ::-1]
        R, scales = rotations(vertices), np.exp(columns(vertices, "scale_0", "scale_1", "scale_2"))
        got = R @ (scales[..., None] ** 2 * R.transpose(0, 2, 1))
        error = np.linalg.norm(got - covariances, axis=(1, 2)) / np.linalg.norm(covariances, axis=(1, 2))
        assert error.max() < 1e-4
        # The same of the inverses, to which the short axes matter and not the long ones.
        precisions = np.linalg.inv(covariances)
        got = R @ (scales[..., None] ** -2 * R.transpose(0, 2, 1))
        error = np.linalg.norm(got - precisions, axis=(1, 2)) / np.linalg.norm(precisions, axis=(1, 2))
        assert error.max() < 1e-4

        quaternions = columns(vertices, "rot_0", "rot_1", "rot_2", "rot_3")
        np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.det(R), 1, rtol=1e-5)

    def test_a_long_gaussian_along_x(self, tmp_path: Path) -> None:
        factors = np.diag([1, 1, 0.5])[None]  # z, y, x
        write_ply(tmp_path / "a.ply", GaussianVolume([[1, 2, 3]], factors, [5], Grid((9, 9, 9), np.diag([4, 2, 3, 1]))))
        vertices = read(tmp_path / "a.ply")
        np.testing.assert_allclose(columns(vertices, "x", "y", "z"), [[9, 4, 4]])
        R, scales = rotations(vertices)[0], np.exp(columns(vertices, "scale_0", "scale_1", "scale_2"))[0]
        np.testing.assert_allclose(R @ np.diag(scales) @ R.T, np.diag([6, 2, 4]), atol=1e-5)

    def test_normals_are_zero(self, tmp_path: Path) -> None:
        write_ply(tmp_path / "a.ply", volume())
        assert not columns(read(tmp_path / "a.ply"), "nx", "ny", "nz").any()


class TestAppearance:
    def test_opacity_is_the_height_over_the_largest(self, tmp_path: Path) -> None:
        write_ply(tmp_path / "a.ply", separate([50, -100, 25, 0.001], 0))
        expected = [0.5, 0.99, 0.25, 1 / 255]
        np.testing.assert_allclose(opacities(read(tmp_path / "a.ply")), expected, rtol=1e-5)

    def test_grey_is_the_intensity_within_the_range(self, tmp_path: Path) -> None:
        # From -1000 - 250 to -1000 + 750.
        write_ply(tmp_path / "a.ply", separate([750, 250, 0, -250], -1000))
        shown = colours(read(tmp_path / "a.ply"))
        np.testing.assert_allclose(shown[:3], np.repeat([[1], [0.5], [0.25]], 3, axis=1), atol=1e-6)

    def test_overlapping_gaussians_widen_the_range(self, tmp_path: Path) -> None:
        grid, factors = Grid((9, 9, 9)), np.repeat(np.eye(3)[None], 2, axis=0)
        write_ply(tmp_path / "a.ply", GaussianVolume(np.full((2, 3), 4), factors, [3, 1], grid, 10))
        expected = np.repeat([[0.75], [0.25]], 3, axis=1)
        np.testing.assert_allclose(colours(read(tmp_path / "a.ply")), expected, atol=1e-5)

    def test_negative_ones_stand_out(self, tmp_path: Path) -> None:
        model = volume()
        write_ply(tmp_path / "a.ply", model)
        shown = colours(read(tmp_path / "a.ply"))
        saturation = np.ptp(shown, axis=1)
        negative = model.weights.numpy() < 0
        assert 0 < negative.sum() < len(model)
        assert (saturation[negative] > 0.5).all()
        assert (shown[negative].argmax(1) == 2).all()
        np.testing.assert_allclose(saturation[~negative], 0, atol=1e-6)
        assert shown.min() >= -1e-6
        assert shown.max() <= 1 + 1e-6

    @pytest.mark.parametrize("weights", [[0.0, 0.0], [3.0], [-3.0]], ids=str)
    def test_always_finite(self, tmp_path: Path, weights: list[float]) -> None:
        write_ply(tmp_path / "a.ply", separate(weights, 7))
        vertices = read(tmp_path / "a.ply")
        assert len(vertices["x"]) == len(weights)
        assert np.isfinite(list(vertices.values())).all()


class TestFile:
    def test_header(self, tmp_path: Path) -> None:
        """The first program's viewer takes the third line for the count, others only understand line feeds."""
        write_ply(str(tmp_path / "a.PLY"), volume(n=3))
        content = (tmp_path / "a.PLY").read_bytes()
        assert content.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\n")
        header, end, rows = content.partition(b"end_header\n")
        assert end
        assert b"\r" not in header
        assert len(rows) == 3 * 17 * 4

    @pytest.mark.parametrize("name", ["a.splat", "a.ply.gz", "a", "ply"])
    def test_names(self, tmp_path: Path, name: str, refused: Refused) -> None:
        with refused(ValueError, "ends in .ply", name):
            write_ply(tmp_path / name, volume())
        assert not list(tmp_path.iterdir())

    def test_only_in_3d(self, tmp_path: Path, refused: Refused) -> None:
        with refused(ValueError, "in 3D", "these are 2D"):
            write_ply(tmp_path / "a.ply", GaussianVolume([[1, 2]], np.eye(2)[None], [1], Grid((4, 5))))
        assert not list(tmp_path.iterdir())

    def test_none(self, tmp_path: Path, refused: Refused) -> None:
        with refused(ValueError, "no Gaussians"):
            write_ply(tmp_path / "a.ply", volume(n=0))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("thin", [0, 1e-39])
    def test_infinitely_wide(self, tmp_path: Path, thin: float, refused: Refused) -> None:
        factors = np.diag([1, thin, 1])[None]
        with refused(ValueError, "infinitely wide"):
            write_ply(tmp_path / "a.ply", GaussianVolume(np.zeros((1, 3)), factors, [1], Grid((4, 4, 4))))
        assert not list(tmp_path.iterdir())

    def test_an_existing_file_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.ply").write_bytes(bytes(10**6))
        write_ply(tmp_path / "a.ply", volume(n=2))
        assert len(read(tmp_path / "a.ply")["x"]) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]

    def test_a_failure_leaves_the_existing_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
    ) -> None:
        (tmp_path / "a.ply").write_bytes(b"old")

        def full(path: Path, content: bytes) -> None:
            path.open("wb").close()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with refused(OSError, "a.ply", "No space left"):
            write_ply(tmp_path / "a.ply", volume())
        assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
        assert (tmp_path / "a.ply").read_bytes() == b"old"

    def test_no_folder(self, tmp_path: Path, refused: Refused) -> None:
        with refused(FileNotFoundError, "a.ply", "nowhere"):
            write_ply(tmp_path / "nowhere" / "a.ply", volume())
