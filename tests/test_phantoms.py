from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from napari_gsvolume.grid import Grid
from napari_gsvolume.phantoms import anatomical_phantom, vessel_phantom

Phantom = Callable[..., tuple[np.ndarray, Grid]]
BOTH = pytest.mark.parametrize("phantom", [anatomical_phantom, vessel_phantom])


@pytest.fixture(scope="module")
def body() -> np.ndarray:
    return anatomical_phantom(128, noise=0)[0]


@pytest.fixture(scope="module")
def vessels() -> np.ndarray:
    return vessel_phantom(64, noise=0)[0]


@cache
def clean(phantom: Phantom, seed: int = 0) -> np.ndarray:
    """A small phantom without noise."""
    return phantom(24, noise=0, seed=seed)[0]


def at(body: np.ndarray, z: float, y: float, x: float) -> float:
    """Mean around a place in mm."""
    voxel = 384 / len(body)
    index = [round(mm / voxel + (len(body) - 1) / 2) for mm in (z, y, x)]
    return float(body[tuple(slice(i - 1, i + 2) for i in index)].mean())


@BOTH
@pytest.mark.parametrize("size", [16, 33])
def test_shape_type_and_grid(phantom: Phantom, size: int) -> None:
    volume, grid = phantom(size)
    assert volume.dtype == np.float32
    assert volume.shape == grid.shape == (size,) * 3
    assert grid.units == ("mm",) * 3
    assert np.isfinite(volume).all()


@pytest.mark.parametrize(("phantom", "width"), [(anatomical_phantom, 384), (vessel_phantom, 64)])
def test_sizes_cover_the_same_place(phantom: Phantom, width: float) -> None:
    for size in (16, 32):
        _, grid = phantom(size)
        faces = [grid.affine @ [i, i, i, 1] for i in (-0.5, size - 0.5)]
        np.testing.assert_allclose(faces, [[-width / 2] * 3 + [1], [width / 2] * 3 + [1]], rtol=1e-6)


@BOTH
def test_the_seed_decides(phantom: Phantom) -> None:
    np.testing.assert_array_equal(phantom(24, seed=3)[0], phantom(24, seed=3)[0])
    assert not np.array_equal(clean(phantom, 0), clean(phantom, 1))


@pytest.mark.parametrize(("phantom", "unit"), [(anatomical_phantom, 2000), (vessel_phantom, 1)])
@pytest.mark.parametrize("noise", [0.002, 0.05])
def test_noise_is_as_strong_as_asked(phantom: Phantom, unit: float, noise: float) -> None:
    difference = phantom(24, noise=noise)[0].astype(float) - clean(phantom)
    assert difference.std() == pytest.approx(noise * unit, rel=0.03)
    assert abs(difference.mean()) < 0.05 * noise * unit
    neighbours = np.corrcoef(difference[1:].ravel(), difference[:-1].ravel())[0, 1]
    assert abs(neighbours) < 0.05


@BOTH
@pytest.mark.parametrize(
    ("options", "message"), [({"size": 15}, "16"), ({"noise": -0.1}, "-0.1"), ({"noise": np.nan}, "nan")]
)
def test_impossible_requests(phantom: Phantom, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantom(**options)


class TestBody:
    def test_range(self, body: np.ndarray) -> None:
        assert body.min() == pytest.approx(-1000, abs=0.01)
        assert 400 < body.max() <= 850

    def test_air_around(self, body: np.ndarray) -> None:
        np.testing.assert_allclose(body[:, [0, -1]], -1000)
        np.testing.assert_allclose(body[:, :, [0, -1]], -1000)

    @pytest.mark.parametrize(
        ("name", "place", "low", "high"),
        [
            ("right lung", (30, -20, -100), -950, -700),
            ("left lung", (30, 30, 100), -950, -700),
            ("liver", (-60, -10, -80), 80, 140),
            ("gallbladder", (-108, -48, -42), -20, 40),
            ("left ventricle", (16, -26, 38), 170, 230),
            ("aorta", (30, 38, 20), 190, 250),
            ("spleen", (-62, 38, 88), 105, 145),
            ("stomach's air", (-62, -52, 55), -1000, -900),
            ("trachea", (140, 2, 0), -1000, -700),
            ("fat under the skin", (0, 0, 157), -140, -60),
        ],
    )
    def test_organs_are_where_they_belong(
        self, body: np.ndarray, name: str, place: tuple[float, float, float], low: float, high: float
    ) -> None:
        assert low < at(body, *place) < high, name

    def test_vertebrae_are_shells_30_mm_apart(self, body: np.ndarray) -> None:
        bone = body[:, 76:92, 56:72].max(axis=(1, 2)) > 500
        starts = np.flatnonzero(bone[1:] & ~bone[:-1])
        np.testing.assert_allclose(np.diff(starts), 10, atol=1)
        across = body[68, 84, 54:74]  # through the middle of a vertebra, from side to side
        walls = np.flatnonzero(across > 450)
        assert len(walls) >= 2
        assert (across[walls[0] : walls[-1]] < 300).sum() > 5

    def test_ribs_are_shells(self, body: np.ndarray) -> None:
        solid = ndimage.binary_fill_holes(body[:, 60] > 300)
        hollow = solid & (body[:, 60] < 300)
        assert ndimage.label(hollow)[1] >= 12

    def test_edges_are_soft(self, body: np.ndarray) -> None:
        """A coarse phantom is the average of a fine one, not a choice of its voxels."""
        coarse = anatomical_phantom(64, noise=0)[0].ravel()
        averaged = body.reshape(64, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5)).ravel()
        chosen = body[::2, ::2, ::2].ravel()
        assert np.abs(coarse - averaged).mean() < 0.5 * np.abs(coarse - chosen).mean()
        assert np.corrcoef(coarse, averaged)[0, 1] > 0.995

    def test_organs_have_texture(self, body: np.ndarray) -> None:
        liver = body[40:48, 56:68, 32:44]
        assert 2 < liver.std() < 40


class TestVessels:
    def test_range_is_zero_to_one(self, vessels: np.ndarray) -> None:
        assert vessels.min() == 0
        assert vessels.max() == 1

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("size", [32, 96])
    def test_sparse(self, size: int, seed: int) -> None:
        volume, _ = vessel_phantom(size, noise=0, seed=seed)
        assert 0.002 < (volume > 0.5).mean() < 0.03
        assert (volume == 0).mean() > 0.9

    def test_two_connected_trees(self, vessels: np.ndarray) -> None:
        _, pieces = ndimage.label(vessels > 0.3, np.ones((3, 3, 3)))
        assert 1 <= pieces <= 2  # they may touch

    def test_radii_go_from_trunks_to_twigs(self) -> None:
        volume, _ = vessel_phantom(128, noise=0)
        inside = volume > 0.5
        depth = ndimage.distance_transform_edt(inside)
        ridge = depth[inside & (depth == ndimage.maximum_filter(depth, 3))]
        assert 3.5 < ridge.max() < 6  # a trunk of 4 voxels
        assert (ridge <= 1.5).mean() > 0.3  # and many twigs of about one
        assert ndimage.binary_erosion(inside, iterations=2).any()

    def test_inside_the_volume(self, vessels: np.ndarray) -> None:
        for axis in range(3):
            assert vessels.take([0, -1], axis).max() == 0
