"""Projections of Gaussians and of voxels: against integrals, against each other, and their transposes."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from napari_gsvolume.operators.gaussian_sum import Gaussians, predict
from napari_gsvolume.tomography import voxel_projector_torch
from napari_gsvolume.tomography.gaussian_projector import GaussianProjector
from napari_gsvolume.tomography.presets import spread_angles
from napari_gsvolume.tomography.scan import Scan, circular_scan
from napari_gsvolume.tomography.voxel_projector import RAY_STEP, back_project, project_voxels

SHAPE, VOXEL = (24, 30, 28), np.array([1.5, 1.0, 0.8])
BEAMS = ["parallel", "fan", "cone"]


def some(n: int = 12, seed: int = 0, smallest: float = 1.5, largest: float = 3.0) -> Gaussians:
    random = np.random.default_rng(seed)
    means = random.uniform(0.35, 0.65, (n, 3)) * np.array(SHAPE)
    factors = Rotation.random(n, random).as_matrix() / random.uniform(smallest, largest, (n, 1, 3))
    return Gaussians(*(torch.tensor(a, dtype=torch.float32) for a in (means, factors, random.normal(size=n))))


def scan_of(beam: str, views: int = 5) -> Scan:
    return circular_scan(SHAPE, VOXEL, spread_angles(views, 360) + 7, beam, offset=(3, 2), tilt=5)


def rays(scan: Scan, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a point on the ray to every pixel and its unit direction, (V, U, 3), mm."""
    i = np.arange(scan.pixels[0]) - (scan.pixels[0] - 1) / 2
    j = np.arange(scan.pixels[1]) - (scan.pixels[1] - 1) / 2
    pixels = scan.centres[view] + i[None, :, None] * scan.u[view] + j[:, None, None] * scan.v[view]
    if scan.beam == "parallel":
        ways = np.broadcast_to(scan.sources[view], pixels.shape)
    else:
        ways = pixels - scan.sources[view] - (j[:, None, None] * scan.v[view] if scan.beam == "fan" else 0)
    return pixels, ways / np.linalg.norm(ways, axis=-1, keepdims=True)


def integrals(gaussians: Gaussians, scan: Scan, view: int) -> np.ndarray:
    """Return the exact line integrals of whole Gaussians in one view, float64."""
    points, ways = rays(scan, view)
    total = np.zeros(points.shape[:2])
    for mu, W, w in zip(*(t.double().numpy() for t in gaussians), strict=True):
        y0 = ((points / VOXEL + (np.array(SHAPE) - 1) / 2) - mu) @ W
        n = (ways / VOXEL) @ W
        nn, ny = (n * n).sum(-1), (n * y0).sum(-1)
        total += w * np.sqrt(2 * np.pi / nn) * np.exp(-((y0 * y0).sum(-1) - ny**2 / nn) / 2)
    return total


class TestGaussians:
    def test_parallel_views_are_the_integrals(self) -> None:
        gaussians, scan = some(), scan_of("parallel")
        images = GaussianProjector(scan).predict(gaussians).numpy()
        peak = np.abs(images).max()
        for k, image in enumerate(images):
            # But for the cut at 3.3 standard deviations, where a Gaussian has fallen to 0.4 %.
            np.testing.assert_allclose(image, integrals(gaussians, scan, k), atol=0.01 * peak)

    @pytest.mark.parametrize("beam", ["fan", "cone"])
    def test_others_are_about_the_integrals(self, beam: str) -> None:
        gaussians, scan = some(), scan_of(beam)
        images = GaussianProjector(scan).predict(gaussians).numpy()
        expected = np.stack([integrals(gaussians, scan, k) for k in range(len(scan))])
        assert np.linalg.norm(images - expected) < 0.03 * np.linalg.norm(expected)

    @pytest.mark.parametrize("beam", BEAMS)
    def test_small_gaussians_are_exact_in_any_beam(self, beam: str) -> None:
        """The affine approximation is good to the size of a Gaussian over its distance from the source."""
        gaussians = some(smallest=0.9, largest=1.0)
        scan = circular_scan(
            SHAPE, VOXEL, [33], beam, source_to_axis=3000, source_to_detector=3100, pixel_size=(0.4, 0.4)
        )
        image = GaussianProjector(scan).predict(gaussians).numpy()[0]
        expected = integrals(gaussians, scan, 0)
        assert np.linalg.norm(image - expected) < 0.008 * np.linalg.norm(expected)

    @pytest.mark.parametrize("beam", BEAMS)
    def test_agree_with_the_voxels(self, beam: str) -> None:
        gaussians, scan = some(smallest=2.5, largest=4), scan_of(beam)
        of_voxels = project_voxels(predict(gaussians, SHAPE).numpy(), scan)
        of_gaussians = GaussianProjector(scan).predict(gaussians).numpy()
        # Between voxels the trilinear interpolant is a little flatter than the Gaussians.
        assert np.linalg.norm(of_gaussians - of_voxels) < 0.03 * np.linalg.norm(of_voxels)

    def test_some_views(self) -> None:
        gaussians, xray = some(), GaussianProjector(scan_of("cone"))
        assert torch.equal(xray.predict(gaussians, range(1, 3)), xray.predict(gaussians)[1:3])

    @pytest.mark.parametrize("beam", BEAMS)
    def test_jvp(self, beam: str) -> None:
        gaussians, xray = some(), GaussianProjector(scan_of(beam))
        step = torch.randn(len(gaussians.weights), 10, generator=torch.Generator().manual_seed(1))
        # Long steps, for the supports' edges jump over pixels: in the mean over many jumps they move as they should.
        change = xray.predict(gaussians.moved(0.05 * step)) - xray.predict(gaussians.moved(-0.05 * step))
        slope = xray.jvp(gaussians, step) * 0.1
        assert (change - slope).norm() < 0.06 * slope.norm()

    @pytest.mark.parametrize("beam", BEAMS)
    def test_vjp_is_adjoint_of_jvp(self, beam: str) -> None:
        gaussians, xray = some(), GaussianProjector(scan_of(beam))
        random = torch.Generator().manual_seed(2)
        step = torch.randn(len(gaussians.weights), 10, generator=random)
        images = torch.randn(5, *xray.shape, generator=random)
        left = (xray.jvp(gaussians, step).double() * images).sum()
        right = (xray.vjp(gaussians, images).double() * step).sum()
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


class TestVoxels:
    def test_a_box(self) -> None:
        """Straight through a constant volume the integral is its thickness."""
        scan = circular_scan(SHAPE, VOXEL, [0, 90], pixel_size=(0.8, 1.5))
        images = project_voxels(np.full(SHAPE, 2.0), scan)
        assert images[0][5:-5, 10:-10].min() == pytest.approx(2 * SHAPE[1] * VOXEL[1], rel=1e-5)
        middle = images.shape[2] // 2
        assert images[1][12, middle] == pytest.approx(2 * SHAPE[2] * VOXEL[2], rel=1e-5)

    @pytest.mark.parametrize("angle", [0, 17, 45, 100])
    def test_mass_is_kept(self, angle: float) -> None:
        """The sum over a parallel view is that over the volume."""
        volume = np.random.default_rng(0).random(SHAPE)
        scan = circular_scan(SHAPE, VOXEL, [angle], pixel_size=(0.4, 0.75), pixels=(120, 54))
        mass = project_voxels(volume, scan, step=0.25).sum(dtype=float) * 0.4 * 0.75
        assert mass == pytest.approx(volume.sum() * VOXEL.prod(), rel=2e-3)

    @pytest.mark.parametrize("beam", BEAMS)
    def test_what_is_anywhere_is_seen_where_it_is(self, beam: str) -> None:
        scan = scan_of(beam)
        factors = torch.diag(torch.tensor(VOXEL / 1.5, dtype=torch.float32))[None]  # 1.5 mm in every direction
        for mean in ((10.0, 20, 7), (14.0, 8, 22)):
            blob = Gaussians(torch.tensor([mean]), factors, torch.ones(1))
            seen = project_voxels(predict(blob, SHAPE).numpy(), scan), GaussianProjector(scan).predict(blob).numpy()
            for one, other in zip(*seen, strict=True):
                for axis in np.indices(one.shape):
                    assert (one * axis).sum() / one.sum() == pytest.approx((other * axis).sum() / other.sum(), abs=0.1)

    @pytest.mark.parametrize("beam", BEAMS)
    def test_adjoint(self, beam: str) -> None:
        random, scan = np.random.default_rng(3), scan_of(beam)
        volume = random.normal(size=SHAPE).astype(np.float32)
        images = random.normal(size=(5, scan.pixels[1], scan.pixels[0])).astype(np.float32)
        left = (project_voxels(volume, scan).astype(float) * images).sum()
        right = (back_project(images, scan).astype(float) * volume).sum()
        assert left == pytest.approx(right, rel=1e-4)

    def test_modes(self) -> None:
        volume = np.random.default_rng(4).random(SHAPE) + 1
        volume[12, 15, 14] = 9
        scan = circular_scan(SHAPE, VOXEL, [0], pixels=(28, 24), pixel_size=(0.8, 1.5))
        mip, minip, mean = (project_voxels(volume, scan, mode)[0] for mode in ("mip", "minip", "mean"))
        assert mip.argmax() == 12 * 28 + 14
        assert mip[12, 14] == pytest.approx(9, rel=0.3)
        np.testing.assert_allclose(mean, volume.mean(1), rtol=0.05)
        assert (minip < mean).all()
        assert (minip >= volume.min()).all()

    @pytest.mark.parametrize("mode", ["xray", "mip", "minip", "mean"])
    @pytest.mark.parametrize("beam", BEAMS)
    def test_torch_sees_the_same(self, beam: str, mode: str) -> None:
        """What a GPU computes, here on the CPU; rays along an axis and beside the volume are among them."""
        volume, scan = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), scan_of(beam)
        upright = circular_scan(SHAPE, VOXEL, [0, 90], "parallel", pixels=(80, 40))
        for seen in (scan, upright):
            images = voxel_projector_torch.project_voxels(torch.from_numpy(volume), seen, mode, RAY_STEP * VOXEL.min())
            expected = project_voxels(volume, seen, mode)
            assert images.shape == expected.shape
            assert images.dtype == np.float32
            np.testing.assert_allclose(images, expected, atol=2e-3 * np.abs(expected).max())
            assert np.sqrt(np.mean((images - expected) ** 2)) < 1e-4 * np.abs(expected).max()

    def test_torch_has_less_memory_than_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        volume, scan = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), scan_of("cone", 2)
        whole = voxel_projector_torch.project_voxels(torch.from_numpy(volume), scan, "xray", 0.4)
        monkeypatch.setattr(voxel_projector_torch, "_CHUNK", 20_000)
        parts = voxel_projector_torch.project_voxels(torch.from_numpy(volume), scan, "xray", 0.4)
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-4)

    def test_rays_that_miss(self) -> None:
        scan = circular_scan(SHAPE, VOXEL, [0], pixels=(9, 9), pixel_size=(1, 1), offset=(500, 0))
        for mode in ("xray", "mip", "minip", "mean"):
            assert not project_voxels(np.ones(SHAPE), scan, mode).any()

    def test_what_is_refused(self, refused) -> None:
        scan = scan_of("parallel")
        with refused(ValueError, "(24, 30, 28)", "(3, 4, 5)"):
            project_voxels(np.ones((3, 4, 5)), scan)
        with refused(ValueError, "NaN"):
            project_voxels(np.full(SHAPE, np.nan), scan)
        with refused(ValueError, "projections of shape"):
            back_project(np.ones((1, 2, 3)), scan)
