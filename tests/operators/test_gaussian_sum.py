from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_gsvolume.fitting.curvature import Curvature, GaussianBlocks
from napari_gsvolume.kernels import n_monomials, reference
from napari_gsvolume.operators.gaussian_sum import (
    Gaussians,
    jvp,
    predict,
    symmetric,
    upper,
    vjp,
)

SHAPES = [(11, 18), (7, 8, 18)]


def gaussians(
    n: int, shape: tuple[int, ...], sigma: tuple[float, float], *, margin: float = 0.0, seed: int = 0
) -> Gaussians:
    """Return Gaussians of any orientation and sign, at least `margin` away from the faces, with radii from `sigma`."""
    random = np.random.default_rng(seed)
    ndim = len(shape)
    means = random.uniform(margin, np.array(shape) - 1 - margin, (n, ndim))
    axes = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    factors = axes / random.uniform(*sigma, (n, 1, ndim)) @ np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    weights = random.uniform(0.3, 2, n) * random.choice([-1, 1], n)
    return Gaussians(*(torch.from_numpy(a.astype(np.float32)) for a in (means, factors, weights)))


def steps(gaussians_: Gaussians, seed: int = 1) -> Tensor:
    n, ndim = gaussians_.means.shape
    return torch.randn(n, n_monomials(ndim), generator=torch.Generator().manual_seed(seed))


def matrix(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the matrix of a linear function on arrays of `shape`, a column each unit array, in float64."""
    units = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    return torch.stack([function(unit).flatten() for unit in units], 1).double()


def hessian(gaussians_: Gaussians, shape: tuple[int, ...]) -> Tensor:
    J = matrix(lambda step: jvp(gaussians_, step, shape), tuple(steps(gaussians_).shape))
    return J.T @ J


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestPrediction:
    def test_is_the_sum(self, shape: tuple[int, ...]) -> None:
        g = gaussians(20, shape, (0.5, 3))
        coefficients = torch.zeros(20, n_monomials(len(shape)))
        coefficients[:, 0] = g.weights
        expected = reference.splat(g.means, g.factors, coefficients, shape)
        size = float(g.weights.abs().sum())
        torch.testing.assert_close(predict(g, shape).double(), expected, rtol=0, atol=1e-4 * size)

    def test_select_and_join(self, shape: tuple[int, ...]) -> None:
        g = gaussians(20, shape, (0.5, 3))
        some = torch.arange(20) < 7
        halves = predict(g.select(some), shape) + predict(g.select(~some), shape)
        torch.testing.assert_close(halves, predict(g, shape), rtol=0, atol=1e-5)
        joined = g.select(some).join(g.select(~some))
        assert all(torch.equal(*pair) for pair in zip(joined, g, strict=True))


@pytest.mark.parametrize("ndim", [2, 3])
class TestSteps:
    def test_triangles(self, ndim: int) -> None:
        triangle = torch.randn(5, ndim * (ndim + 1) // 2)
        B = symmetric(triangle, ndim)
        assert torch.equal(B, B.mT)
        assert torch.equal(upper(B), triangle)
        assert torch.equal(B[:, 0], triangle[:, :ndim])

    def test_each_part_has_its_meaning(self, ndim: int) -> None:
        g = Gaussians(*(t.double() for t in gaussians(6, (9,) * ndim, (0.5, 3))))
        covariances = torch.linalg.inv(g.factors @ g.factors.mT)
        step = torch.zeros(6, n_monomials(ndim), dtype=torch.float64)
        step[:, 0] = 0.25
        step[:, 1] = 2  # two radii along the first whitened axis
        step[:, ndim + 1 :] = upper(0.3 * torch.eye(ndim, dtype=torch.float64))  # exp(0.3) times the squared axes
        moved = g.moved(step)
        torch.testing.assert_close(moved.weights, g.weights + 0.25)
        whitened = ((moved.means - g.means)[:, None] @ g.factors)[:, 0]
        torch.testing.assert_close(whitened, 2 * torch.eye(ndim, dtype=torch.float64)[0].expand(6, -1))
        torch.testing.assert_close(torch.linalg.inv(moved.factors @ moved.factors.mT), np.exp(0.3) * covariances)

    def test_no_step_goes_nowhere(self, ndim: int) -> None:
        g = gaussians(6, (9,) * ndim, (0.5, 3))
        assert all(torch.equal(*pair) for pair in zip(g.moved(torch.zeros(6, n_monomials(ndim))), g, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestDerivative:
    def test_is_the_slope_of_the_prediction(self, shape: tuple[int, ...]) -> None:
        # So wide that the cut lies outside of the grid: moving it would be a jump, which the derivative leaves out.
        g = gaussians(5, shape, (7, 12), margin=2)
        exact = Gaussians(*(t.double() for t in g))

        def predicted(step: Tensor) -> Tensor:
            moved = exact.moved(step)
            coefficients = moved.weights.new_zeros(step.shape)
            coefficients[:, 0] = moved.weights
            return reference.splat(moved.means, moved.factors, coefficients, shape)

        h = 1e-4
        for unit in torch.eye(steps(g).numel(), dtype=torch.float64):
            step = unit.view_as(steps(g))
            slope = (predicted(h * step) - predicted(-h * step)) / (2 * h)
            size = float(slope.abs().max())
            assert size > 0.01
            # The kernels' exponential and float32; the differences' own error is of order h^2 = 1e-8.
            torch.testing.assert_close(jvp(g, step.float(), shape).double(), slope, rtol=0, atol=1e-4 * size)

    def test_is_linear(self, shape: tuple[int, ...]) -> None:
        g = gaussians(20, shape, (0.5, 3))
        v, w = steps(g, 1), steps(g, 2)
        together = jvp(g, v - 3 * w, shape)
        apart = jvp(g, v, shape) - 3 * jvp(g, w, shape)
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 * float(apart.abs().max()))

    def test_transpose(self, shape: tuple[int, ...]) -> None:
        """Entry by entry: every unit step against every unit grid, with supports cut and partly outside."""
        g = gaussians(3, shape, (0.5, 4))
        J = matrix(lambda step: jvp(g, step, shape), tuple(steps(g).shape))
        JT = matrix(lambda grid: vjp(g, grid), shape)
        assert ((J != 0).sum(0) > 0).all()
        torch.testing.assert_close(JT.T, J, rtol=0, atol=1e-6 * float(J.abs().max()))


class TestGaussianBlocks:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_solve_undoes_times(self, ndim: int) -> None:
        g = gaussians(30, (20,) * ndim, (0.5, 3))
        g.weights[::5] = torch.linspace(-1e-3, 1e-3, 6)  # below the floor, on both sides of zero
        blocks = GaussianBlocks(Gaussians(*(t.double() for t in g)))
        v = steps(g).double()
        torch.testing.assert_close(blocks.solve(blocks.times(v)), v)
        torch.testing.assert_close(blocks.times(blocks.solve(v)), v)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_is_positive_definite_whatever_the_weights(self, ndim: int) -> None:
        g = gaussians(4, (20,) * ndim, (0.5, 3))
        g.weights[:] = torch.tensor([0, -1e-6, 1e-6, -1])
        H = matrix(GaussianBlocks(g).times, tuple(steps(g).shape))
        # Scaled to a unit diagonal: the entries span the squares of the weights.
        scale = H.diagonal().rsqrt()
        H = scale[:, None] * H * scale
        torch.testing.assert_close(H, H.T)
        assert torch.linalg.eigvalsh(H).min() > 0.1

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("shape", [(26, 27), (25, 26, 27)], ids=str)
    def test_is_the_own_block_of_the_hessian(self, shape: tuple[int, ...], seed: int) -> None:
        # All of its support (3.3 radii of up to 3.2) lies in the grid.
        g = gaussians(1, shape, (1.5, 3.2), margin=11, seed=seed)
        expected = hessian(g, shape)
        got = matrix(GaussianBlocks(g).times, tuple(steps(g).shape))
        # The closed forms integrate to infinity. The cut leaves out exp(-r^2) r^6 beyond r = 3.3, 0.3 % of it, from
        # the fourth moments of a 3D Gaussian; summing over voxels instead of integrating is nothing against that.
        scale = expected.diagonal().rsqrt()
        torch.testing.assert_close(scale[:, None] * got * scale, scale[:, None] * expected * scale, rtol=0, atol=5e-3)


class TestCurvature:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_exact_is_the_hessian(self, shape: tuple[int, ...]) -> None:
        g = gaussians(5, shape, (0.5, 4))
        expected = hessian(g, shape)
        got = matrix(Curvature(g, shape, exact=True).times, tuple(steps(g).shape))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    @pytest.mark.parametrize("shape", [(40, 44), (20, 22, 24)], ids=str)
    def test_is_close_to_the_hessian_of_smooth_gaussians(self, shape: tuple[int, ...]) -> None:
        g = gaussians(10, shape, (3, 5))
        expected = hessian(g, shape)
        got = matrix(Curvature(g, shape, exact=False).times, tuple(steps(g).shape))
        # In units of each parameter's own curvature. It shapes the step and no more: a quarter off is good enough.
        scale = expected.diagonal().rsqrt()
        expected, got = scale[:, None] * expected * scale, scale[:, None] * got * scale
        assert (got - expected).norm() < 0.25 * expected.norm()
        # The couplings between Gaussians are part of it, and large: the block diagonal alone would not do.
        n, K = steps(g).shape
        coupled = torch.block_diag(*torch.ones(n, K, K)) == 0
        assert (got - expected)[coupled].norm() < 0.5 * expected[coupled].norm()

    @pytest.mark.parametrize("sigma", [(0.3, 0.6), (0.3, 8), (3, 5), (30, 40)], ids=str)
    @pytest.mark.parametrize("shape", [(30, 1), (30, 31), (9, 10, 17)], ids=str)
    @pytest.mark.parametrize("exact", [False, True])
    def test_is_symmetric_and_positive(self, shape: tuple[int, ...], sigma: tuple[float, float], exact: bool) -> None:
        g = gaussians(8, shape, sigma)
        H = matrix(Curvature(g, shape, exact=exact).times, tuple(steps(g).shape))
        size = float(torch.linalg.eigvalsh((H + H.T) / 2).max())
        assert size > 0
        torch.testing.assert_close(H, H.T, rtol=0, atol=1e-6 * size)
        assert torch.linalg.eigvalsh((H + H.T) / 2).min() > -1e-6 * size

    @pytest.mark.parametrize("shape", [(30, 31), (9, 10, 17)], ids=str)
    def test_no_gaussians(self, shape: tuple[int, ...]) -> None:
        g = gaussians(0, shape, (1, 2))
        assert Curvature(g, shape, exact=False).times(steps(g)).shape == (0, n_monomials(len(shape)))
