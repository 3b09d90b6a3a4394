"""Projections of voxels and Gaussians, intensities, noise, and files."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from napari_gsvolume import GaussianVolume, Grid
from napari_gsvolume.io.nifti import write_nifti
from napari_gsvolume.tomography.beer_lambert import attenuation, hounsfield_to_attenuation, intensities
from napari_gsvolume.tomography.noise import add_noise, noise_variance
from napari_gsvolume.tomography.presets import c_arm_scan, parallel_view, preset_scan, spread_angles
from napari_gsvolume.tomography.projections import Projections, project, read_projections, write_projections
from napari_gsvolume.tomography.scan import Scan, ScanError, circular_scan
from napari_gsvolume.units import voxel_size_mm

SHAPE, VOXEL = (20, 26, 24), np.array([1.5, 1.0, 0.8])
BEAMS = ["parallel", "fan", "cone"]


def some(background: float = 0.0, n: int = 10) -> GaussianVolume:
    random = np.random.default_rng(0)
    means = random.uniform(0.35, 0.65, (n, 3)) * SHAPE
    factors = Rotation.random(n, random).as_matrix() / random.uniform(2, 3, (n, 1, 3))
    grid = Grid(SHAPE, np.diag([*VOXEL, 1]), ("mm",) * 3)
    tensors = (torch.tensor(a, dtype=torch.float32) for a in (means, factors, random.uniform(0.5, 1, n)))
    return GaussianVolume(*tensors, grid, background)


def scan_of(beam: str = "parallel", views: int = 6) -> Scan:
    return circular_scan(SHAPE, VOXEL, spread_angles(views, 180) + 5, beam)


class TestProject:
    @pytest.mark.parametrize("beam", BEAMS)
    @pytest.mark.parametrize("background", [0.0, -0.4])
    def test_gaussians_are_as_their_voxels(self, beam: str, background: float) -> None:
        gaussians, scan = some(background), scan_of(beam)
        stack, of_voxels = project(gaussians, scan).images, project(gaussians.sample(), scan).images
        assert np.linalg.norm(stack - of_voxels) < 0.04 * np.linalg.norm(of_voxels)

    @pytest.mark.parametrize("beam", BEAMS)
    def test_background_alone_is_the_length_through_the_box(self, beam: str) -> None:
        scan = scan_of(beam)
        flat = project(some(2.0, n=0), scan).images
        of_voxels = project(np.full(SHAPE, 2.0), scan).images
        # The voxels' box has soft edges, where the other's are sharp.
        assert np.linalg.norm(flat - of_voxels) < 0.05 * np.linalg.norm(of_voxels)
        straight = project(
            some(2.0, n=0), circular_scan(SHAPE, VOXEL, [0, 90], pixels=(9, 9), pixel_size=(1, 1))
        ).images
        np.testing.assert_allclose(straight[0], 2 * SHAPE[1] * VOXEL[1], rtol=1e-6)
        np.testing.assert_allclose(straight[1], 2 * SHAPE[2] * VOXEL[2], rtol=1e-6)

    @pytest.mark.parametrize("mode", ["mip", "minip", "mean"])
    def test_other_modes_are_of_samples(self, mode: str) -> None:
        gaussians, scan = some(0.1), scan_of("cone")
        stack = project(gaussians, scan, mode)
        assert stack.kind == mode
        np.testing.assert_array_equal(stack.images, project(gaussians.sample(), scan, mode).images)

    def test_micrometres_are_lengths_too(self) -> None:
        grid = Grid((3, 4, 5), np.diag([2000.0, 500, 1000, 1]), ("micrometer",) * 3)
        np.testing.assert_allclose(voxel_size_mm(grid), [2, 0.5, 1])
        np.testing.assert_allclose(scan_of().of_grid(grid).voxel_size, [2, 0.5, 1])
        np.testing.assert_allclose(voxel_size_mm(Grid((3, 4, 5), np.diag([2.0, 3, 4, 1]))), [2, 3, 4])

    def test_what_is_refused(self, refused) -> None:
        with refused(ValueError, "(20, 26, 24)", "(3, 4, 5)"):
            project(some(), circular_scan((3, 4, 5), 1.0, [0]))
        scan = scan_of()
        nu, nv = scan.pixels
        with refused(ValueError, "5 projections", "6 views"):
            Projections(np.zeros((5, nv, nu)), scan)
        with refused(ValueError, f"7 x {nv}", f"{nu} x {nv}"):
            Projections(np.zeros((6, nv, 7)), scan)
        with refused(ValueError, "2 axes"):
            Projections(np.zeros((nv, nu)), scan)


class TestPresets:
    def test_the_usual_scans(self) -> None:
        assert len(preset_scan("circle", SHAPE, VOXEL, views=9)) == 9
        assert len(preset_scan("biplane", SHAPE, VOXEL, beam="cone")) == 2
        arc = preset_scan("limited arc", SHAPE, VOXEL, views=4, arc=80)
        for name in ("sources", "centres", "u", "v"):
            np.testing.assert_array_equal(
                getattr(arc, name), getattr(circular_scan(SHAPE, VOXEL, [0, 20, 40, 60]), name)
            )
        assert preset_scan("C-arm", SHAPE, VOXEL, views=5).beam == "cone"

    @pytest.mark.parametrize("voxel", [0.01, 1.0, 50.0])
    def test_a_c_arm_stays_outside_of_any_volume(self, voxel: float) -> None:
        scan = c_arm_scan(SHAPE, voxel, [0, 50])
        radius = np.hypot(*SHAPE[1:]) * voxel / 2
        assert np.linalg.norm(scan.sources, axis=1).min() > radius
        assert np.linalg.norm(scan.centres, axis=1).min() > radius
        lengths = np.linalg.norm(scan.centres - scan.sources, axis=1), np.linalg.norm(scan.sources, axis=1)
        np.testing.assert_allclose(lengths[0] / lengths[1], 1200 / 750)

    def test_along_an_orbits_ray_is_that_view(self) -> None:
        view = scan_of(views=3).select([1])
        same = parallel_view(
            SHAPE, VOXEL, 7 * view.sources[0], view.u[0], [1, 0.1, 0.2], pixels=view.pixels, pixel_size=(0.8, 1.5)
        )
        np.testing.assert_allclose(same.u, view.u, atol=1e-12)
        np.testing.assert_allclose(same.v, view.v, atol=1e-12)
        np.testing.assert_allclose(same.sources, view.sources, atol=1e-12)

    def test_along_sees_all(self) -> None:
        scan = parallel_view(SHAPE, VOXEL, [1, 2, -1], [0, 1, 3], [2, 1, 0])
        stack = project(np.ones(SHAPE), scan).images
        assert stack.sum() * scan.u[0].dot(scan.u[0]) == pytest.approx(np.prod(SHAPE * VOXEL), rel=0.02)

    def test_in_a_plane(self, refused) -> None:
        with refused(ScanError, "three different directions"):
            parallel_view(SHAPE, VOXEL, [1, 0, 0], [0, 1, 0], [1, 1, 0])

    def test_other_pixels_on_the_same_detector(self) -> None:
        scan = scan_of("cone").with_pixels(10, None)
        assert scan.pixels == (10, scan_of("cone").pixels[1])
        np.testing.assert_allclose(scan.u * 10, scan_of("cone").u * scan_of("cone").pixels[0])


class TestBeerLambert:
    def test_there_and_back(self) -> None:
        p = np.random.default_rng(0).uniform(0, 5, (3, 4, 5)).astype(np.float32)
        flat = np.random.default_rng(1).uniform(0.5, 1, (4, 5))
        counts = intensities(p, 1e4, flat)
        np.testing.assert_allclose(counts, 1e4 * flat * np.exp(-p), rtol=1e-6)
        np.testing.assert_allclose(attenuation(counts, 1e4, flat), p, atol=1e-5)
        np.testing.assert_allclose(attenuation(counts, 1, 1e4 * flat), p, atol=1e-5)

    def test_what_is_refused(self, refused) -> None:
        images = np.ones((2, 3, 4))
        images[0, 0, :3] = 0, -2, np.nan
        with refused(ValueError, "3 of 24", "dark"):
            attenuation(images, 1)
        with refused(ValueError, "I0", "-1"):
            attenuation(np.ones((2, 3, 4)), -1)
        with refused(ValueError, "flat field", "(4, 3)"):
            attenuation(np.ones((2, 3, 4)), 1, np.ones((4, 3)))
        with refused(ValueError, "flat field", "positive"):
            attenuation(np.ones((2, 3, 4)), 1, np.zeros((3, 4)))

    def test_hounsfield_units(self) -> None:
        np.testing.assert_allclose(hounsfield_to_attenuation([-2000, -1000, 0, 1000]), [0, 0, 0.0193, 0.0386])
        gaussians = some(-1000.0)
        np.testing.assert_allclose(
            hounsfield_to_attenuation(gaussians).sample(), 0.0193 * (1 + gaussians.sample() / 1000), atol=1e-6
        )


class TestNoise:
    def test_photons(self) -> None:
        p = np.tile(np.linspace(0.0, 30.0, 6), (2, 4000, 1))
        noisy = add_noise(p, photons=1e4, depth=3.0)
        variance = noise_variance(p, 1e4, depth=3.0)
        # Through the thickest, exp(-3) come; and the noise is in the unit of the line integrals.
        assert variance[0, 0, -1] == pytest.approx(100 / (1e4 * np.exp(-3)), rel=1e-5)
        np.testing.assert_allclose(noisy.mean((0, 1)), p[0, 0], atol=0.02)
        np.testing.assert_allclose(noisy.var((0, 1)), variance[0, 0], rtol=0.1)

    def test_attenuation_is_not_scaled(self) -> None:
        p = np.full((1, 100, 100), 2.0)
        noisy = add_noise(p, photons=1e3, depth=None)
        assert noisy.std() == pytest.approx(np.sqrt(np.exp(2) / 1e3), rel=0.1)

    def test_without_a_photon_left(self) -> None:
        noisy = add_noise(np.full((1, 2, 2), 50.0), photons=100, depth=None)
        np.testing.assert_allclose(noisy, np.log(100), rtol=1e-6)
        assert noise_variance(np.full((1, 2, 2), 50.0), 100, depth=None).max() == 1

    def test_gaussian_noise_and_seeds(self) -> None:
        zeros = np.zeros((1, 100, 100))
        noisy = add_noise(zeros, sigma=3.0)
        assert noisy.std() == pytest.approx(3, rel=0.05)
        np.testing.assert_array_equal(noisy, add_noise(zeros, sigma=3.0))
        assert not np.array_equal(noisy, add_noise(zeros, sigma=3.0, seed=1))
        np.testing.assert_array_equal(add_noise(zeros), zeros)

    def test_what_is_refused(self, refused) -> None:
        ones = np.ones((1, 2, 2))
        with refused(ValueError, "photons", "-5"):
            add_noise(ones, photons=-5)
        with refused(ValueError, "deviation"):
            add_noise(ones, sigma=0.0)
        with refused(ValueError, "depth"):
            add_noise(ones, photons=10, depth=-1.0)
        with refused(ValueError, "No line integral is positive"):
            add_noise(-ones, photons=10)
        with refused(ValueError, "too many"):
            add_noise(-50 * ones, photons=10, depth=None)


class TestFiles:
    @pytest.fixture
    def stack(self) -> Projections:
        return project(some(), scan_of("cone"))

    def test_round_trip(self, tmp_path: Path, stack: Projections) -> None:
        write_projections(tmp_path / "P.nii.gz", stack)
        again = read_projections(tmp_path / "P.nii.gz")
        np.testing.assert_array_equal(again.images, stack.images)
        np.testing.assert_array_equal(again.scan.sources, stack.scan.sources)
        image = nib.load(tmp_path / "P.nii.gz")
        assert image.shape == (*stack.scan.pixels, 6)
        sizes = [np.linalg.norm(stack.scan.u[0]), np.linalg.norm(stack.scan.v[0])]
        np.testing.assert_allclose(image.header.get_zooms()[:2], sizes, rtol=1e-6)

    def test_one_view(self, tmp_path: Path, stack: Projections) -> None:
        nib.Nifti1Image(stack.images[0].T, np.eye(4)).to_filename(tmp_path / "one.nii")
        stack.scan.select([0]).save(tmp_path / "one.json")
        np.testing.assert_array_equal(read_projections(tmp_path / "one.nii").images[0], stack.images[0])

    def test_what_is_refused(self, tmp_path: Path, refused, stack: Projections) -> None:
        path, geometry = tmp_path / "P.nii.gz", tmp_path / "G.json"
        write_projections(path, stack, geometry)
        with refused(ScanError, "P.nii.gz has no geometry", "P.json"):
            read_projections(path)
        stack.scan.select([0, 1]).save(geometry)
        with refused(ValueError, "P.nii.gz", "G.json", "6 projections", "2 views"):
            read_projections(path, geometry)
        scan_of("parallel").save(geometry)
        with refused(ValueError, "P.nii.gz", "G.json", "pixels"):
            read_projections(path, geometry)
        holes = stack.images.copy()
        holes[0, 0, 0] = np.nan
        write_nifti(path, holes, Grid(holes.shape))
        stack.scan.save(geometry)
        with refused(ValueError, "1 NaN"):
            read_projections(path, geometry)
