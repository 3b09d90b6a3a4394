"""Continuous singular functions: B-splines, polynomials, Fourier series, scattered samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import make_smoothing_spline

from napari_gsvolume import Grid
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.svd.continuous_basis import ContinuousBasis, ContinuousImage, fine_centres
from napari_gsvolume.svd.decomposition import decompose

SLICE = anatomical_phantom(24)[0][12].astype(np.float64)
VECTORS = np.random.default_rng(0).normal(size=(11, 3))
SMOOTH = np.cos(np.pi * np.outer(np.arange(30) + 0.5, [0, 1, 3]) / 30)
ANYWHERE = np.linspace(-20, 40, 173)
KINDS = [*(("bspline", order) for order in range(1, 6)), ("mirrored", 3), ("periodic", 3), ("rbf", 3)]


def fit(vectors, kind, order=3, **options):
    return ContinuousBasis.fit(vectors, kind, order=order, **options)


class TestThroughTheSamples:
    @pytest.mark.parametrize(("kind", "order"), KINDS)
    @pytest.mark.parametrize("n", [4, 11, 12])
    def test_all_that_interpolate(self, kind, order, n) -> None:
        vectors = np.random.default_rng(n).normal(size=(n, 3))
        made = fit(vectors, kind, order)
        assert (made.kind, made.rank) == (kind, 3)
        np.testing.assert_allclose(made.evaluate(np.arange(n)), vectors, atol=1e-10)

    @pytest.mark.parametrize("kind", ["bspline", "mirrored", "periodic"])
    def test_one_sample_is_a_constant(self, kind) -> None:
        np.testing.assert_allclose(fit(np.full((1, 2), 3.0), kind).evaluate(ANYWHERE), 3)

    def test_polynomials_reproduce_polynomials(self) -> None:
        x = np.arange(20.0)
        made = fit(np.stack([x**3 - 2 * x, 1 - x], 1), "legendre", degree=3)
        fine = np.linspace(-0.5, 19.5, 50)
        np.testing.assert_allclose(made.evaluate(fine), np.stack([fine**3 - 2 * fine, 1 - fine], 1), atol=1e-8)
        np.testing.assert_allclose(made.evaluate(fine, 1)[:, 0], 3 * fine**2 - 2, atol=1e-8)

    def test_of_any_degree_that_fits_polynomials_are_near_smooth_samples(self) -> None:
        np.testing.assert_allclose(fit(SMOOTH, "legendre").evaluate(np.arange(30)), SMOOTH, atol=1e-3)
        exact = fit(VECTORS, "legendre", degree=10).evaluate(np.arange(11))
        np.testing.assert_allclose(exact, VECTORS, atol=1e-9)

    @pytest.mark.parametrize("order", range(1, 6))
    def test_splines_are_those_of_ndimage(self, order) -> None:
        x = ANYWHERE
        for column, values in zip(VECTORS.T, fit(VECTORS, "bspline", order).evaluate(x).T, strict=True):
            expected = ndimage.map_coordinates(column, [x], order=order, mode="reflect")
            np.testing.assert_allclose(values, expected, atol=1e-8)

    @pytest.mark.parametrize("order", [2, 3, 4, 5])
    def test_splines_reproduce_polynomials_inside(self, order) -> None:
        x = np.arange(80.0) - 40
        made = fit((x**order)[:, None], "bspline", order)
        fine = np.linspace(35, 44, 60)
        np.testing.assert_allclose(made.evaluate(fine)[:, 0], (fine - 40) ** order, atol=1e-3)

    def test_fourier_series_are_exact_for_what_is_in_them(self) -> None:
        fine = np.linspace(-0.5, 29.5, 91)
        expected = np.cos(np.pi * np.outer(fine + 0.5, [0, 1, 3]) / 30)
        np.testing.assert_allclose(fit(SMOOTH, "mirrored").evaluate(fine), expected, atol=1e-12)
        wave = np.sin(2 * np.pi * 3 * np.arange(30) / 30 + 0.4)[:, None]
        made = fit(wave, "periodic").evaluate(fine)[:, 0]
        np.testing.assert_allclose(made, np.sin(2 * np.pi * 3 * fine / 30 + 0.4), atol=1e-12)

    def test_what_they_do_outside(self) -> None:
        x = np.linspace(-0.5, 10.5, 40)
        for kind in ("bspline", "mirrored"):
            made = fit(VECTORS, kind)
            np.testing.assert_allclose(made.evaluate(-1 - x), made.evaluate(x), atol=1e-12)
            np.testing.assert_allclose(made.evaluate(21 - x), made.evaluate(x), atol=1e-12)
            np.testing.assert_allclose(made.evaluate(-1 - x, 1), -made.evaluate(x, 1), atol=1e-10)
        periodic = fit(VECTORS, "periodic")
        np.testing.assert_allclose(periodic.evaluate(x + 22), periodic.evaluate(x), atol=1e-12)


@pytest.mark.parametrize(("kind", "order"), [k for k in KINDS if k != ("rbf", 3)] + [("legendre", 3)])
def test_derivatives_are_slopes(kind, order) -> None:
    made = fit(VECTORS, kind, order)
    x, h = np.linspace(-0.37, 10.33, 29), 1e-6  # no knots of order 1 among them
    slope = (made.evaluate(x + h) - made.evaluate(x - h)) / (2 * h)
    np.testing.assert_allclose(made.evaluate(x, 1), slope, rtol=1e-5, atol=1e-5)
    if order > 1:
        bend = (made.evaluate(x + h, 1) - made.evaluate(x - h, 1)) / (2 * h)
        np.testing.assert_allclose(made.evaluate(x, 2), bend, rtol=1e-4, atol=1e-4)


class TestSmoothing:
    def test_each_mode_has_its_own(self) -> None:
        for kind in ("bspline", "legendre", "periodic", "mirrored", "rbf"):
            made = fit(VECTORS, kind, smoothing=[0, 1, 100]).evaluate(ANYWHERE)
            for k, weight in enumerate((0, 1, 100)):
                alone = fit(VECTORS[:, [k]], kind, smoothing=weight).evaluate(ANYWHERE)
                np.testing.assert_allclose(made[:, [k]], alone, rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize("kind", ["bspline", "legendre", "periodic", "mirrored", "rbf"])
    def test_more_of_it_is_smoother_and_further_off(self, kind) -> None:
        x = np.arange(11.0)
        before = 0.0, np.inf
        for weight in (1e-2, 1.0, 100.0):
            values = fit(VECTORS[:, :1], kind, smoothing=weight).evaluate(x)
            now = np.square(values - VECTORS[:, :1]).sum(), np.square(np.diff(values, 2, axis=0)).sum()
            assert now[0] > before[0]
            assert now[1] < before[1]
            before = now

    def test_it_minimises_what_is_said(self) -> None:
        # Mirrored samples, so that the spline's natural ends are far away.
        column, weight = VECTORS[:, 0], 0.7
        long = np.pad(column, 44, mode="symmetric")
        expected = make_smoothing_spline(np.arange(len(long)) - 44.0, long, lam=weight)
        x = np.linspace(-0.5, 10.5, 50)
        made = fit(VECTORS[:, :1], "bspline", smoothing=weight).evaluate(x)[:, 0]
        np.testing.assert_allclose(made, expected(x), atol=1e-6)
        first = fit(VECTORS[:, :1], "bspline", 1, smoothing=weight).evaluate(np.arange(11))[:, 0]
        D = np.diff(np.eye(11), axis=0)
        np.testing.assert_allclose(first, np.linalg.solve(np.eye(11) + weight * D.T @ D, column), atol=1e-12)

    @pytest.mark.parametrize("order", range(1, 6))
    def test_what_is_left_of_a_frequency(self, order) -> None:
        n, k, weight = 30, 7, 2.5
        # B-splines at integers, from the middle on.
        tap = {
            1: [1],
            2: [3 / 4, 1 / 8],
            3: [2 / 3, 1 / 6],
            4: [115 / 192, 19 / 96, 1 / 384],
            5: [0.55, 13 / 60, 1 / 120],
        }
        w = np.pi * k / n
        gain = tap[order][0] + sum(2 * b * np.cos((j + 1) * w) for j, b in enumerate(tap[order][1:]))
        left = gain / (gain + weight * (2 - 2 * np.cos(w)) ** {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[order])
        wave = np.cos(w * (np.arange(n) + 0.5))[:, None]
        made = fit(wave, "bspline", order, smoothing=weight).evaluate(np.arange(n))
        np.testing.assert_allclose(made, left * wave, atol=1e-10)

    def test_it_removes_noise(self) -> None:
        noisy = SMOOTH + 0.1 * np.random.default_rng(1).normal(size=SMOOTH.shape)
        x = np.arange(30)
        for kind in ("bspline", "mirrored", "legendre"):
            smooth = fit(noisy, kind, smoothing=5.0).evaluate(x)
            assert np.square(smooth - SMOOTH).mean() < 0.6 * np.square(noisy - SMOOTH).mean()


class TestScattered:
    def test_a_mask(self) -> None:
        y, x = np.mgrid[:14, :15]
        image = np.sin(y / 4) + np.cos(x / 5)
        mask = np.hypot(y - 7, x - 7) < 6.5
        made = fit(image[mask][:, None], "rbf", positions=np.argwhere(mask))
        np.testing.assert_allclose(made.evaluate(np.argwhere(mask))[:, 0], image[mask], atol=1e-9)
        inside = np.array([[6.5, 7.5], [4.25, 8.0]])
        expected = np.sin(inside[:, 0] / 4) + np.cos(inside[:, 1] / 5)
        np.testing.assert_allclose(made.evaluate(inside)[:, 0], expected, atol=5e-3)

    def test_more_samples_than_are_solved_at_once(self) -> None:
        y, x = np.mgrid[:40, :30]
        image = (2.0 * y - x)[..., None].reshape(-1, 1)  # what a thin-plate spline reproduces
        made = fit(image, "rbf", positions=np.stack([y.ravel(), x.ravel()], 1))
        np.testing.assert_allclose(made.evaluate([[3.25, 8.5]]), [[-2.0]], atol=1e-7)

    def test_missing_samples_of_a_vector(self) -> None:
        kept = np.delete(np.arange(30.0), [4, 11, 12])
        wanted = np.array([4, 11, 11.5, 12])
        expected = np.cos(np.pi * np.outer(wanted + 0.5, [0, 1, 3]) / 30)
        values = np.cos(np.pi * np.outer(kept + 0.5, [0, 1, 3]) / 30)
        for kind in ("rbf", "legendre"):
            made = fit(values, kind, positions=kept)
            np.testing.assert_allclose(made.evaluate(wanted), expected, atol=5e-3)


class TestImages:
    def test_full_rank_of_order_one_is_bilinear(self) -> None:
        made = ContinuousImage.from_svd(decompose(SLICE), order=1)
        y, x = np.linspace(0, 23, 31), np.linspace(0, 23, 37)
        expected = ndimage.map_coordinates(SLICE, np.meshgrid(y, x, indexing="ij"), order=1)
        np.testing.assert_allclose(made.on(y, x), expected, atol=1e-9)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 24), st.integers(1, 5))
    def test_at_its_samples_it_is_the_truncated_image(self, rank, order) -> None:
        made = ContinuousImage.from_svd(decompose(SLICE), rank, order=order)
        np.testing.assert_allclose(made.on(np.arange(24), np.arange(24)), decompose(SLICE).truncate(rank), atol=1e-8)

    def test_points_grids_and_derivatives_agree(self) -> None:
        made = ContinuousImage.from_svd(decompose(SLICE), 5)
        y, x = np.array([0.3, 7.9]), np.array([3.3, 4.4, 22.0])
        grid = made.on(y, x)
        points = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
        np.testing.assert_allclose(made.at(points), grid.ravel())
        slope = (made.on(y + 1e-5, x) - made.on(y - 1e-5, x)) / 2e-5
        np.testing.assert_allclose(made.on(y, x, (1, 0)), slope, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("factors", [(2, 3), (1.5, 2.3)])
    def test_the_finer_grid_is_that_of_the_grid(self, factors) -> None:
        grid = Grid(SLICE.shape, [[0, 2, 5], [3, 0.5, -7], [0, 0, 1]])
        finer = grid.resampled(factors)
        made = ContinuousImage.from_svd(decompose(SLICE)).resampled(factors)
        assert made.shape == finer.shape
        index = np.stack([*np.meshgrid(*map(fine_centres, SLICE.shape, factors), indexing="ij"), np.ones(made.shape)])
        world = np.tensordot(finer.affine, np.stack([*np.indices(made.shape), np.ones(made.shape)]), 1)
        np.testing.assert_allclose(np.tensordot(grid.affine, index, 1), world, atol=1e-10)


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"kind": "bspline", "order": 6}, "1 to 5"),
            ({"kind": "legendre", "degree": 11}, "0 to 10"),
            ({"kind": "wavelet"}, "bspline"),
            ({"smoothing": -1}, "0 or more"),
            ({"smoothing": [1, 2]}, "each of 3"),
            ({"positions": np.arange(11)}, "omit them"),
            ({"kind": "rbf", "positions": np.arange(10)}, "11 samples"),
            ({"kind": "rbf", "positions": np.zeros(11)}, "same position"),
        ],
    )
    def test_options(self, refused, options, words) -> None:
        with refused(ValueError, words):
            ContinuousBasis.fit(VECTORS, **options)

    def test_numbers(self, refused) -> None:
        for vectors, words in ((np.full((3, 2), np.nan), "NaN"), (np.arange(3), "(3,)"), (np.zeros((3, 0)), "(3, 0)")):
            with refused(ValueError, words):
                ContinuousBasis.fit(vectors)
        made = ContinuousBasis.fit(VECTORS)
        with refused(ValueError, "finite"):
            made.evaluate([np.inf])
        with refused(ValueError, "derivative", "rbf"):
            ContinuousBasis.fit(VECTORS, "rbf").evaluate([1], 1)
        flat = ContinuousBasis.fit(VECTORS, "rbf", positions=np.random.default_rng(0).normal(size=(11, 2)))
        with refused(ValueError, "2D"):
            flat.evaluate([1.0])
        with refused(ValueError, "1 to 24"):
            ContinuousImage.from_svd(decompose(SLICE), 25)
        with refused(ValueError, "(y, x)"):
            ContinuousImage.from_svd(decompose(SLICE), 2).at([1.0, 2.0])
