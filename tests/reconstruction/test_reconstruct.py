"""Reconstruction from projections and slices: linear measurements, image prior, and complete runs."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from napari_gsvolume import Grid
from napari_gsvolume.cli.app import main
from napari_gsvolume.phantoms import vessel_phantom
from napari_gsvolume.progress import Budget, finish
from napari_gsvolume.reconstruction import ReconstructStep, SliceStack, reconstruct, reconstruct_steps
from napari_gsvolume.reconstruction.bm4d import BM4D
from napari_gsvolume.reconstruction.measurements import FWHM_PER_SIGMA, ProjectionMeasurements, SliceMeasurements
from napari_gsvolume.reconstruction.noise_estimation import estimate_variance
from napari_gsvolume.reconstruction.plug_and_play import build_denoiser, data_fidelity, solve_least_squares
from napari_gsvolume.reconstruction.slice_metrics import cubic_spline, missing_psnr
from napari_gsvolume.tomography import Projections, project
from napari_gsvolume.tomography.presets import spread_angles
from napari_gsvolume.tomography.scan import circular_scan
from napari_gsvolume.tomography.voxel_projector import project_voxels

SHAPE, VOXEL = (10, 14, 12), (1.5, 1.0, 0.8)


def blocks(n: int = 24) -> np.ndarray:
    """Return a volume of a few boxes and a ball."""
    z, y, x = np.indices((n, n, n)) / n
    volume = 0.4 * ((z - 0.5) ** 2 + (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.16)
    volume += 0.5 * ((abs(z - 0.5) < 0.2) & (abs(y - 0.4) < 0.1) & (abs(x - 0.6) < 0.12))
    volume -= 0.3 * ((z - 0.5) ** 2 + (y - 0.65) ** 2 + (x - 0.4) ** 2 < 0.01)
    return volume.astype(np.float32)


def measurements() -> list[tuple[str, object, tuple[int, ...]]]:
    random = np.random.default_rng(0)
    volume = random.random(SHAPE)
    some = []
    for beam, tilt, offset in (
        ("parallel", 0, (0, 0)),
        ("parallel", 0, (2, 0.4)),
        ("parallel", 5, (0, 0)),
        ("cone", 0, (3, 0)),
    ):
        scan = circular_scan(SHAPE, VOXEL, spread_angles(4, 180), beam, tilt=tilt, offset=offset)
        some.append((f"{beam} {tilt} {offset}", ProjectionMeasurements(project_voxels(volume, scan), scan), SHAPE))
    grid = Grid(SHAPE, np.diag([*VOXEL, 1]))
    oblique = np.eye(4)
    c, s = np.cos(0.4), np.sin(0.4)
    oblique[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([3.0, 1, 1])
    for name, stack in (("own", grid), ("oblique", Grid((4, 9, 8), oblique))):
        some.extend(
            (f"{name} {t}", SliceMeasurements(random.random(stack.shape), stack, grid, thickness=t), SHAPE)
            for t in (0, 3)
        )
    return some


class TestMeasurements:
    @pytest.mark.parametrize(
        ("name", "measured", "shape"), measurements(), ids=lambda v: v if isinstance(v, str) else ""
    )
    def test_adjoint(self, name: str, measured, shape: tuple[int, ...]) -> None:
        random = torch.Generator().manual_seed(1)
        volume = torch.randn(shape, generator=random)
        values = torch.randn(measured.values.shape, generator=random)
        left = (measured.forward(volume).double() * values).sum()
        right = (measured.adjoint(values).double() * volume).sum()
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("offset", [(0, 0), (2, 0.4)], ids=str)
    def test_planes_are_what_rays_are(self, offset: tuple[float, float]) -> None:
        """A parallel beam across z goes plane by plane, which is faster; the result is the same."""
        volume = np.random.default_rng(2).random(SHAPE).astype(np.float32)
        scan = circular_scan(SHAPE, VOXEL, spread_angles(5, 180), offset=offset)
        images = project_voxels(volume, scan)
        of_planes = ProjectionMeasurements(images, scan).forward(torch.from_numpy(volume)).numpy() * min(VOXEL)
        assert np.linalg.norm(of_planes - images) < 0.01 * np.linalg.norm(images)

    def test_slices_are_samples(self) -> None:
        volume = np.random.default_rng(3).random(SHAPE).astype(np.float32)
        grid = Grid(SHAPE)
        stack = volume.copy()
        stack[1::2] = np.nan
        seen = SliceMeasurements(stack, grid, grid).forward(torch.from_numpy(volume))
        np.testing.assert_allclose(seen, volume[::2].ravel(), rtol=1e-6)

    def test_thick_slices_are_blurred_across(self) -> None:
        volume = torch.zeros(41, 3, 3)
        volume[20] = 1
        grid = Grid((41, 3, 3), np.diag([0.5, 1, 1, 1]))
        profile = (
            SliceMeasurements(np.zeros(grid.shape), grid, grid, thickness=4.0)
            .forward(volume)
            .reshape(41, 3, 3)[:, 1, 1]
        )
        z = (np.arange(41) - 20) * 0.5
        assert profile.sum() == pytest.approx(1, rel=0.02)
        assert np.sqrt((profile.numpy() * z**2).sum()) == pytest.approx(4 / FWHM_PER_SIGMA, rel=0.05)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda p: p[:3], ["4 views", "3 x"]),
            (lambda p: p[:, :, 1:], ["pixels"]),
            (lambda p: np.where(p > p.mean(), np.nan, p), ["NaN"]),
            (lambda p: 0 * p, ["the same everywhere"]),
        ],
    )
    def test_projections_that_do_not_fit(self, refused, change, words) -> None:
        scan = circular_scan(SHAPE, VOXEL, spread_angles(4, 180))
        images = project_voxels(np.random.default_rng(0).random(SHAPE), scan)
        with refused(ValueError, *words):
            ProjectionMeasurements(change(images), scan)

    def test_slices_that_do_not_fit(self, refused) -> None:
        with refused(ValueError, "(2, 3, 4)"):
            SliceMeasurements(np.zeros((2, 3, 4)), Grid(SHAPE), Grid(SHAPE))
        with refused(ValueError, "finite"):
            SliceMeasurements(np.full(SHAPE, np.nan), Grid(SHAPE), Grid(SHAPE))


class TestNoise:
    def test_is_found_where_it_depends_on_brightness(self) -> None:
        random = np.random.default_rng(0)
        smooth = np.broadcast_to(np.linspace(0, 4, 200), (3, 150, 200))
        deviation = 0.01 * np.exp(smooth / 2)
        found = estimate_variance(smooth + deviation * random.normal(size=smooth.shape))
        ratio = found[:, :, ::40] / deviation[:, :, ::40] ** 2
        assert (ratio > 0.6).all()
        assert (ratio < 1.6).all()

    def test_small_images(self) -> None:
        assert not estimate_variance(np.ones((2, 2, 9))).any()


class TestPrior:
    def test_noise_goes_and_edges_stay(self) -> None:
        clean = blocks(32)
        noisy = clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
        tool = BM4D(clean.shape)
        tool.match(noisy)
        left = tool.denoise(noisy, 0.1) - clean
        assert np.sqrt(np.mean(left**2)) < 0.03

    def test_nothing_small_is_taken_from_what_has_no_noise(self) -> None:
        clean = blocks()
        tool = BM4D(clean.shape)
        tool.match(clean)
        np.testing.assert_allclose(tool.denoise(clean, 1e-6), clean, atol=1e-5)

    def test_same_seed_same_result(self) -> None:
        noisy = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)
        results = []
        for _ in range(2):
            tool = BM4D(noisy.shape, seed=3)
            tool.match(noisy)
            results.append(tool.denoise(noisy, 0.5))
        np.testing.assert_array_equal(*results)

    @pytest.mark.parametrize("shape", [(4, 4, 4), (5, 4, 9), (4, 30, 4)])
    def test_any_shape(self, shape: tuple[int, int, int]) -> None:
        volume = np.random.default_rng(0).random(shape).astype(np.float32)
        tool = BM4D(shape)
        tool.match(volume)
        assert np.isfinite(tool.denoise(volume, 0.1)).all()

    def test_thin_volumes_have_another_prior(self) -> None:
        volume = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32)
        tool = build_denoiser("bm4d", volume.shape)
        tool.match(volume)
        assert tool.denoise(volume, 0.5).std() < volume.std()


def test_least_squares_solve() -> None:
    volume = torch.from_numpy(blocks(16))
    grid = Grid((16, 16, 16))
    measured = SliceMeasurements(volume.numpy(), grid, grid)
    found = solve_least_squares([measured], torch.zeros(16, 16, 16), torch.zeros(16, 16, 16), 1.0, 20)
    # Each voxel on its own: precision y / (precision + 1).
    torch.testing.assert_close(found, volume * measured.precision / (measured.precision + 1), atol=1e-4, rtol=1e-4)
    assert data_fidelity([measured], volume) == pytest.approx(0, abs=1e-9)


QUICK = {"iterations": 12, "fit_iterations": 15, "gaussians": 600}


class TestReconstruct:
    @pytest.mark.parametrize("prior", ["bm4d", "tv"])
    @pytest.mark.parametrize("beam", ["parallel", "cone"])
    def test_from_projections(self, beam: str, prior: str) -> None:
        truth = 1000 * blocks()
        scan = circular_scan(truth.shape, 2.0, spread_angles(12, 180 if beam == "parallel" else 360), beam)
        measured = ProjectionMeasurements(project_voxels(truth, scan), scan)
        found = reconstruct([measured], grid=Grid(truth.shape), truth=truth, prior=prior, **QUICK)
        assert found.psnr_db > 24
        assert found.gaussians.sample().shape == truth.shape
        assert len(found.gaussians) <= 600
        first, last = found.history[0], found.history[-1]
        assert last.psnr_db > first.psnr_db

    def test_noise_weighs(self) -> None:
        """With noise, believing it all is worse than knowing it."""
        truth = blocks()
        scan = circular_scan(truth.shape, 1.0, spread_angles(15, 180))
        images = project_voxels(truth, scan)
        noisy = images + 0.5 * np.random.default_rng(0).normal(size=images.shape)
        known = reconstruct([ProjectionMeasurements(noisy, scan)], grid=Grid(truth.shape), truth=truth, **QUICK)
        believed = reconstruct(
            [ProjectionMeasurements(noisy, scan, variance=0.0)], grid=Grid(truth.shape), truth=truth, **QUICK
        )
        assert known.psnr_db > believed.psnr_db + 0.5

    @pytest.mark.parametrize("axis", [0, 2])
    def test_from_slices(self, axis: int) -> None:
        truth = blocks()
        stack = SliceStack(truth, Grid(truth.shape), axis, every=3)
        known = np.arange(24) % 3 == 0
        found = reconstruct(stack, **{**QUICK, "gaussians": 1500})
        ours = missing_psnr(found.reconstruction, truth, known, axis)
        assert ours > missing_psnr(cubic_spline(truth, known, axis), truth, known, axis)

    def test_both_together_are_better(self) -> None:
        truth = blocks()
        grid = Grid(truth.shape)
        scan = circular_scan(truth.shape, 1.0, spread_angles(5, 180))
        stack = truth.copy()
        stack[np.arange(len(truth)) % 6 > 0] = np.nan
        slices = SliceMeasurements(stack, grid, grid)
        projections = ProjectionMeasurements(project_voxels(truth, scan), scan)
        psnr = [
            reconstruct(m, grid=grid, truth=truth, **QUICK).psnr_db
            for m in ([slices], [projections], [slices, projections])
        ]
        assert psnr[2] > max(psnr[:2]) + 0.5

    def test_known_support(self) -> None:
        truth = blocks()
        scan = circular_scan(truth.shape, 1.0, spread_angles(6, 180))
        support = truth > 0
        steps = reconstruct_steps(project_voxels(truth, scan), scan=scan, support=support, **QUICK)
        voxels = [step for step in steps if step.stage == "voxels"][-1].volume()
        assert not voxels[~support].any()

    def test_stopping_keeps_what_there_is(self) -> None:
        truth = blocks()
        scan = circular_scan(truth.shape, 1.0, spread_angles(6, 180))
        seen: list[ReconstructStep] = []
        budget = Budget(stop=lambda: len(seen) > 2)
        steps = reconstruct_steps(project_voxels(truth, scan), scan=scan, gaussians=100, budget=budget)

        def collected():
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                seen.append(step)
                yield step

        found = finish(collected())
        assert 0 < len(found.gaussians) <= 100
        assert sum(s.n_gaussians == 0 for s in found.history) < 6
        fractions = [step.fraction for step in seen]
        assert fractions == sorted(fractions)

    def test_inputs_of_all_kinds(self) -> None:
        """Arrays with a scan, projections, and measurements give the same reconstruction."""
        truth = blocks(12)
        scan = circular_scan(truth.shape, 1.0, spread_angles(6, 180))
        images = project_voxels(truth, scan)
        quick = {"iterations": 2, "fit_iterations": 2, "gaussians": 50}
        first, *others = (
            reconstruct(measurements, scan=given, **quick).voxels
            for measurements, given in (
                (images, scan),
                ([images], scan),
                (list(images), scan),
                (Projections(images, scan), None),
                ([ProjectionMeasurements(images, scan)], None),
            )
        )
        for other in others:
            np.testing.assert_array_equal(other, first)

    def test_reprojection_and_residual_add_up_to_the_measurements(self) -> None:
        truth = blocks(12)
        projections = project(truth, circular_scan(truth.shape, 2.0, spread_angles(6, 180)))
        found = reconstruct(projections, iterations=4, fit_iterations=4, gaussians=50)
        assert found.reprojection is not None
        np.testing.assert_allclose(
            found.reprojection.images + found.reprojection.residual, projections.images, atol=1e-4
        )

    def test_grid_of_a_thick_stack_is_isotropic(self) -> None:
        thick = Grid((6, 24, 24), np.diag([4.0, 1, 1, 1]))
        assert SliceStack(blocks()[::4], thick).reconstruction_grid().shape == (24, 24, 24)
        assert SliceStack(blocks()[::4], thick, every=2).reconstruction_grid() == thick

    def test_what_does_not_fit(self, refused) -> None:
        measured = SliceMeasurements(blocks(8), Grid((8, 8, 8)), Grid((8, 8, 8)))
        scan = circular_scan((8, 8, 8), 1.0, [0, 90])
        images = project_voxels(blocks(8), scan)
        with refused(ValueError, "nothing to reconstruct"):
            reconstruct_steps([], grid=Grid((8, 8, 8)))
        with refused(ValueError, "true volume", "(8, 8, 9)"):
            reconstruct_steps([measured], grid=Grid((8, 8, 8)), truth=np.zeros((8, 8, 9)))
        with refused(ValueError, "three axes"):
            reconstruct_steps([measured], grid=Grid((8, 8)))
        with refused(ValueError, "prior"):
            reconstruct_steps([measured], grid=Grid((8, 8, 8)), prior="magic")
        with refused(ValueError, "scan=..."):
            reconstruct_steps(images)
        with refused(ValueError, "line integrals", "mip"):
            reconstruct_steps(Projections(images, scan, "mip"))
        with refused(ValueError, "(8, 8, 8)", "(8, 8, 9)"):
            reconstruct_steps([ProjectionMeasurements(images, scan)], grid=Grid((8, 8, 9)))


class TestShell:
    @pytest.fixture
    def volume(self, tmp_path: Path) -> Path:
        truth, _ = vessel_phantom(24)
        path = tmp_path / "in.nii.gz"
        nib.save(nib.Nifti1Image(truth.T, np.diag([1.0, 1.0, 2.0, 1])), path)
        return path

    def test_project_and_reconstruct(self, volume: Path, tmp_path: Path) -> None:
        P, G, M, R, J = (tmp_path / name for name in ("P.nii.gz", "G.json", "M.safetensors", "R.nii.gz", "R.json"))
        assert main(["project", str(volume), "--views", "8", "--out", str(P), "--geometry-out", str(G)]) == 0
        arguments = [
            "reconstruct",
            P,
            "--geometry",
            G,
            "--like",
            volume,
            "--gaussians",
            300,
            "--iterations",
            6,
            "--fit-iterations",
            10,
            "--out",
            M,
            "--reconstruction",
            R,
            "--report",
            J,
        ]
        assert main([str(a) for a in arguments]) == 0
        report = json.loads(J.read_text())
        truth, found = (np.asarray(nib.load(p).dataobj, float) for p in (volume, R))
        psnr = -10 * np.log10(np.square(truth - found).mean() / np.ptp(truth) ** 2)
        assert report["psnr_db"] == pytest.approx(psnr, abs=0.01)
        assert report["n_gaussians"] <= 300
        np.testing.assert_array_equal(nib.load(R).affine, nib.load(volume).affine)

    def test_from_slices(self, volume: Path, tmp_path: Path, capsys) -> None:
        R, J = tmp_path / "R.nii.gz", tmp_path / "R.json"
        arguments = [
            "from-slices",
            volume,
            "--keep-every",
            3,
            "--axis",
            "z",
            "--gaussians",
            300,
            "--iterations",
            4,
            "--fit-iterations",
            8,
            "--reconstruction",
            R,
            "--report",
            J,
        ]
        assert main([str(a) for a in arguments]) == 0
        assert "cubic spline:" in capsys.readouterr().out
        assert {"psnr_missing_db", "psnr_missing_cubic_db"} <= set(json.loads(J.read_text()))
        assert nib.load(R).shape == (24, 24, 24)

    def test_all_slices_make_isotropic_voxels(self, volume: Path, tmp_path: Path) -> None:
        R = tmp_path / "R.nii.gz"
        arguments = [
            "from-slices",
            volume,
            "--thickness",
            2,
            "--gaussians",
            200,
            "--iterations",
            2,
            "--fit-iterations",
            4,
            "--reconstruction",
            R,
        ]
        assert main([str(a) for a in arguments]) == 0
        assert nib.load(R).header.get_zooms() == (1, 1, 1)

    def test_two_stacks_and_projections_together(self, volume: Path, tmp_path: Path, capsys) -> None:
        truth, affine = np.clip(nib.load(volume).get_fdata(), 0, None), np.eye(4)  # (x, y, z), as nibabel has it
        thick, across, whole, P, R = (tmp_path / f"{name}.nii.gz" for name in ("thick", "across", "whole", "P", "R"))
        nib.Nifti1Image(truth, affine).to_filename(whole)
        turned = affine @ np.array([[4, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        seen = [gaussian_filter1d(truth, 4 / FWHM_PER_SIGMA, axis, mode="nearest") for axis in (0, 2)]
        nib.Nifti1Image(seen[0].reshape(6, 4, 24, 24)[:, 1:3].mean(1), turned).to_filename(across)
        down = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 4, 1.5], [0, 0, 0, 1.0]])
        nib.Nifti1Image(seen[1].reshape(24, 24, 6, 4)[..., 1:3].mean(3), down).to_filename(thick)
        assert main(["project", str(whole), "--views", "8", "--out", str(P)]) == 0
        common = [
            "from-slices",
            thick,
            "--thickness",
            4,
            "--gaussians",
            400,
            "--iterations",
            40,
            "--fit-iterations",
            2,
            "--voxels",
            R,
        ]
        errors = []
        both = [*common, "--other-stack", across, "--other-thickness", 4]
        for arguments in (common, both, [*both, "--projections", P]):
            assert main([str(a) for a in arguments]) == 0
            found = nib.load(R)
            np.testing.assert_allclose(found.affine, affine, atol=1e-6)
            errors.append(np.square(np.asarray(found.dataobj) - truth).mean())
        assert errors[1] < 0.7 * errors[0]
        assert errors[2] < 0.8 * errors[1]
        assert main([str(a) for a in [*both, "--other-thickness", 5]]) == 2
        assert "1 --other-stack and 2 --other-thickness" in capsys.readouterr().err

    def test_without_geometry(self, volume: Path, capsys) -> None:
        assert main(["reconstruct", str(volume)]) == 2
        assert "geometry" in capsys.readouterr().err
