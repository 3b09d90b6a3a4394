"""Cameras: where points are seen, where they stand, and their file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_gsvolume.errors import InputError
from napari_gsvolume.rendering.cameras import (
    Camera,
    Cameras,
    bounding_radius,
    fibonacci_directions,
    load_images,
    look_at_cameras,
    orbit_cameras,
    turntable_directions,
)


def seen(cameras, point):
    """Return where each camera sees a point, (V, 2), from the definition."""
    x, y, z = (cameras.matrices[:, :3, :3] @ np.asarray(point, float) + cameras.matrices[:, :3, 3]).T
    depth = 1 if cameras.orthographic else z
    K = cameras.intrinsics
    return np.stack([K[:, 0, 0] * x / depth + K[:, 0, 2], K[:, 1, 1] * y / depth + K[:, 1, 2]], 1)


@pytest.mark.parametrize("orthographic", [False, True])
def test_the_middle_is_in_the_middle_and_up_is_up(orthographic):
    cameras = orbit_cameras(turntable_directions(5, 20), 50.0, (40, 60), orthographic=orthographic)
    np.testing.assert_allclose(seen(cameras, (0, 0, 0)), np.tile((30, 20), (5, 1)), atol=1e-9)
    above = seen(cameras, (0, 0, 10))
    assert (above[:, 1] < 20).all()
    np.testing.assert_allclose(above[:, 0], 30, atol=1e-9)


def test_a_turntable_begins_in_front_and_right_is_right():
    [front] = orbit_cameras(turntable_directions(4), 50.0)[:1]
    np.testing.assert_allclose(front.directions[0], (0, 1, 0), atol=1e-12)
    assert seen(front, (10, 0, 0))[0, 0] > 128


@pytest.mark.parametrize("orthographic", [False, True])
def test_the_whole_ball_is_seen(orthographic):
    cameras = orbit_cameras(fibonacci_directions(20), 30.0, (50, 70), orthographic=orthographic)
    for point in 30 * fibonacci_directions(200):
        u, v = seen(cameras, point).T
        assert (u > 9.9).all()
        assert (u < 60.1).all()
        assert (v > -0.1).all()
        assert (v < 50.1).all()


def test_directions_are_even():
    ways = fibonacci_directions(500)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=1), 1)
    np.testing.assert_allclose(ways.mean(0), 0, atol=0.01)
    cosines = ways @ ways.T - 2 * np.eye(500)
    nearest = np.arccos(cosines.max(1))
    assert nearest.min() > 0.6 * nearest.mean()


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3).filter(lambda p: np.linalg.norm(p) > 1e-3))
def test_any_position_gives_a_rotation(position):
    camera = look_at_cameras([position], (20, 30), 25.0)
    np.testing.assert_allclose(camera.positions[0], position, atol=1e-6)
    np.testing.assert_allclose(camera.directions[0], -np.array(position) / np.linalg.norm(position), atol=1e-6)
    np.testing.assert_allclose(seen(camera, (0, 0, 0)), [(15, 10)], atol=1e-6)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 1, 0), (3, 0, 0)])
def test_looking_along_what_is_up(up):
    camera = look_at_cameras([np.array(up) * 7.0], (10, 10), 5.0, up=up)
    assert np.isfinite(camera.matrices).all()


def test_other_sizes_see_the_same():
    camera = orbit_cameras(fibonacci_directions(1), 20.0, (40, 60))
    large = camera.with_image_size((80, 200))
    middle, there = seen(camera, (3, 4, 5))[0] - (30, 20), seen(large, (3, 4, 5))[0] - (100, 40)
    np.testing.assert_allclose(there, 2 * middle)


def test_there_and_back(tmp_path):
    cameras = orbit_cameras(fibonacci_directions(3), 20.0, (12, 18), orthographic=True)
    images = np.random.default_rng(0).random((3, 12, 18, 3)).astype(np.float32)
    cameras.save(tmp_path / "V.npz", images)
    again = Cameras.load(tmp_path / "V.npz")
    np.testing.assert_array_equal(again.matrices, cameras.matrices)
    np.testing.assert_array_equal(again.intrinsics, cameras.intrinsics)
    assert (again.image_size, again.orthographic) == ((12, 18), True)
    np.testing.assert_array_equal(load_images(tmp_path / "V.npz"), images)
    cameras.save(tmp_path / "V.npz")
    assert load_images(tmp_path / "V.npz") is None
    np.savez(tmp_path / "W.npz", cameras=cameras.matrices, intrinsics=cameras.intrinsics, images=images)
    assert Cameras.load(tmp_path / "W.npz").image_size == (12, 18)


def test_some_of_them():
    cameras = orbit_cameras(fibonacci_directions(5), 20.0)
    assert [len(cameras[k]) for k in (2, slice(1, 4), np.array([0, 4]))] == [1, 3, 2]
    np.testing.assert_array_equal(np.concatenate([c.matrices for c in cameras]), cameras.matrices)


def test_what_is_refused(refused):
    good = orbit_cameras(fibonacci_directions(2), 20.0)
    with refused(ValueError, "(V, 4, 4)"):
        Cameras(good.matrices[:, :3], good.intrinsics, (4, 4))
    with refused(ValueError, "rotation"):
        Cameras(2 * good.matrices, good.intrinsics, (4, 4))
    with refused(ValueError, "NaN"):
        Cameras(np.nan * good.matrices, good.intrinsics, (4, 4))
    with refused(ValueError, "positive"):
        Cameras(good.matrices, good.intrinsics, (0, 4))
    with refused(ValueError, "positive"):
        Cameras(good.matrices, -good.intrinsics, (4, 4))


def test_the_radius_is_half_of_the_diagonal():
    assert bounding_radius((4, 3, 2), (1, 1, 0)) == pytest.approx(2.5)


class TestCamera:
    def test_looks_at_the_target(self):
        camera = Camera.look_at((30.0, -100.0, 20.0), (3.0, 4.0, 5.0), image_size=(32, 48))
        inside = camera.matrices[0] @ [3.0, 4.0, 5.0, 1.0]
        distance = np.linalg.norm(np.subtract((30.0, -100.0, 20.0), (3.0, 4.0, 5.0)))
        np.testing.assert_allclose(inside, [0, 0, distance, 1], atol=1e-9)
        assert len(camera) == 1

    def test_parallel_rays_show_as_much_at_the_target(self):
        both = [Camera.look_at((0.0, -50.0, 0.0), orthographic=flat) for flat in (False, True)]
        np.testing.assert_allclose(both[1].pixel_size_mm, both[0].pixel_size_mm)

    def test_several_are_refused(self, refused):
        cameras = orbit_cameras(fibonacci_directions(3), 50.0)
        with refused(InputError, "3", "Cameras"):
            Camera(cameras.matrices, cameras.intrinsics, cameras.image_size)
