"""The fit as a Python call: what it recovers, what it promises, what it refuses."""

import doctest
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numba
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

import napari_gsvolume as gsv
from helpers.long_runs import collect
from napari_gsvolume import FitSettings, GaussianVolume, Grid
from napari_gsvolume.fitting import loop
from napari_gsvolume.fitting.growth import useful_mask
from napari_gsvolume.fitting.result import fit_result
from napari_gsvolume.fitting.target import check_volume
from napari_gsvolume.operators.gaussian_sum import Gaussians
from napari_gsvolume.progress import Budget, finish, mapped

SOLVERS = ["gauss-newton", "adam", "sgd"]
AFFINE = [[3, 0, 0.2, -7], [0, 2, 0, 5], [0.1, 0, -1, 0.5], [0, 0, 0, 1]]
QUICK = {"gaussians": 40, "iterations": 8}

pytestmark = pytest.mark.usefixtures("one_thread")


def psnr(volume, reconstruction):
    """The definition, over finite voxels, in float64."""
    finite = np.isfinite(volume)
    values = volume[finite].astype(np.float64)
    return 20 * np.log10(np.ptp(values) / np.sqrt(np.mean((values - reconstruction[finite]) ** 2)))


def blobs(ndim, size=24):
    """Four oblique Gaussians far from each other, one of them negative, on a background of 10; and a dense sum."""
    random = np.random.default_rng(0)
    means = np.array([[6, 6, 6], [17, 17, 6], [17, 6, 17], [6, 17, 17]])[:, 3 - ndim :] + random.uniform(
        -0.5, 0.5, ndim
    )
    axes = np.linalg.qr(random.normal(size=(4, ndim, ndim)))[0]
    factors = axes / random.uniform(1.2, 2.5, (4, 1, ndim))
    weights = np.array([100.0, -60, 80, 50])
    grid = Grid((size,) * ndim)
    known = GaussianVolume(*map(torch.from_numpy, (means, factors, weights)), grid, 10.0)
    voxels = np.stack(np.meshgrid(*[np.arange(size)] * ndim, indexing="ij"), -1)
    whitened = np.einsum("...nd,nde->...ne", voxels[..., None, :] - means, factors)
    return known, 10 + np.exp(-(whitened**2).sum(-1) / 2) @ weights


@pytest.fixture(scope="module")
def body():
    """CT-like: whole numbers, mostly negative."""
    return gsv.phantoms.anatomical_phantom(20)[0].round().astype(np.float32)


@pytest.fixture(scope="module")
def run(body):
    """All steps of a fit on an oblique grid, and its result."""
    grid = Grid(body.shape, AFFINE, ("mm", "mm", "um"), ("depth", "row", "column"))
    return collect(gsv.fit_steps(body, grid=grid, gaussians=60, rounds=4, iterations=30))


@pytest.fixture(scope="module")
def steps(run):
    return run[0]


@pytest.fixture(scope="module")
def result(run):
    return run[1]


def assert_same_fit(a, b):
    for name in ("means", "factors", "weights"):
        np.testing.assert_array_equal(getattr(a.gaussians, name).numpy(), getattr(b.gaussians, name).numpy())
    assert [h.psnr_db for h in a.history] == [h.psnr_db for h in b.history]


class TestQuality:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_recovers_known_gaussians(self, ndim):
        known, volume = blobs(ndim)
        # Four Gaussians may start at fewer than four places: of a few seeds one is right.
        tries = (gsv.fit(volume, gaussians=4, seed=seed, iterations=100) for seed in range(10))
        found = next((result for result in tries if result.psnr_db >= 50), None)
        assert found is not None
        assert found.n_gaussians == 4
        order = np.linalg.norm(known.means[:, None] - found.gaussians.means[None], axis=-1).argmin(1)
        assert sorted(order) == [0, 1, 2, 3]
        np.testing.assert_allclose(found.gaussians.means[order], known.means, atol=0.1)
        np.testing.assert_allclose(found.gaussians.weights[order], known.weights, rtol=0.02)
        np.testing.assert_allclose(found.gaussians.covariances[order], known.covariances, atol=0.15)
        assert found.gaussians.background == pytest.approx(10, abs=0.2)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_spare_gaussians_do_no_harm(self, ndim):
        assert gsv.fit(blobs(ndim)[1], gaussians=16, target_psnr=46).psnr_db >= 46

    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("fraction", [1.0, 0.2])
    def test_each_solver_improves_clearly(self, body, solver, fraction):
        iterations = 20 if solver == "gauss-newton" else 150
        result = gsv.fit(body, gaussians=80, solver=solver, batch_fraction=fraction, iterations=iterations)
        assert result.psnr_db > result.history[0].psnr_db + 8
        assert result.psnr_db == pytest.approx(max(h.psnr_db for h in result.history), abs=1)
        assert result.settings.solver == solver

    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_more_gaussians_are_better(self, body, solver):
        few, many = (gsv.fit(body, gaussians=n, solver=solver, iterations=30).psnr_db for n in (10, 100))
        assert many > few + 1


class TestFigures:
    def test_psnr_is_that_of_the_reconstruction(self, body, result):
        assert result.psnr_db == pytest.approx(psnr(body, result.reconstruction), abs=1e-3)

    def test_ssim_is_that_of_the_reconstruction(self, body, result):
        body = body.astype(np.float64)
        similarity = structural_similarity(body, result.reconstruction, data_range=np.ptp(body))
        assert result.ssim == pytest.approx(similarity, abs=1e-4)

    def test_reconstruction_is_the_gaussians(self, body, result):
        assert result.reconstruction.dtype == np.float32
        np.testing.assert_allclose(result.gaussians.sample(), result.reconstruction, atol=1e-4 * np.ptp(body))

    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_every_step_keeps_what_it_says(self, body, solver):
        for step in list(gsv.fit_steps(body, **QUICK, rounds=2, solver=solver)):
            assert step.psnr_db == pytest.approx(psnr(body, step.reconstruction()), abs=1e-3)
            assert len(step.gaussians) == step.n_gaussians == step.history[-1].n_gaussians

    def test_batches_end_with_the_psnr_of_the_end(self, body):
        result = gsv.fit(body, gaussians=40, rounds=1, solver="adam", batch_fraction=0.2, iterations=35)
        assert result.psnr_db == pytest.approx(psnr(body, result.reconstruction), abs=1e-3)

    def test_history_is_the_steps(self, steps, result):
        assert [h.n_gaussians for h in result.history] == [step.n_gaussians for step in steps]
        assert [h.psnr_db for h in result.history] == [step.psnr_db for step in steps]
        seconds = [h.seconds for h in result.history]
        assert all(a <= b for a, b in pairwise(seconds))
        assert result.seconds == seconds[-1] > 0
        iterations = [step.iteration for step in steps]
        assert iterations == [*range(31)]
        assert all(a.fraction <= b.fraction for a, b in pairwise(steps))
        assert steps[-1].fraction == 1

    def test_report_is_json_with_what_was_promised(self, result):
        report = json.loads(json.dumps(result.report()))
        for key in ("psnr_db", "ssim", "n_gaussians", "seconds"):
            assert report[key] == getattr(result, key)
        assert report["solver"] == "gauss-newton"
        assert report["terms"] == {"data": pytest.approx(10 ** (-report["psnr_db"] / 10))}
        assert len(report["history"]) == len(result.history)
        for point in report["history"]:
            assert set(point) == {"seconds", "psnr_db", "n_gaussians", "terms"}
        assert FitSettings(**report["settings"]) == result.settings

    def test_gaussians_carry_settings_and_figures_through_a_file(self, result, tmp_path):
        result.gaussians.save(tmp_path / "model.safetensors")
        metadata = GaussianVolume.load(tmp_path / "model.safetensors").metadata
        assert metadata == result.gaussians.metadata
        assert FitSettings(**metadata["settings"]) == result.settings
        for key in ("psnr_db", "ssim", "n_gaussians", "seconds"):
            assert metadata["metrics"][key] == getattr(result, key)
        assert gsv.__version__ in metadata["software"]

    def test_a_step_does_not_change(self, steps):
        with pytest.raises(FrozenInstanceError):
            steps[3].psnr_db = 99
        with pytest.raises(FrozenInstanceError):
            steps[3].history[0].seconds = 0
        assert [len(step.history) for step in steps] == [*range(1, len(steps) + 1)]


class TestDeterminism:
    @pytest.mark.parametrize("options", [{}, {"solver": "adam", "batch_fraction": 0.2}], ids=str)
    def test_a_seed_gives_the_same_bits_and_another_others(self, body, options):
        first, again, other = (gsv.fit(body, gaussians=40, iterations=25, **options, seed=seed) for seed in (5, 5, 6))
        assert_same_fit(first, again)
        assert first.gaussians.means.shape != other.gaussians.means.shape or not torch.equal(
            first.gaussians.means, other.gaussians.means
        )

    def test_batches_are_not_the_whole(self, body):
        whole, batches = (
            gsv.fit(body, gaussians=40, iterations=25, solver="adam", batch_fraction=f).gaussians for f in (1, 0.2)
        )
        assert whole.weights.tolist() != batches.weights.tolist()

    @pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="there is one thread only")
    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_threads_change_nothing(self, body, solver):
        one = gsv.fit(body, **QUICK, solver=solver)
        try:
            numba.set_num_threads(2)
            torch.set_num_threads(2)
            assert_same_fit(gsv.fit(body, **QUICK, solver=solver), one)
        finally:
            numba.set_num_threads(1)
            torch.set_num_threads(1)


class TestIntensities:
    @pytest.mark.parametrize(("a", "b"), [(4, 0), (0.01, 0), (1e-6, 0), (1e6, 3e6), (1, 5000), (0.5, -300)])
    def test_scale_and_offset_change_nothing_else(self, body, a, b):
        plain, other = (gsv.fit(v, gaussians=40, rounds=1, iterations=5) for v in (body, np.float64(a) * body + b))
        assert other.psnr_db == pytest.approx(plain.psnr_db, abs=0.02)
        assert other.n_gaussians == plain.n_gaussians
        limit = 5e-3 * np.abs(plain.gaussians.weights.numpy()).max()
        np.testing.assert_allclose(other.gaussians.weights.numpy() / a, plain.gaussians.weights.numpy(), atol=limit)
        np.testing.assert_allclose((other.reconstruction - b) / a, plain.reconstruction, atol=5e-3 * np.ptp(body))

    @pytest.mark.parametrize("dtype", [np.int32, np.float64])
    def test_a_large_offset_changes_nothing_else(self, body, dtype):
        plain, other = (gsv.fit(v, **QUICK) for v in (body, body.astype(dtype) + 2**30))
        assert other.psnr_db == pytest.approx(plain.psnr_db, abs=0.5)

    @pytest.mark.parametrize("dtype", ["int16", ">i2", ">f4", ">f8", "int32", "int64", "float64", "longdouble"])
    def test_a_type_that_holds_the_same_numbers_gives_the_same_fit(self, body, dtype):
        assert_same_fit(gsv.fit(body.astype(dtype), **QUICK), gsv.fit(body, **QUICK))

    @pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "uint64"])
    def test_small_and_unsigned_types(self, body, dtype):
        scaled = (body - body.min()) / np.ptp(body)
        volume = (scaled > 0.5) if dtype == "bool" else (200 * scaled).astype(dtype)
        typed = gsv.fit(volume, **QUICK)
        assert_same_fit(typed, gsv.fit(volume.astype(np.float32), **QUICK))
        assert typed.psnr_db > typed.history[0].psnr_db + 3

    @pytest.mark.parametrize("layout", ["fortran", "read-only", "view", "list", "tensor"])
    def test_any_memory_layout_and_the_input_stays(self, body, layout):
        big = np.full((*body.shape[:2], 2 * body.shape[2]), np.nan, np.float32)
        big[:, :, ::2] = body
        frozen = body.copy()
        frozen.setflags(write=False)
        volume = {
            "fortran": np.asfortranarray(body),
            "read-only": frozen,
            "view": big[:, :, ::2],
            "list": body.tolist(),
            "tensor": torch.tensor(body),
        }[layout]
        assert_same_fit(gsv.fit(volume, **QUICK), gsv.fit(body, **QUICK))
        np.testing.assert_array_equal(np.asarray(volume), body)


class TestMissingVoxels:
    @pytest.fixture
    def holes(self, body):
        holes = body.copy()
        holes[:4] = np.nan
        holes[10:13, 5:9, 7] = np.nan
        return holes

    def test_they_are_noted_and_count_for_nothing(self, holes):
        result = gsv.fit(holes, **QUICK)
        [note] = result.notes
        assert f"{np.isnan(holes).sum():,} voxels" in note
        assert "NaN" in note
        assert np.isfinite(result.reconstruction).all()
        assert result.psnr_db == pytest.approx(psnr(holes, result.reconstruction), abs=1e-3)
        assert result.psnr_db > result.history[0].psnr_db + 3

    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_what_is_in_them_does_not_matter(self, holes, solver):
        others = holes.copy()
        missing = np.flatnonzero(np.isnan(holes))
        others.flat[missing[::2]] = np.inf
        others.flat[missing[::3]] = -np.inf
        options = {**QUICK, "solver": solver, "batch_fraction": 0.5}
        assert_same_fit(gsv.fit(holes, **options), gsv.fit(others, **options))

    def test_a_whole_volume_has_no_notes(self, result):
        assert result.notes == ()

    def test_they_do_not_spoil_the_ssim(self):
        volume = blobs(3)[1]
        volume[6] = np.nan  # through two of the blobs
        result = gsv.fit(volume, gaussians=12, target_psnr=45)
        assert result.psnr_db >= 45
        assert result.ssim > 0.98


class TestGrids:
    def test_the_grid_goes_with_the_gaussians(self, steps, result):
        expected = Grid((20, 20, 20), AFFINE, ("mm", "mm", "um"), ("depth", "row", "column"))
        assert result.gaussians.grid == expected
        assert steps[0].gaussians.grid == expected

    def test_an_affine_alone_makes_a_grid(self, body):
        assert gsv.fit(body, affine=AFFINE, **QUICK).gaussians.grid == Grid(body.shape, AFFINE)
        assert gsv.fit(body, **QUICK).gaussians.grid == Grid(body.shape)

    def test_the_world_does_not_change_the_fit(self, body):
        assert_same_fit(gsv.fit(body, affine=AFFINE, **QUICK), gsv.fit(body, **QUICK))

    SHAPES = ((1, 20, 20), (20, 1, 20), (20, 20, 1), (5, 1, 1), (1, 1, 7), (1, 9), (9, 1), (3, 50, 2), (2, 2, 2))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_thin_volumes(self, shape):
        volume = np.random.default_rng(0).normal(size=shape)
        result = gsv.fit(volume, iterations=30)
        assert result.reconstruction.shape == shape
        assert np.isfinite(result.reconstruction).all()
        assert result.psnr_db > result.history[0].psnr_db + 0.5
        assert result.psnr_db == pytest.approx(psnr(volume, result.reconstruction), abs=0.01)

    def test_a_slice_of_one_voxel_is_an_image(self, body):
        flat, thin = (gsv.fit(volume, gaussians=30, iterations=30) for volume in (body[10], body[10][:, None]))
        assert thin.psnr_db == pytest.approx(flat.psnr_db, abs=3)
        assert thin.ssim == pytest.approx(flat.ssim, abs=0.1)
        np.testing.assert_allclose(thin.gaussians.means[:, 1], 0, atol=1)

    @pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
    def test_two_voxels(self, shape):
        volume = np.array([-3.0, 5]).reshape(shape)
        result = gsv.fit(volume, iterations=20)
        np.testing.assert_allclose(result.reconstruction, volume, atol=0.1)
        assert result.ssim is None
        assert json.loads(json.dumps(result.report()))["ssim"] is None

    def test_as_many_gaussians_as_voxels(self):
        volume = np.random.default_rng(0).normal(size=(4, 4, 4))
        assert gsv.fit(volume, gaussians=64, iterations=20).psnr_db > 40


class TestPopulation:
    def test_a_fixed_count_is_reached_in_rounds(self, steps, result):
        counts = [step.n_gaussians for step in steps]
        assert counts[0] == 0
        assert all(a <= b for a, b in pairwise(counts[:-1]))
        assert len(set(counts[:-1])) == 5  # none, and four rounds
        assert max(counts) == 60
        assert 50 <= result.n_gaussians <= 60

    def test_one_round_starts_with_all(self, body):
        _, second, *_ = gsv.fit_steps(body, **QUICK, rounds=1)
        assert second.n_gaussians == 40

    def test_useless_ones_go(self):
        means = torch.tensor([[4.0, 4, 4], [4, 4, 4], [90, 4, 4], [4, -50, 4], [8.5, 4, 4]])
        weights = torch.tensor([1.0, 0, 1, 1, -1])
        factors = torch.eye(3).expand(5, 3, 3).contiguous()
        keep = useful_mask(Gaussians(means, factors, weights), 0.01, 9**3, (9, 9, 9))
        assert keep.tolist() == [True, False, False, False, True]

    @pytest.mark.parametrize("options", [{}, {"gaussians": 300}, {"solver": "adam"}], ids=str)
    def test_a_target_is_reached_and_stays_reached(self, body, options):
        result = gsv.fit(body, target_psnr=21.5, **options)
        assert result.psnr_db >= 21.5
        assert psnr(body, result.reconstruction) >= 21.5 - 1e-3
        assert "target" in result.message
        assert all(point.psnr_db < 21.5 for point in result.history[:-1])

    def test_a_higher_target_takes_more_gaussians(self, body):
        low, high = (gsv.fit(body, target_psnr=target) for target in (15, 27))
        assert high.psnr_db >= 27
        assert high.n_gaussians > low.n_gaussians

    def test_batches_do_not_need_many_times_the_gaussians(self, body):
        whole, batches = (
            gsv.fit(body, target_psnr=22, solver="adam", batch_fraction=f, iterations=600) for f in (1, 0.2)
        )
        assert whole.psnr_db >= 22
        assert batches.n_gaussians < 2 * whole.n_gaussians

    def test_a_short_fit_keeps_its_gaussians(self, body):
        assert gsv.fit(body, gaussians=40, iterations=8, solver="adam").n_gaussians > 20

    def test_a_target_out_of_reach_ends_all_the_same(self, body):
        result = gsv.fit(body, gaussians=10, target_psnr=90, iterations=30)
        assert result.psnr_db < 90
        assert "target" not in result.message

    def test_a_time_limit_ends_the_fit_and_leaves_the_number_open(self, body):
        gsv.fit(body, **QUICK)  # the kernels are there
        for limit in (1, 4, 16):  # the busier the machine, the longer
            result = gsv.fit(body, time_limit=limit)
            assert "time" in result.message
            assert result.seconds < 5 * limit
            counts = [point.n_gaussians for point in result.history]
            if max(counts) > counts[1]:
                break
        assert max(counts) > counts[1] > 0
        assert result.psnr_db > result.history[0].psnr_db + 5

    def test_the_least_time_is_one_iteration(self, body):
        result = gsv.fit(body, gaussians=20, time_limit=1e-9)
        assert [point.n_gaussians > 0 for point in result.history] == [False, True]
        assert "time" in result.message


class TestStopping:
    @pytest.mark.parametrize("solver", ["gauss-newton", "adam"])
    def test_stop_ends_within_the_iteration_and_keeps_the_result(self, body, solver):
        seen = []
        budget = Budget(stop=lambda: bool(seen) and seen[-1].iteration >= 6)
        steps = gsv.fit_steps(body, gaussians=40, solver=solver, budget=budget)
        result = finish(mapped(steps, lambda step: seen.append(step) or step))
        assert [step.iteration for step in seen] == [*range(8)]
        assert result.message == "Stopped."
        assert result.n_gaussians > 0
        assert result.psnr_db > seen[-2].psnr_db - 0.1
        assert result.psnr_db == pytest.approx(psnr(body, result.reconstruction), abs=1e-3)

    def test_stop_in_the_middle_of_an_iteration(self, body):
        """Whichever kernel call it comes before, the fit ends there, with what there was."""
        whole = [step.psnr_db for step in gsv.fit_steps(body, **QUICK, rounds=1)]
        for calls in range(1, 40, 5):
            left = iter(range(calls))
            budget = Budget(stop=lambda left=left: next(left, None) is None)
            *before, last = gsv.fit_steps(body, **QUICK, rounds=1, budget=budget)
            if last.message != "Stopped.":
                break
            assert [step.psnr_db for step in before] == whole[: len(before)]
            assert last.iteration == len(before)
            assert last.psnr_db in (
                pytest.approx(before[-1].psnr_db, abs=0.1),
                pytest.approx(whole[len(before)], abs=0.1),
            )
        assert calls > 1

    def test_stop_before_the_first_iteration(self, body):
        result = finish(gsv.fit_steps(body, gaussians=40, budget=Budget(stop=lambda: True)))
        assert result.message == "Stopped."
        assert np.isfinite(result.reconstruction).all()
        assert result.psnr_db == pytest.approx(psnr(body, result.reconstruction), abs=1e-3)

    def test_asking_no_further_is_fine(self, body):
        steps = gsv.fit_steps(body, gaussians=40)
        some = [next(steps) for _ in range(4)]
        steps.close()
        with pytest.raises(StopIteration):
            next(steps)
        result = fit_result(some[-1])
        assert result.psnr_db == pytest.approx(psnr(body, result.reconstruction), abs=1e-3)
        assert result.n_gaussians > 0
        gsv.fit_steps(body).close()  # not even begun

    def test_the_first_step_is_the_background(self, body, steps):
        values, counts = np.unique(body, return_counts=True)
        first = steps[0]
        assert (first.iteration, first.n_gaussians, len(first.gaussians)) == (0, 0, 0)
        assert first.gaussians.background == pytest.approx(values[counts.argmax()], abs=float(0.02 * np.ptp(body)))
        np.testing.assert_array_equal(first.reconstruction(), np.float32(first.gaussians.background))
        assert first.psnr_db == pytest.approx(psnr(body, first.reconstruction()), abs=1e-3)
        assert first.fraction == 0


def unloadable(shape):
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


VOLUMES = {
    "constant": (np.full((5, 5), 7), "constant"),
    "empty": (np.zeros((0, 4, 4)), "empty"),
    "all NaN": (np.full((5, 5), np.nan), "no finite voxels"),
    "one finite voxel": (np.where(np.arange(25).reshape(5, 5) == 3, 1, np.inf), "finite voxels"),
    "0D": (3.0, "0 axes"),
    "1D": (np.arange(5.0), "1 axes"),
    "4D": (np.zeros((2, 3, 4, 5)), "4 axes"),
    "complex": (np.ones((4, 4), complex), "complex"),
    "object": (np.array([[1, None], [2, 3]]), "object"),
    "text": (np.array([["a", "b"]]), "real numbers"),
    "dates": (np.zeros((3, 3), "M8[s]"), "real numbers"),
}

BAD_SETTINGS = {
    "gausians": 3,
    "gaussians": 0,
    "target_psnr": -3,
    "time_limit": 0,
    "solver": "newton",
    "seed": -1,
    "device": "tpu",
    "iterations": 0,
    "rounds": 0,
    "cg_steps": 0,
    "learning_rate": float("nan"),
    "batch_fraction": 1.5,
}


class TestRefusals:
    """All come from `fit_steps` itself, before the first step."""

    @pytest.mark.parametrize("case", VOLUMES)
    def test_volumes(self, refused, case):
        volume, words = VOLUMES[case]
        with refused(ValueError, words):
            gsv.fit_steps(volume)

    def test_a_single_voxel(self, refused):
        with refused(ValueError) as caught:
            gsv.fit_steps(np.ones((1, 1, 1)))
        assert "NaN" not in str(caught.value)

    @pytest.mark.parametrize("high", [3e38, 1e300])
    def test_more_than_float32_holds(self, refused, high):
        with refused(ValueError, "float32"):
            gsv.fit_steps(np.array([[-high, 0], [1, high]]))

    def test_too_large_for_the_memory(self, refused):
        with refused(MemoryError, "GiB", "crop"):
            gsv.fit_steps(unloadable((2**14, 2**14, 2**14)))
        with refused(MemoryError, "GiB", "64 x 64 x 64"):
            check_volume(unloadable((64, 64, 64)), free_bytes=2**20)
        assert check_volume(unloadable((64, 64, 64)), free_bytes=2**30).shape == (64, 64, 64)

    @pytest.mark.parametrize("name", BAD_SETTINGS)
    def test_settings_by_name(self, body, refused, name):
        with refused(ValueError, name):
            gsv.fit_steps(body, **{name: BAD_SETTINGS[name]})

    def test_more_gaussians_than_voxels(self, body, refused):
        with refused(ValueError, "8,001", "8,000"):
            gsv.fit_steps(body, gaussians=8001)
        holes = body.copy()
        holes[10:] = np.nan
        with refused(ValueError, "4,001", "4,000"):
            gsv.fit_steps(holes, gaussians=4001)

    def test_affines_and_grids(self, body, refused):
        with refused(ValueError, "4x4"):
            gsv.fit_steps(body, affine=np.eye(3))
        with refused(ValueError, "inverted"):
            gsv.fit_steps(body, affine=np.diag([1, 0, 1, 1]))
        with refused(ValueError, "(20, 20, 20)", "(20, 20, 21)"):
            gsv.fit_steps(body, grid=Grid((20, 20, 21)))
        with refused(ValueError, "not both"):
            gsv.fit_steps(body, affine=AFFINE, grid=Grid(body.shape))


HEAVY = {"torch", "numba", "napari", "qtpy", "PyQt6", "PyQt5", "PySide6", "PySide2", "magicgui", "vispy"}
FIRST_STEP = "import numpy, napari_gsvolume; next(napari_gsvolume.fit_steps(numpy.eye(9)))"
IMPORTS = {
    "import napari_gsvolume; napari_gsvolume.__version__, dir(napari_gsvolume)": HEAVY,
    "from napari_gsvolume.fitting import FitSettings; FitSettings(gaussians=3)": HEAVY,
    "from napari_gsvolume import Grid, FitSettings; Grid((3, 3, 3))": HEAVY,
    FIRST_STEP: HEAVY - {"torch"},  # numba is the kernels': the first step waits for none
    "import napari_gsvolume as gsv, napari_gsvolume.fitting; assert callable(gsv.fit) and callable(gsv.fit_steps)": {
        "napari",
        "qtpy",
    },
}


class TestPackage:
    @pytest.mark.parametrize("code", IMPORTS)
    def test_imports_load_no_more_than_they_need(self, code):
        report = f"{code}\nimport sys; print(*({IMPORTS[code]} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []

    def test_the_example_in_the_docstring_runs(self):
        [example] = doctest.DocTestFinder(recurse=False).find(loop.fit, globs={})
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0

    def test_settings_are_frozen_and_plain(self):
        settings = FitSettings(gaussians=5)
        with pytest.raises(ValueError, match="frozen"):
            settings.gaussians = 6
        assert FitSettings(**json.loads(settings.model_dump_json())) == settings
