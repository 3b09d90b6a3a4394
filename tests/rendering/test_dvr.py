"""Direct volume rendering: against closed forms, and against a slow marcher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from napari_gsvolume.progress import Budget
from napari_gsvolume.rendering.cameras import Cameras, bounding_radius, fibonacci_directions, orbit_cameras
from napari_gsvolume.rendering.settings import RenderMode
from napari_gsvolume.rendering.volume import dvr
from napari_gsvolume.rendering.volume.dvr import RenderStep, iter_views, render_views, render_views_steps
from napari_gsvolume.rendering.volume.transfer_functions import TransferFunction, restrict_to_intervals

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, VOXEL = (18, 22, 20), np.array([1.5, 1.0, 0.8])
ORANGE = np.array([0.9, 0.5, 0.1])
WAYS = [(1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 2, 3), (-3, 1, -0.5)]


def cameras_of(ways, size=(24, 24), orthographic=False, zoom=1.0, shape=SHAPE) -> Cameras:
    return orbit_cameras(ways, bounding_radius(shape, VOXEL), size, orthographic=orthographic, zoom=zoom)


def constant(opacity: float = 0.2, unit: float = 2.0) -> TransferFunction:
    return TransferFunction([0.0], [ORANGE], [opacity], unit)


def rays(cameras: Cameras, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a point on each pixel's ray and its direction, (H, W, 3), mm, (x, y, z), from the cameras' definition."""
    h, w = cameras.image_size
    x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    K, turn = cameras.intrinsics[view], cameras.matrices[view, :3, :3]
    x, y = (x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]
    one, position = np.ones_like(x), cameras.positions[view]
    if cameras.orthographic:
        return np.stack([x, y, 0 * one], -1) @ turn + position, np.broadcast_to(turn[2], (h, w, 3))
    ways = np.stack([x, y, one], -1) @ turn
    return np.broadcast_to(position, (h, w, 3)), ways / np.linalg.norm(ways, axis=-1, keepdims=True)


def box(cameras: Cameras, view: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return how far along its ray each pixel enters and leaves the volume's box, mm; where it misses, twice 0."""
    points, ways = rays(cameras, view)
    half = (np.array(shape) * VOXEL)[::-1] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (-half - points) / ways, (half - points) / ways
    enter, leave = np.nanmax(np.minimum(a, b), -1), np.nanmin(np.maximum(a, b), -1)
    return np.where(enter < leave, enter, 0), np.where(enter < leave, leave, 0)


def slowly(
    volume: np.ndarray, cameras: Cameras, transfer_function: TransferFunction, unit: float, n: int = 1500
) -> np.ndarray:
    """Return an image of emission and absorption by `n` fine samples along each ray, float64."""
    points, ways = rays(cameras, 0)
    enter, leave = box(cameras, 0, volume.shape)
    distance = ((leave - enter) / n)[..., None]
    image, left = np.zeros((*cameras.image_size, 3)), np.ones((*cameras.image_size, 1))
    for s in range(n):
        at = (points + (enter[..., None] + (s + 0.5) * distance) * ways)[..., ::-1] / VOXEL
        at = at + (np.array(volume.shape) - 1) / 2
        found = transfer_function.evaluate(
            map_coordinates(volume.astype(float), np.moveaxis(at, -1, 0), order=1, mode="nearest")
        )
        through = (1 - np.minimum(found[..., 3:], 0.999)) ** (distance / unit)
        image += left * (1 - through) * found[..., :3]
        left *= through
    return image


def blobs(shape=SHAPE) -> np.ndarray:
    random = np.random.default_rng(0)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    volume = np.zeros(shape, np.float32)
    for centre in random.uniform(0.3, 0.7, (5, 3)) * shape:
        volume += np.exp(-(((at - centre) / random.uniform(2, 4)) ** 2).sum(-1) / 2)
    return volume


def sparse() -> np.ndarray:
    """Return a volume of bright voxels here and there: on, beside and between the boundaries of blocks."""
    return (np.random.default_rng(0).random((40, 44, 36)) < 0.001).astype(np.float32)


class TestEmissionAndAbsorption:
    @pytest.mark.parametrize("orthographic", [False, True])
    def test_constant_box(self, orthographic: bool) -> None:
        cameras = cameras_of(WAYS, orthographic=orthographic)
        images = render_views(np.full(SHAPE, 3.0), VOXEL, cameras, "dvr", constant())
        assert images.shape == (len(WAYS), 24, 24, 3)
        assert images.dtype == np.float32
        for k, image in enumerate(images):
            enter, leave = box(cameras, k)
            part = 1 - 0.8 ** ((leave - enter) / 2)
            np.testing.assert_allclose(image, part[..., None] * ORANGE, atol=1.1e-3)  # rays end at 1e-3
            assert 0.05 < (part > 0).mean() < 0.95

    def test_thickness_of_a_layer_is_by_default_of_the_diagonal(self) -> None:
        cameras, volume = cameras_of([(1, 2, 3)]), np.ones(SHAPE)
        transfer_function, diagonal = constant(0.03), 2 * bounding_radius(SHAPE, VOXEL)
        np.testing.assert_allclose(
            render_views(volume, VOXEL, cameras, "dvr", replace(transfer_function, unit_mm=None)),
            render_views(volume, VOXEL, cameras, "dvr", replace(transfer_function, unit_mm=diagonal / 200)),
            rtol=1e-6,
        )

    def test_background_shines_through_by_what_is_left(self) -> None:
        cameras, behind = cameras_of([(1, 0.2, 0.1)]), np.array([0.2, 0.4, 1.0])
        image = render_views(np.ones(SHAPE), VOXEL, cameras, "dvr", constant(0.05), background=behind)[0]
        enter, leave = box(cameras, 0)
        left = 0.95 ** ((leave - enter) / 2)[..., None]
        np.testing.assert_allclose(image, (1 - left) * ORANGE + left * behind, atol=1e-5)

    def test_what_is_in_front_hides_what_is_behind(self) -> None:
        volume = np.zeros(SHAPE, np.float32)
        volume[:, :, :6], volume[:, :, 14:] = 1, 2
        colors = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
        opaque = TransferFunction([0, 1, 2], colors, [0, 0.999, 0.999], 0.1)
        left, right = render_views(volume, VOXEL, cameras_of([(-1, 0, 0), (1, 0, 0)], (2, 2), zoom=8), "dvr", opaque)
        assert left[..., 0].min() > 0.9  # the ramp up to the layer is darker
        assert left[..., 1].max() < 1e-3
        assert right[..., 1].min() > right[..., 0].max()

    @pytest.mark.parametrize("orthographic", [False, True])
    @pytest.mark.parametrize("way", [(1, 2, 3), (0, -1, 0.2)])
    def test_as_a_slow_marcher(self, way, orthographic: bool) -> None:
        volume, cameras = blobs(), cameras_of([way], (9, 9), orthographic, zoom=1.5)
        transfer_function = TransferFunction(
            [0.3, 0.6, 0.7, 1.2], [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], [0, 0.3, 0.1, 0.9], 2.0
        )
        exact = slowly(volume, cameras, transfer_function, 2.0)
        assert exact.max() > 0.3
        errors = [
            np.abs(render_views(volume, VOXEL, cameras, "dvr", transfer_function, ray_step=step)[0] - exact).max()
            for step in (2.0, 0.5, 0.125)
        ]
        assert errors[0] > errors[1] > errors[2]
        assert errors[1] < 0.01
        assert errors[2] < 2e-3

    def test_long_steps_miss_no_thin_layer(self) -> None:
        """A layer of intensities that is passed within a step is rendered as its mean over the step."""
        z = np.broadcast_to(np.arange(18.0)[:, None, None], SHAPE)
        thin = TransferFunction([8.1, 8.15, 8.2], np.tile(ORANGE, (3, 1)), [0, 0.5, 0], 0.01)
        cameras = cameras_of([(0, 0, 1)], (3, 3), True, zoom=4)
        coarse, fine = (render_views(z, VOXEL, cameras, "dvr", thin, ray_step=step) for step in (2.0, 0.01))
        assert fine.min(axis=(0, 1, 2))[0] > 0.5
        np.testing.assert_allclose(coarse, fine, atol=0.01)

    @pytest.mark.parametrize("step", [0.5, 2.0])
    def test_leaving_out_empty_blocks_changes_nothing(self, step: float) -> None:
        volume = sparse()
        cameras = cameras_of(fibonacci_directions(6), (32, 32), zoom=2.0, shape=volume.shape)
        found, all_of_it = (
            render_views(
                volume, VOXEL, cameras, "dvr", TransferFunction([0, 0.02, 1], np.ones((3, 3)), o, 0.1), ray_step=step
            )
            for o in ([0, 0, 0.8], [1e-12, 1e-12, 0.8])
        )
        assert (found > 0.1).mean() > 0.05
        np.testing.assert_allclose(found, all_of_it, atol=1e-5)
        mip, of_negative = (
            render_views(v, VOXEL, cameras, m, ray_step=step) for v, m in ((volume, "mip"), (-volume, "minip"))
        )
        np.testing.assert_array_equal(mip, -of_negative)  # the one leaves out blocks, the other does not

    def test_inside_the_volume_rays_begin_at_the_camera(self) -> None:
        camera = Cameras(np.eye(4)[None], [[[5, 0, 1.5], [0, 5, 1.5], [0, 0, 1.0]]], (3, 3))
        image = render_views(np.ones(SHAPE), VOXEL, camera, "xray")[0]
        assert image[1, 1, 0] == pytest.approx(SHAPE[0] * VOXEL[0] / 2, rel=1e-6)

    def test_an_edge_at_the_end_of_an_interval_hides_what_is_beyond(self) -> None:
        whole = constant(0.5)
        part = restrict_to_intervals(whole, {"some": (2, 3)})["some"]
        for level, seen in ((1.0, False), (2.0, True), (2.5, True), (3.5, False)):
            image = render_views(np.full(SHAPE, level), VOXEL, cameras_of([(1, 2, 3)]), "dvr", part)
            assert (image.max() > 0.5) == seen


class TestIntensities:
    def test_along_z_the_integral_is_the_sum(self) -> None:
        volume = np.random.default_rng(0).random(SHAPE).astype(np.float32)
        along_z = [[[1 / VOXEL[2], 0, SHAPE[2] / 2], [0, 1 / VOXEL[1], SHAPE[1] / 2], [0, 0, 1]]]  # a pixel a column
        camera = Cameras(np.eye(4)[None], along_z, SHAPE[1:], True)
        # Steps of half a voxel along z, with which the sum over the interpolant is exact.
        image = render_views(volume, VOXEL, camera, "xray", ray_step=0.5 * VOXEL[0] / VOXEL.min())
        np.testing.assert_allclose(image[0, ..., 0], volume.sum(0) * VOXEL[0], rtol=1e-5)

    @pytest.mark.parametrize("orthographic", [False, True])
    def test_integral_of_a_gaussian(self, orthographic: bool) -> None:
        shape, sigma = (44, 66, 82), 6.0  # mm; four of the largest sides, and far from the boundary
        at = np.stack(np.meshgrid(*((np.arange(n) - (n - 1) / 2) * v for n, v in zip(shape, VOXEL, strict=True))), -1)
        volume = np.exp(-(np.swapaxes(at, 0, 1) ** 2).sum(-1) / (2 * sigma**2))
        cameras = cameras_of(WAYS, (15, 15), orthographic, 3.0, shape)
        for k, image in enumerate(render_views(volume, VOXEL, cameras, "xray")):
            points, ways = rays(cameras, k)
            distance = np.linalg.norm(np.cross(points, ways), axis=-1)
            exact = sigma * np.sqrt(2 * np.pi) * np.exp(-(distance**2) / (2 * sigma**2))
            np.testing.assert_allclose(image[..., 0], exact, atol=0.015 * exact.max())

    @pytest.mark.parametrize("orthographic", [False, True])
    def test_extremes_and_mean(self, orthographic: bool) -> None:
        volume = np.full(SHAPE, 2.0)
        volume[6:12, 7:15, 7:13] = 5  # a plateau wider than a step
        cameras = cameras_of([(1, 2, 3)], (25, 25), orthographic)
        mip, minip, mean, xray = (
            render_views(volume, VOXEL, cameras, mode)[0, ..., 0] for mode in ("mip", "minip", "mean", "xray")
        )
        enter, leave = box(cameras, 0)
        hit = leave - enter > 1e-3
        assert mip[12, 12] == 5
        np.testing.assert_array_equal(np.unique(minip[hit]), 2)
        np.testing.assert_allclose((mean * (leave - enter))[hit], xray[hit], rtol=1e-5)
        for image, nothing in ((mip, 2), (minip, 5), (mean, 2), (xray, 0)):
            assert (image[~hit] == nothing).all()


class TestShapes:
    def test_a_ball_in_mm_is_round(self) -> None:
        z, y, x = np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * v for n, v in zip((24, 36, 45), VOXEL, strict=True)), indexing="ij"
        )
        ball = np.clip(12 - np.sqrt(z**2 + y**2 + x**2), -1, 1)
        cameras = orbit_cameras(WAYS, 18.0, (60, 60), orthographic=True)
        areas = (render_views(ball, VOXEL, cameras, "mip")[..., 0] > 0).sum((1, 2)) * (18 / 30) ** 2
        np.testing.assert_allclose(areas, np.pi * 12**2, rtol=0.03)

    def test_shading_of_a_ball_is_brightest_in_the_middle(self) -> None:
        z, y, x = np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * v for n, v in zip((24, 36, 45), VOXEL, strict=True)), indexing="ij"
        )
        ball = 12 - np.sqrt(z**2 + y**2 + x**2)
        solid = TransferFunction([0, 0.5], np.full((2, 3), 0.7), [0, 0.999], 0.3)
        cameras = orbit_cameras([(1, 2, 3)], 18.0, (31, 31), orthographic=True)
        lit, lit_inside_out, plain = (
            render_views(sign * ball, VOXEL, cameras, "dvr", transfer_function, shading=shading)[0, ..., 0]
            for sign, transfer_function, shading in (
                (1, solid, True),
                (-1, TransferFunction([-0.5, 0], solid.colors, [0.999, 0], 0.3), True),
                (1, solid, None),
            )
        )
        np.testing.assert_allclose(lit, lit_inside_out, atol=0.02)  # both sides of a surface are lit
        assert lit[15, 15] == pytest.approx(0.7 + 0.2, abs=0.02)  # c (0.3 + 0.7) and the highlight
        row = lit[15, 15:25]
        assert (np.diff(row) < 0.005).all()
        assert row[-1] < 0.7 * row[0]
        np.testing.assert_allclose(plain[15, 10:20], 0.7, atol=1e-3)

    def test_where_nothing_changes_nothing_is_shaded(self) -> None:
        cameras = cameras_of([(1, 2, 3)])
        flat, lit = (render_views(np.ones(SHAPE), VOXEL, cameras, "dvr", constant(), shading=s) for s in (False, True))
        np.testing.assert_array_equal(flat, lit)

    def test_mask(self) -> None:
        mask = np.zeros(SHAPE, int)
        mask[:, :, :10] = 3
        cameras = cameras_of([(0, 0, 1), (1, 2, 3)])
        volume = 1 + blobs()
        # A constant half, masked or alone: what is masked out is as empty space.
        transfer_function = TransferFunction([0.5, 1], np.tile(ORANGE, (2, 1)), [0, 0.3], 2.0)
        masked = render_views(np.ones(SHAPE), VOXEL, cameras, "dvr", transfer_function, mask=mask, ray_step=0.02)
        for k, image in enumerate(masked):
            points, ways = rays(cameras, k)
            low, high = np.array([-8, -11, -13.5]), np.array([0, 11, 13.5])
            with np.errstate(divide="ignore"):
                a, b = (low - points) / ways, (high - points) / ways
            length = np.maximum(np.minimum.reduce(np.maximum(a, b), -1) - np.maximum.reduce(np.minimum(a, b), -1), 0)
            np.testing.assert_allclose(image, (1 - 0.7 ** (length / 2))[..., None] * ORANGE, atol=4e-3)
        for mode in ("mip", "minip", "mean", "xray"):
            np.testing.assert_array_equal(
                render_views(volume, VOXEL, cameras, mode, mask=np.ones(SHAPE, bool)),
                render_views(volume, VOXEL, cameras, mode),
            )
            empty = render_views(volume, VOXEL, cameras, mode, mask=np.zeros(SHAPE))
            nothing = {"xray": 0, "minip": volume.max()}.get(mode, volume.min())
            np.testing.assert_allclose(empty, nothing, rtol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 8), (17, 1, 3)])
    def test_thin_volumes(self, shape) -> None:
        cameras = cameras_of(WAYS, shape=shape)
        for k, image in enumerate(render_views(np.full(shape, 2.0), VOXEL, cameras, "xray")):
            enter, leave = box(cameras, k, shape)
            np.testing.assert_allclose(image[..., 0], 2 * (leave - enter), atol=1e-4)


class TestOnAGPU:
    """What a GPU computes, here on the CPU."""

    @pytest.mark.parametrize("mode", ["dvr", "mip", "minip", "mean", "xray"])
    @pytest.mark.parametrize("orthographic", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_torch_sees_the_same(
        self, monkeypatch: pytest.MonkeyPatch, mode: RenderMode, orthographic: bool, masked: bool
    ) -> None:
        volume, cameras = blobs(), cameras_of(WAYS, (21, 25), orthographic)
        transfer_function = TransferFunction([0.1, 0.5, 1], [(0, 0, 1), (0, 1, 0), (1, 0, 0)], [0, 0.3, 0.9], 1.0, True)
        more = {"background": (0.1, 0.2, 0.3), "mask": volume > np.median(volume) if masked else None}
        more |= {"transfer_function": transfer_function} if mode == "dvr" else {}
        expected = render_views(volume, VOXEL, cameras, mode, **more)
        monkeypatch.setattr(dvr, "available_device", lambda wanted: torch.device("cpu"))  # unlike "cpu" by name
        found = render_views(volume, VOXEL, cameras, mode, **more)
        assert found.dtype == np.float32
        error = np.abs(found - expected) / np.abs(expected).max()
        # Where a sample lies just between two voxels of the mask, float32 may find it in the other one.
        assert (error > 1e-4).mean() < (0.02 if masked else 1e-9)


class TestRefused:
    def test_views_come_one_by_one(self) -> None:
        cameras, volume = cameras_of(WAYS), blobs()
        views = iter_views(volume, VOXEL, cameras)
        first = next(views)
        stack = render_views(volume, VOXEL, cameras)
        assert stack.max() > 0.05  # by the default, a gray ramp
        np.testing.assert_array_equal(first, stack[0])
        np.testing.assert_array_equal(np.stack([first, *views]), stack)

    def test_steps_and_a_stop(self) -> None:
        cameras, volume = cameras_of(WAYS), blobs()
        stack = render_views(volume, VOXEL, cameras)
        steps = render_views_steps(volume, VOXEL, cameras, budget=Budget(stop=lambda: len(taken) == 2))
        taken: list[RenderStep] = []
        while True:
            try:
                taken.append(next(steps))
            except StopIteration as end:
                result = end.value
                break
        assert [(step.view, step.fraction, step.summary) for step in taken] == [
            (1, 0.2, "1 of 5"),
            (2, 0.4, "2 of 5"),
        ]
        np.testing.assert_array_equal(taken[1].image, stack[1])
        np.testing.assert_array_equal(result, stack[:2])  # what there is when it is stopped

    def test_what_is_refused(self, refused) -> None:
        cameras, volume = cameras_of(WAYS), np.ones(SHAPE)
        with refused(ValueError, "three axes", "(18, 22)"):
            iter_views(volume[..., 0], VOXEL, cameras)  # at once, not with the first image
        with refused(ValueError, "three axes", "(18, 22)"):
            render_views_steps(volume[..., 0], VOXEL, cameras)
        with refused(ValueError, "NaN"):
            render_views(np.full(SHAPE, np.nan), VOXEL, cameras)
        with refused(ValueError, "voxel size", "positive"):
            render_views(volume, (1, 0, 1), cameras)
        with refused(ValueError, "voxel size", "three"):
            render_views(volume, (1, 1), cameras)
        with refused(ValueError, "background", "0 to 1"):
            render_views(volume, VOXEL, cameras, background=(0, 0, 255))
        with refused(ValueError, "ray step", "0"):
            render_views(volume, VOXEL, cameras, ray_step=0)
        with refused(ValueError, "sum", "xray"):
            render_views(volume, VOXEL, cameras, "sum")  # type: ignore[arg-type]
        with refused(ValueError, "mask", "(2, 2, 2)"):
            render_views(volume, VOXEL, cameras, mask=np.ones((2, 2, 2)))
