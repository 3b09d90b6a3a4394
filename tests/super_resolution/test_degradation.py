"""Degradations, the projection on what was measured, and the B-spline."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from napari_gsvolume import Grid
from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import anatomical_phantom, vessel_phantom
from napari_gsvolume.super_resolution.bspline import interpolation_matrix, upsample_bspline, upsampling_factors
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.settings import DegradationKind
from napari_gsvolume.svd.continuous_basis import fine_centres

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = get_args(DegradationKind)
kinds, seeds = st.sampled_from(KINDS), st.integers(0, 2**32 - 1)
factors = st.sampled_from([1, 1.1, 1.5, 2, 2.37, 3, 4])
sides = st.integers(1, 9)


def noise(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def degraded(image, factor, kind, fwhm=1.0) -> np.ndarray:
    return Degradation.of_high(image.shape, (factor,) * image.ndim, kind, fwhm).degrade(image)


class TestOperators:
    @settings(max_examples=60, deadline=None)
    @given(sides, sides, factors, factors, kinds, st.floats(-1e3, 1e3))
    def test_what_is_constant_stays_so(self, height, width, fy, fx, kind, value) -> None:
        for made in (
            Degradation.of_low((height, width), (fy, fx), kind),
            Degradation.of_high((height, width), (fy, fx), kind),
        ):
            np.testing.assert_allclose(made.degrade(np.full(made.high, value)), np.full(made.low, value), rtol=1e-12)

    @settings(max_examples=40, deadline=None)
    @given(seeds, st.integers(1, 6), st.integers(1, 6), st.integers(2, 4))
    def test_block_mean_is_the_mean_of_blocks(self, seed, height, width, factor) -> None:
        image = noise(seed, height * factor, width * factor)
        expected = image.reshape(height, factor, width, factor).mean((1, 3))
        np.testing.assert_allclose(degraded(image, factor, "block-mean"), expected, atol=1e-12)

    def test_block_mean_counts_parts(self) -> None:
        made = Degradation.of_low((3,), (1.5,))
        np.testing.assert_allclose(made.matrices[0] * 1.5, [[1, 0.5, 0, 0], [0, 0.5, 1, 0], [0, 0, 0, 1.5]])

    @pytest.mark.parametrize("factor", [2, 3, 4, 1.5])
    def test_bicubic_is_that_of_torch_and_pillow(self, factor) -> None:
        image = noise(0, 24, 36)
        made = degraded(image, factor, "bicubic")
        shape = round(24 / factor), round(36 / factor)
        tensor = torch.from_numpy(image)[None, None]
        expected = torch.nn.functional.interpolate(tensor, size=shape, mode="bicubic", antialias=True)
        np.testing.assert_allclose(made, expected[0, 0].numpy(), atol=1e-12)
        pillow = Image.fromarray(image.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(made, np.asarray(pillow), atol=1e-5)

    @pytest.mark.parametrize("fwhm", [0.7, 1.0, 2.0])
    def test_the_psf_is_a_gaussian_of_that_width(self, fwhm) -> None:
        factor = 40  # fine enough for sums to be integrals
        row = Degradation.of_low((9,), (factor,), "psf", fwhm).matrices[0][4]
        x = (np.arange(9 * factor) + 0.5) / factor - 4.5
        assert row @ x == pytest.approx(0, abs=1e-9)
        assert np.ptp(x[row > row.max() / 2]) == pytest.approx(fwhm, abs=2 / factor)
        # A Gaussian of full width w at half maximum has the standard deviation w / 2.3548.
        assert np.sqrt(row @ x**2) == pytest.approx(fwhm / 2.3548, rel=2e-3)

    @settings(max_examples=40, deadline=None)
    @given(seeds, sides, sides, factors, factors, kinds)
    def test_adjoint_and_pseudo_inverse(self, seed, height, width, fy, fx, kind) -> None:
        made = Degradation.of_low((height, width), (fy, fx), kind)
        image, low = noise(seed, *made.high), noise(seed + 1, *made.low)
        assert np.vdot(made.degrade(image), low) == pytest.approx(np.vdot(image, made.adjoint(low)), abs=1e-9)
        basis = np.eye(made.degrade(image).size).reshape(-1, *made.low)
        D = made.adjoint(basis).reshape(len(basis), -1)  # the dense matrix of the whole image
        np.testing.assert_allclose(made.pseudo_inverse(low).ravel(), np.linalg.pinv(D) @ low.ravel(), atol=1e-9)
        np.testing.assert_allclose(made.degrade(image).ravel(), D @ image.ravel(), atol=1e-9)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("factor", [2, 3, 1.5])
    def test_it_is_aligned_as_grids_are(self, kind, factor) -> None:
        grid = Grid((20, 22), [[0, 2, 5], [3, 0.5, -7], [0, 0, 1]])
        finer = grid.resampled(factor)
        made = Degradation.of_low(grid.shape, (factor, factor), kind)
        assert made.high == finer.shape
        for axis in range(2):  # a ramp in the world is one at both resolutions, away from the border
            ramps = [
                np.tensordot(g.affine[axis], np.stack([*np.indices(g.shape), np.ones(g.shape)]), 1)
                for g in (finer, grid)
            ]
            # Voxels that count in part are taken for constant, so weights are up to 1/18 of a low voxel off.
            atol = 0.01 if factor != 1.5 else 0.06 * np.abs(grid.affine[axis, :2]).sum()
            np.testing.assert_allclose(made.degrade(ramps[0])[4:-4, 4:-4], ramps[1][4:-4, 4:-4], atol=atol)

    def test_shapes(self) -> None:
        made = Degradation.of_high((7, 10, 9), (1, 2, 1.5))
        assert (made.low, made.matrices[0]) == ((7, 5, 6), None)
        assert Degradation.of_low((5, 3), (2.3, 1.5)).high == (round(11.5), round(4.5))

    def test_numbers_keep_their_precision_and_integers_become_float32(self) -> None:
        made = Degradation.of_high((4, 4), (2, 2))
        for dtype, expected in ((np.int16, np.float32), (np.float32, np.float32), (np.float64, np.float64)):
            image = np.arange(16).reshape(4, 4).astype(dtype)
            assert made.degrade(image).dtype == expected
            tensor = made.degrade(torch.from_numpy(image))
            np.testing.assert_array_equal(tensor.numpy(), made.degrade(image))

    def test_what_is_refused(self, refused) -> None:
        for more, words in (
            (((4, 4), (2,)), "a factor"),
            (((4, 0), (2, 2)), "one voxel"),
            (((4, 4), (2, 0.5)), "1 or more"),
            (((4, 4), (2, np.nan)), "1 or more"),
            (((4, 4), (2, 2), "nearest"), "block-mean"),
            (((4, 4), (2, 2), "psf", 0.0), "positive"),
        ):
            for make in (Degradation.of_low, Degradation.of_high):
                with refused(ValueError, words):
                    make(*more)
        made = Degradation.of_low((4, 4), (2, 2))
        for image in (np.zeros((8, 9)), np.zeros(8)):
            with refused(ValueError, "(8, 8)", str(image.shape)):
                made.degrade(image)
        with refused(ValueError, "psf"):
            Degradation.of_low((30,), (2,), "psf", 4.0).pseudo_inverse(np.ones(30))


class TestProjection:
    @settings(max_examples=60, deadline=None)
    @given(seeds, sides, sides, factors, factors, kinds)
    def test_it_is_exact_idempotent_and_nearest(self, seed, height, width, fy, fx, kind) -> None:
        made = Degradation.of_low((height, width), (fy, fx), kind)
        image, low = noise(seed, *made.high), noise(seed + 1, *made.low)
        projected = made.project(image, low)
        np.testing.assert_allclose(made.degrade(projected), low, atol=1e-10)
        np.testing.assert_allclose(made.project(projected, low), projected, atol=1e-10)
        other = made.project(noise(seed + 2, *made.high), low)  # any other image that agrees
        assert np.vdot(image - projected, other - projected) == pytest.approx(0, abs=1e-8)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("axes_factors", [(1, 2, 2), (1, 1.5, 1.5), (3, 1, 1), (4, 1, 1), (2, 3, 2.37)])
    def test_in_float32_on_a_phantom(self, kind, axes_factors) -> None:
        low = anatomical_phantom(24)[0]
        made = Degradation.of_low(low.shape, axes_factors, kind)
        image = upsample_bspline(low, axes_factors)
        assert image.dtype == np.float32
        projected = made.project(image, low)
        assert np.abs(made.degrade(projected) - low).max() < 1e-5 * np.abs(low).max()
        assert np.abs(made.degrade(image) - low).max() > 1e-2 * np.abs(low).max()  # there was something to do

    def test_in_float32_with_the_widest_psf_that_is_taken(self) -> None:
        low = anatomical_phantom(24)[0]
        made = Degradation.of_low(low.shape, (1, 2, 2), "psf", 2.2)
        assert np.abs(made.degrade(upsample_bspline(low, (1, 2, 2), onto=made)) - low).max() < 1e-5 * np.abs(low).max()

    def test_stacks_are_batches_of_slices(self) -> None:
        low, image = noise(0, 5, 6, 7), noise(1, 5, 12, 14)
        made = Degradation.of_low((6, 7), (2, 2), "bicubic")
        together = made.project(image, low)
        np.testing.assert_allclose(together[3], made.project(image[3], low[3]))
        whole = Degradation.of_low(low.shape, (1, 2, 2), "bicubic")
        np.testing.assert_allclose(whole.project(image, low), together)

    def test_gradients_are_those_of_what_is_not_seen(self) -> None:
        made = Degradation.of_low((3, 4), (2, 1.5), "bicubic")
        image = torch.from_numpy(noise(0, *made.high)).requires_grad_()
        towards = torch.from_numpy(noise(1, *made.high))
        (made.project(image, torch.zeros(made.low, dtype=torch.float64)) * towards).sum().backward()
        # I - D^+ D is symmetric, so the gradient is the projection of what it is multiplied with.
        expected = made.project(towards, torch.zeros(made.low, dtype=torch.float64))
        torch.testing.assert_close(image.grad, expected)

    @pytest.mark.parametrize("phantom", [anatomical_phantom, vessel_phantom])
    @pytest.mark.parametrize("axes", ["in-plane", "through-plane"])
    def test_it_adds_to_the_spline(self, phantom, axes) -> None:
        high = phantom(48)[0]
        made = Degradation.of_high(high.shape, upsampling_factors(2, 0, axes))
        low, span = made.degrade(high), float(np.ptp(high))
        before, after = (
            psnr_between(high, upsample_bspline(low, upsampling_factors(2, 0, axes), onto=p), span)
            for p in (None, made)
        )
        assert after > before + 0.1


class TestSpline:
    @settings(max_examples=40, deadline=None)
    @given(seeds, st.integers(10, 16), st.integers(10, 16), factors, factors, st.integers(1, 5))  # shorter: it is off
    def test_it_is_that_of_ndimage_at_the_fine_centres(self, seed, height, width, fy, fx, order) -> None:
        image = noise(seed, height, width)
        places = np.meshgrid(fine_centres(height, fy), fine_centres(width, fx), indexing="ij")
        expected = ndimage.map_coordinates(image, places, order=order, mode="reflect")
        np.testing.assert_allclose(upsample_bspline(image, (fy, fx), order), expected, atol=2e-6)

    def test_it_reproduces_cubic_polynomials_of_the_world(self) -> None:
        grid = Grid((40, 44), [[0, 0.2, 5], [0.3, 0.05, -7], [0, 0, 1]])

        def cubic(at: Grid) -> np.ndarray:
            y, x = np.tensordot(at.affine[:2], np.stack([*np.indices(at.shape), np.ones(at.shape)]), 1)
            return 0.01 * x**3 - 0.02 * x * y**2 + y - 3

        for factor in (2, 1.5):
            made = upsample_bspline(cubic(grid), (factor, factor))
            inside = tuple(slice(n // 3, -(n // 3)) for n in made.shape)
            np.testing.assert_allclose(made[inside], cubic(grid.resampled(factor))[inside], rtol=1e-4, atol=1e-4)

    def test_constants_and_batches_and_tensors(self) -> None:
        np.testing.assert_allclose(upsample_bspline(np.full((3, 4, 5), 7.0), (2, 1.5, 3)), 7)
        stack = noise(0, 3, 6, 5)
        made = upsample_bspline(stack, (2, 1.5))
        np.testing.assert_allclose(made[1], upsample_bspline(stack[1], (2, 1.5)))
        np.testing.assert_allclose(made, upsample_bspline(stack, (1, 2, 1.5)))
        np.testing.assert_allclose(upsample_bspline(torch.from_numpy(stack), (2, 1.5)).numpy(), made)
        assert upsample_bspline(stack.astype(np.int16), (2, 2)).dtype == np.float32

    def test_the_matrix_interpolates(self) -> None:
        M = interpolation_matrix(7, 3)
        assert M.shape == (21, 7)
        np.testing.assert_allclose(M[1::3], np.eye(7), atol=1e-12)  # with an odd factor old centres are new ones
        np.testing.assert_allclose(M.sum(1), 1)

    def test_factors_of_an_axis(self) -> None:
        assert upsampling_factors(2, 1, "in-plane") == (2, 1, 2)
        assert upsampling_factors(2, 1, "through-plane") == (1, 2, 1)
        assert upsampling_factors(3, 0, "in-plane", 2) == (3, 3)

    def test_what_is_refused(self, refused) -> None:
        with refused(ValueError, "NaN"):
            upsample_bspline(np.array([[0.0, np.nan]]), (2, 2))
        with refused(ValueError, "NaN"):
            upsample_bspline(torch.tensor([[0.0, torch.inf]]), (2, 2))
        with refused(ValueError, "1 or more"):
            upsample_bspline(np.zeros((3, 3)), (0.5, 2))
        with refused(ValueError, "(3, 3)"):
            upsample_bspline(np.zeros((3, 3)), (2, 2, 2))
        with refused(ValueError, "1 to 5"):
            upsample_bspline(np.zeros((3, 3)), (2, 2), 0)
        for axis, axes in ((0, "through-plane"), (1, "in-plane")):
            with refused(ValueError, "two axes"):
                upsampling_factors(2, axis, axes, 2)
