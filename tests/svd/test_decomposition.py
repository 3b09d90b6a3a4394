"""Singular value decompositions of slices, canonical signs, ranks and thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import anatomical_phantom, vessel_phantom
from napari_gsvolume.svd import decomposition

VOLUME = anatomical_phantom(32)[0]
SLICE = VOLUME[16].astype(np.float64)
pytestmark = pytest.mark.usefixtures("one_thread")
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestDecompose:
    @settings(max_examples=30, deadline=None)
    @given(seeds, st.integers(2, 12), st.integers(2, 12))
    def test_factors(self, seed, height, width) -> None:
        matrix = noise(seed, height, width)
        made = decomposition.decompose(matrix)
        r = min(height, width)
        assert (made.U.shape, made.values.shape, made.V.shape) == ((height, r), (r,), (width, r))
        assert (made.rank, made.shape) == (r, (height, width))
        np.testing.assert_allclose(made.U.T @ made.U, np.eye(r), atol=1e-12)
        np.testing.assert_allclose(made.V.T @ made.V, np.eye(r), atol=1e-12)
        np.testing.assert_allclose(made.values, np.linalg.svd(matrix, compute_uv=False))
        np.testing.assert_allclose(made.truncate(r), matrix, atol=1e-12)

    def test_the_best_image_of_a_rank_is_the_sum_of_modes(self) -> None:
        made = decomposition.decompose(SLICE)
        np.testing.assert_allclose(made.truncate(3), made.mode(0) + made.mode(1) + made.mode(2), atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(SLICE - made.truncate(3), 2), made.values[3])

    def test_few_modes_are_the_first(self) -> None:
        few, all_ = decomposition.decompose(SLICE, 4), decomposition.decompose(SLICE)
        np.testing.assert_array_equal(few.values, all_.values[:4])
        np.testing.assert_array_equal(few.U, all_.U[:, :4])
        np.testing.assert_array_equal(few.V, all_.V[:, :4])

    def test_few_modes_of_a_large_image(self) -> None:
        smooth = np.exp(-np.square(np.subtract.outer(np.linspace(0, 3, 1100), np.linspace(0, 2, 1024))))
        matrix = smooth + 1e-3 * noise(0, 1100, 1024)
        exact, made = np.linalg.svd(matrix, compute_uv=False), decomposition.decompose(matrix, 4)
        np.testing.assert_allclose(made.values, exact[:4], rtol=1e-9)
        best = np.sqrt(np.square(exact[4:]).sum())
        assert np.linalg.norm(matrix - made.truncate(4)) < (1 + 1e-6) * best
        torch.manual_seed(1)
        state = torch.get_rng_state()
        np.testing.assert_array_equal(decomposition.decompose(matrix, 4).U, made.U)  # the seed is its own
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_is_refused(self, refused) -> None:
        bad = SLICE.copy()
        bad[3, 4] = np.nan
        for matrix, word in (
            (bad, "NaN"),
            (np.full((4, 5), 7.0), "constant (every pixel is 7)"),
            (np.zeros((4, 5, 3)), "3 axes"),
            (np.zeros((0, 5)), "one or more"),
            (SLICE + 1j, "real numbers"),
        ):
            with refused(ValueError, word):
                decomposition.decompose(matrix)
        for rank in (0, 33):
            with refused(ValueError, "1 to 32", str(rank)):
                decomposition.decompose(SLICE, rank)
            with refused(ValueError, "1 to 32", str(rank)):
                decomposition.decompose(SLICE).truncate(rank)
        for k in (-1, 32):
            with refused(ValueError, "0 to 31"):
                decomposition.decompose(SLICE).mode(k)


class TestSigns:
    @settings(max_examples=30, deadline=None)
    @given(seeds, arrays(np.float64, 5, elements=st.sampled_from([-1.0, 1.0])))
    def test_whatever_the_solver_says(self, seed, flips) -> None:
        U, V = (np.linalg.qr(noise(seed + k, n, 5))[0] for k, n in enumerate((7, 9)))
        signs = decomposition.canonical_signs(U, V)
        np.testing.assert_array_equal(decomposition.canonical_signs(U * flips, V * flips) * flips, signs)
        votes = (np.sign(U * signs) * U**2).sum(0) + (np.sign(V * signs) * V**2).sum(0)
        assert (votes >= 0).all()

    def test_data_that_is_positive_has_a_first_mode_that_is(self) -> None:
        made = decomposition.decompose(SLICE + 1001 - SLICE.min())
        assert made.U[:, 0].min() > 0
        assert made.V[:, 0].min() > 0

    def test_noise_does_not_turn_the_first_modes(self) -> None:
        made, other = (decomposition.decompose(SLICE + 5 * noise(seed, *SLICE.shape)) for seed in (1, 2))
        assert ((made.U * other.U).sum(0)[:4] > 0.9).all()

    def test_without_a_majority_the_first_of_the_largest_decides(self) -> None:
        odd = np.array([[-0.5, 0.5], [-0.5, -0.5], [0.5, 0.5], [0.5, -0.5]])  # nobody has the majority
        for flip in (1, -1):
            signs = decomposition.canonical_signs(flip * odd, flip * odd)
            assert (flip * odd * signs)[0].min() > 0


class TestVolumes:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_spectra_of_all_slices(self, axis) -> None:
        volume = VOLUME[:5, :7]
        made = decomposition.spectra(volume, axis)
        sides = sorted(n for k, n in enumerate(volume.shape) if k != axis)
        assert made.shape == (volume.shape[axis], sides[0])
        one = volume.take(3, axis).astype(np.float64)
        np.testing.assert_allclose(made[3], np.linalg.svd(one, compute_uv=False))

    def test_constant_slices_are_allowed(self) -> None:
        volume = VOLUME[:3].copy()
        volume[1] = 0
        made = decomposition.spectra(volume, 0)
        assert not made[1].any()
        assert np.isfinite(decomposition.effective_rank(made)).all()
        assert decomposition.cumulative_energy(made)[1].tolist() == [1] * 32

    def test_an_unfolding_has_one_slice_a_row(self) -> None:
        volume = VOLUME[:4, :5, :6]
        for axis in range(3):
            rows = decomposition.unfold(volume, axis)
            np.testing.assert_array_equal(rows[2], volume.take(2, axis).ravel())
            gram = np.tensordot(volume, volume, (others := [k for k in range(3) if k != axis], others))
            np.testing.assert_allclose(rows @ rows.T, gram, rtol=1e-4)

    def test_what_is_refused(self, refused) -> None:
        for function in (decomposition.spectra, decomposition.unfold):
            with refused(ValueError, "three axes", "(32, 32)"):
                function(SLICE, 0)
            with refused(ValueError, "0 to 2", "3"):
                function(VOLUME, 3)
        volume = VOLUME[:2].copy()
        volume[1, 2, 3] = np.inf
        with refused(ValueError, "infinite"):
            decomposition.spectra(volume, 0)


class TestMeasures:
    def test_ranks_of_equal_values(self) -> None:
        for count in (1, 3, 8):
            values = np.r_[np.full(count, 2.5), np.zeros(8 - count)]
            assert decomposition.effective_rank(values) == pytest.approx(count)
            assert decomposition.stable_rank(values) == pytest.approx(count)
        assert decomposition.effective_rank(np.zeros(4)) == decomposition.stable_rank(np.zeros(4)) == 0

    @settings(max_examples=40, deadline=None)
    @given(arrays(np.float64, (3, 6), elements=st.floats(0, 1e6)), st.floats(1e-3, 1e3))
    def test_ranks_have_no_unit_and_bounds(self, values, scale) -> None:
        values = -np.sort(-values, -1)
        for function in (decomposition.effective_rank, decomposition.stable_rank):
            ranks = function(values)
            assert ranks.shape == (3,)
            assert (ranks <= (values > 0).sum(-1) + 1e-6).all()
            assert (ranks[values[:, 0] > 1e-3] >= 1 - 1e-9).all()
        energy = decomposition.cumulative_energy(values)
        np.testing.assert_allclose(energy[:, -1], 1)
        assert (np.diff(energy) >= -1e-12).all()
        large = values[values[:, 0] > 1e-3]
        np.testing.assert_allclose(decomposition.effective_rank(large * scale), decomposition.effective_rank(large))

    def test_the_best_psnr_is_that_of_the_truncated_image(self) -> None:
        made, span = decomposition.decompose(SLICE), float(np.ptp(SLICE))
        ceiling = decomposition.best_psnr_db(made.values, made.shape, span)
        for rank in (1, 5, 31):
            assert ceiling[rank - 1] == pytest.approx(psnr_between(SLICE, made.truncate(rank), span))
        assert ceiling[31] > 150


class TestThreshold:
    def test_figures_of_the_paper(self) -> None:
        assert decomposition.optimal_threshold(np.ones(9), (9, 9), 1.0) == pytest.approx(4 / np.sqrt(3) * 3)
        for ratio in np.linspace(0.05, 1, 20):
            shape = (round(1000 * ratio), 1000)
            omega = decomposition.optimal_threshold(np.ones(shape[0]), shape)
            cubic = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
            assert omega == pytest.approx(cubic, abs=0.02)  # as good as the paper says its approximation is

    @pytest.mark.parametrize("shape", [(60, 60), (50, 120), (120, 50)])
    def test_pure_noise_has_nothing_above_and_a_known_median(self, shape) -> None:
        values = np.linalg.svd(noise(3, *shape), compute_uv=False)
        known, unknown = (
            decomposition.optimal_threshold(values, shape, 1.0),
            decomposition.optimal_threshold(values, shape),
        )
        assert unknown == pytest.approx(known, rel=0.05)
        assert values[0] < min(known, unknown)

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.integers(1, 6), st.booleans())
    def test_a_planted_rank_is_found(self, seed, rank, told) -> None:
        U, V = (np.linalg.qr(noise(seed + k, n, rank))[0] for k, n in enumerate((80, 100)))
        sigma = 0.3
        values = np.linalg.svd(40 * sigma * U @ V.T + sigma * noise(seed + 2, 80, 100), compute_uv=False)
        threshold = decomposition.optimal_threshold(values, (80, 100), sigma if told else None)
        assert (values > threshold).sum() == rank

    def test_it_denoises_a_phantom(self) -> None:
        clean = vessel_phantom(48, noise=0)[0].max(0).astype(np.float64)
        clean = decomposition.decompose(clean).truncate(4)
        noisy = clean + 0.1 * noise(5, *clean.shape)
        made = decomposition.decompose(noisy)
        rank = int((made.values > decomposition.optimal_threshold(made.values, made.shape)).sum())
        assert 1 <= rank <= 4
        assert psnr_between(clean, made.truncate(rank), 1) > psnr_between(clean, noisy, 1) + 3

    def test_one_for_each_slice(self) -> None:
        values = decomposition.spectra(VOLUME[:4, :20], 0)
        made = decomposition.optimal_threshold(values, (20, 32))
        assert made.shape == (4,)
        assert made[2] == decomposition.optimal_threshold(values[2], (20, 32))

    def test_what_is_refused(self, refused) -> None:
        with refused(ValueError, "all 9", "5"):
            decomposition.optimal_threshold(np.ones(5), (9, 20))
        with refused(ValueError, "noise", "-1"):
            decomposition.optimal_threshold(np.ones(5), (9, 20), -1)
