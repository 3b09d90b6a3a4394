import math

import numba
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from napari_gsvolume.kernels import gather, gather_flat, n_monomials, reference, splat, splat_flat
from napari_gsvolume.kernels.constants import SUPPORT
from napari_gsvolume.operators.cut_artefacts import artefact_map, cut_surfaces, surface_artefact
from napari_gsvolume.operators.gaussian_sum import Gaussians
from napari_gsvolume.operators.voxel_support import (
    Ball,
    Ellipsoid,
    LinearisedEllipsoid,
    LinearisedNeighbourhood,
    Neighbourhood,
)

SHAPES = [(9, 11), (6, 7, 8)]
KERNEL_SHAPES = [(1, 1), (9, 1), (1, 20), (13, 37), (9, 7, 1), (1, 8, 16), (7, 6, 33), (2, 1, 40)]
SIGMAS = [(0.05, 0.3), (0.5, 4), (0.3, 40), (50, 60)]


def gaussians(
    n: int, shape: tuple[int, ...], sigma: tuple[float, float], *, margin: float = -0.5, seed: int = 0
) -> Gaussians:
    """Return Gaussians off the lattice, of any orientation, with weights that have to be ignored."""
    random = np.random.default_rng(seed)
    ndim = len(shape)
    means = random.uniform(margin, np.array(shape) - 1 - margin, (n, ndim))
    axes = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    factors = axes / random.uniform(*sigma, (n, 1, ndim)) @ np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    return Gaussians(*(torch.from_numpy(a.astype(np.float32)) for a in (means, factors, random.normal(size=n))))


def noise(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(g: Gaussians, seed: int = 2) -> Tensor:
    n, ndim = g.means.shape
    return noise((n, n_monomials(ndim)), seed)


# The kernels


def squared_radii(g: Gaussians, shape: tuple[int, ...]) -> Tensor:
    """Return ``|W_i^T (x - mu_i)|^2``, (M, N), float64."""
    d = reference.grid_points(shape)[:, None] - g.means.double()
    return torch.einsum("nab,mna->mnb", g.factors.double(), d).square().sum(-1)


class TestSupport:
    @pytest.mark.parametrize("support", [0.7, 2])
    @pytest.mark.parametrize("sigma", SIGMAS, ids=str)
    @pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
    def test_is_where_gaussians_are_cut(
        self, shape: tuple[int, ...], sigma: tuple[float, float], support: float
    ) -> None:
        g = gaussians(12, shape, sigma)
        d = reference.grid_points(shape)[:, None] - g.means.double()
        q = squared_radii(g, shape)
        inside = torch.exp(-q / 2) * (q < support**2 + 1e-6)
        size = inside[:, :, None] * reference.monomials(d).abs()  # (M, N, K)
        C, grid = noise((12, n_monomials(len(shape)))), noise(shape)
        error = splat(g.means, g.factors, C, shape, support=support) - reference.splat(
            g.means, g.factors, C, shape, support=support
        )
        assert (error.abs().flatten() <= 4e-5 * torch.einsum("mnk,nk->m", size, C.double().abs())).all()
        error = gather(g.means, g.factors, grid, support=support) - reference.gather(
            g.means, g.factors, grid, support=support
        )
        assert (error.abs() <= 4e-5 * torch.einsum("mnk,m->nk", size, grid.double().abs().flatten())).all()

    def test_default_is_the_largest(self) -> None:
        g, shape = gaussians(9, (8, 9, 10), (1, 2)), (8, 9, 10)
        C = steps(g)
        assert torch.equal(splat(*g[:2], C, shape), splat(*g[:2], C, shape, support=SUPPORT))
        assert torch.equal(gather(*g[:2], noise(shape)), gather(*g[:2], noise(shape), support=SUPPORT))
        assert not torch.equal(splat(*g[:2], C, shape), splat(*g[:2], C, shape, support=SUPPORT - 0.3))

    @pytest.mark.parametrize("support", [0, -1, SUPPORT + 1e-6, math.inf, math.nan])
    def test_out_of_range(self, support: float) -> None:
        g, shape = gaussians(3, (5, 6), (1, 2)), (5, 6)
        with pytest.raises(ValueError, match=r"positive and at most 3\.3"):
            splat(*g[:2], steps(g), shape, support=support)
        with pytest.raises(ValueError, match=r"positive and at most 3\.3"):
            gather(*g[:2], noise(shape), support=support)
        if not 0 < support < math.inf:
            with pytest.raises(ValueError, match="support has to be positive; got"):
                splat_flat(*g[:2], torch.ones(3), shape, support)
            with pytest.raises(ValueError, match="support has to be positive; got"):
                gather_flat(*g[:2], noise(shape), support)


class TestFlat:
    @pytest.mark.parametrize("support", [0.7, 3, 7.5])
    @pytest.mark.parametrize("sigma", SIGMAS, ids=str)
    @pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
    def test_against_the_formulas(self, shape: tuple[int, ...], sigma: tuple[float, float], support: float) -> None:
        g = gaussians(30, shape, sigma)
        assert (squared_radii(g, shape) - support**2).abs().min() > 1e-9  # no voxel that rounding decides about
        values, grid = noise((30,)), noise(shape)
        got = splat_flat(*g[:2], values, shape, support)
        assert got.shape == shape
        assert got.dtype == torch.float32
        expected = reference.splat_flat(*g[:2], values, shape, support)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6 * float(values.abs().sum()))
        sums = gather_flat(*g[:2], grid, support)
        assert sums.shape == (30,)
        assert sums.dtype == torch.float32
        expected = reference.gather_flat(*g[:2], grid, support)
        torch.testing.assert_close(sums.double(), expected, rtol=0, atol=1e-6 * float(grid.abs().sum()))

    @pytest.mark.parametrize("shape", [(13, 37), (7, 6, 33)], ids=str)
    def test_vjp_is_adjoint_of_jvp(self, shape: tuple[int, ...]) -> None:
        g = gaussians(50, shape, (0.5, 4))
        values, grid = noise((50,)), noise(shape)
        left = (splat_flat(*g[:2], values, shape, 2.5).double() * grid).sum()
        right = (gather_flat(*g[:2], grid, 2.5).double() * values).sum()
        assert abs(left) > 1
        assert abs(left - right) < 1e-6 * float(grid.abs().sum() * values.abs().sum())

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_integers_are_exact(self, shape: tuple[int, ...]) -> None:
        g = gaussians(40, shape, (1, 4))
        values = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40))
        inside = reference.inside(reference.grid_points(shape), *(t.double() for t in g[:2]), 2).numpy() > 0
        expected = [sum(int(v) for v in values.numpy()[row]) for row in inside]  # Python's integers do not overflow
        got = splat_flat(*g[:2], values, shape, 2).flatten()
        assert got.dtype == torch.int64
        assert [int(v) % 2**64 for v in got] == [v % 2**64 for v in expected]
        assert max(map(abs, expected)) > 2**63

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_counts_the_voxels_that_the_gaussians_cover(self, shape: tuple[int, ...]) -> None:
        g = gaussians(40, shape, (0.3, 2))
        alone = torch.stack([splat(*g.select(torch.tensor([i]))[:2], one(len(shape)), shape) > 0 for i in range(40)])
        assert torch.equal(gather_flat(*g[:2], torch.ones(shape), SUPPORT), alone.flatten(1).sum(1).float())
        assert torch.equal(splat_flat(*g[:2], torch.ones(40), shape, SUPPORT), alone.sum(0).float())

    def test_threads_do_not_change_a_bit(self) -> None:
        shape = (31, 20, 40)
        g, values, grid = gaussians(300, shape, (1, 4)), noise((300,)), noise(shape)
        before, most, results = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS, []
        try:
            for threads in (1, most):
                numba.set_num_threads(threads)
                results.append((splat_flat(*g[:2], values, shape, 3), gather_flat(*g[:2], grid, 3)))
        finally:
            numba.set_num_threads(before)
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_none(self, shape: tuple[int, ...]) -> None:
        g = gaussians(0, shape, (1, 2))
        assert torch.equal(splat_flat(*g[:2], torch.zeros(0), shape, 2), torch.zeros(shape))
        assert gather_flat(*g[:2], noise(shape), 2).shape == (0,)

    def test_out_of_reach_and_singular(self) -> None:
        shape = (5, 6, 20)
        g = gaussians(3, shape, (1, 2))
        g.means[0, 2], g.means[1, 0], g.factors[2] = -1e9, 1e9, torch.diag(torch.tensor([1.0, 0, 1]))
        assert not splat_flat(*g[:2], torch.ones(3), shape, 3).any()
        assert not gather_flat(*g[:2], torch.ones(shape), 3).any()

    def test_inputs_that_do_not_fit(self) -> None:
        g, shape = gaussians(3, (5, 6), (1, 2)), (5, 6)
        with pytest.raises(ValueError, match=r"3 ellipsoids need as many values; got values of shape \(4,\)"):
            splat_flat(*g[:2], torch.ones(4), shape, 2)
        with pytest.raises(ValueError, match="A value is NaN"):
            splat_flat(*g[:2], torch.tensor([1, math.nan, 1]), shape, 2)
        with pytest.raises(ValueError, match="3D grid"):
            gather_flat(*g[:2], torch.ones(5, 6, 7), 2)


def one(ndim: int) -> Tensor:
    coefficients = torch.zeros(1, n_monomials(ndim))
    coefficients[0, 0] = 1
    return coefficients


class TestBall:
    @pytest.mark.parametrize("radius", [0, 0.9, 1, 1.5, 2.2, 4, 30])
    @pytest.mark.parametrize("shape", [(1, 1), (9, 11), (1, 30), (6, 7, 8), (1, 9, 2), (16, 3, 5)], ids=str)
    def test_sums_what_is_near(self, shape: tuple[int, ...], radius: float) -> None:
        grid = noise(shape)
        points = reference.grid_points(shape)
        near = torch.cdist(points, points) <= radius + 1e-9
        expected = (near.double() @ grid.double().flatten()).reshape(shape)
        torch.testing.assert_close(Ball(radius, shape).sum(grid), expected, rtol=0, atol=1e-12)

    def test_size_and_variance(self) -> None:
        assert [Ball(r, (20, 20, 20)).size for r in (0, 1, 2, 3, 4)] == [1, 7, 33, 123, 257]
        assert Ball(1, (20, 20, 20)).variance == pytest.approx(2 / 7)
        assert Ball(1, (1, 20, 20)).size == 5  # there is nothing above and below

    @pytest.mark.parametrize("radius", [-1, math.nan, math.inf])
    def test_no_radius(self, radius: float) -> None:
        with pytest.raises(ValueError, match="radius has to be a number of voxels"):
            Ball(radius, (5, 6))


# The predictions


def naive(term: Neighbourhood | Ellipsoid, g: Gaussians, cut_at: Gaussians | None = None) -> Tensor:
    """Return q from the definitions, in float64; `cut_at` decides which voxels each Gaussian covers."""
    p = term.values.double().flatten()
    shape = tuple(term.values.shape)
    points = reference.grid_points(shape)
    k = term.k if isinstance(term, Ellipsoid) else SUPPORT
    inside = (squared_radii(cut_at or g, shape) < k**2).double()  # (M, N)
    e = torch.exp(-squared_radii(g, shape) / 2) * inside
    if isinstance(term, Ellipsoid):
        A, M = p @ e, e.sum(0)
        above, below = inside @ A, inside @ M
    else:
        radius = {5: 1, 13: 2, 7: 1, 33: 2}[term.ball.size]
        near = (torch.cdist(points, points) <= radius + 1e-9).double()
        G = e.sum(1)
        above, below = near @ (p * G), near @ G
    q = torch.where(below > 0, above / below, 0.0) if term.normalised else above
    return q.reshape(shape)


def terms(values: Tensor) -> list[Neighbourhood | Ellipsoid]:
    return [
        *(Neighbourhood(values, radius, normalised) for radius in (1, 2) for normalised in (False, True)),
        *(Ellipsoid(values, k, normalised) for k in (1.3, 3) for normalised in (False, True)),
    ]


def name(term: Neighbourhood | Ellipsoid) -> str:
    size = term.ball.size if isinstance(term, Neighbourhood) else term.k
    return f"{type(term).__name__}-{size:g}-{'normalised' if term.normalised else 'plain'}"


CASES = [pytest.param(term, id=f"{len(shape)}D-{name(term)}") for shape in SHAPES for term in terms(noise(shape))]


@pytest.mark.parametrize("term", CASES)
class TestPrediction:
    @pytest.mark.parametrize("sigma", [(0.2, 0.5), (0.5, 3)], ids=str)
    def test_is_the_definition(self, term: Neighbourhood | Ellipsoid, sigma: tuple[float, float]) -> None:
        g = gaussians(6, tuple(term.values.shape), sigma, margin=1)
        expected = naive(term, g)
        assert expected.abs().max() > 0.1
        if sigma[0] < 0.5:
            assert (expected == 0).any()  # some voxels have no support
        got = term.predict(g)
        assert got.dtype == torch.float32
        assert got.shape == term.values.shape
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))

    def test_linearisation_predicts_the_same(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(9, tuple(term.values.shape), (0.5, 3))
        at = term.linearise(g)
        assert torch.equal(at.prediction, term.predict(g))
        at.prediction.zero_()  # residuals are made in place
        assert torch.equal(at.prediction, term.predict(g))

    def test_weights_are_ignored(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(9, tuple(term.values.shape), (0.5, 3))
        other = g._replace(weights=torch.zeros(9))
        assert torch.equal(term.predict(g), term.predict(other))
        assert torch.equal(term.linearise(g).jvp(steps(g)), term.linearise(other).jvp(steps(g)))
        assert torch.equal(term.linearise(g).blocks.times(steps(g)), term.linearise(other).blocks.times(steps(g)))

    def test_no_gaussians(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(0, tuple(term.values.shape), (1, 2))
        at = term.linearise(g)
        assert not at.prediction.any()
        assert not at.jvp(steps(g)).any()
        for result in (at.vjp(term.values), at.blocks.times(steps(g)), at.blocks.solve(steps(g))):
            assert result.shape == steps(g).shape


class TestNormalised:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_an_average(self, shape: tuple[int, ...]) -> None:
        g = gaussians(5, shape, (0.3, 0.6), margin=1)
        constant, values = torch.full(shape, -0.7), noise(shape).abs()
        for flat, term in zip(terms(constant), terms(values), strict=True):
            if flat.normalised:
                q = flat.predict(g)
                assert 0 < (q == 0).sum() < q.numel()
                torch.testing.assert_close(q[q != 0], constant[q != 0], rtol=1e-5, atol=0)
                q = term.predict(g)
                assert q.min() >= 0
                assert q.max() <= values.max() * (1 + 1e-5)

    def test_little_support_beside_much(self) -> None:
        """Rounding errors are relative to the voxel's own sums, not to the largest in the grid."""
        shape = (30, 40)
        crowd = gaussians(3000, (30, 12), (2, 3))
        alone = Gaussians(torch.tensor([[10.0, 35.0]]), 1.7 * torch.eye(2)[None], torch.ones(1))
        values = noise(shape)
        values[:, :25] *= 100
        term = Neighbourhood(values, 2, True)
        q, both = term.predict(alone), term.predict(crowd.join(alone))
        assert (q[:, 27:] != 0).any()
        torch.testing.assert_close(both[:, 27:], q[:, 27:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("term", CASES)
class TestDerivative:
    def test_is_the_slope_of_the_prediction(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(3, tuple(term.values.shape), (1, 3), margin=2)
        exact = Gaussians(*(t.double() for t in g))
        at, h = term.linearise(g), 1e-4
        K = steps(g).shape[1]
        units = torch.eye(steps(g).numel())[: 2 * K].view(2 * K, *steps(g).shape)
        # Voxels that the Gaussians cover stay the same: where that changes there is a jump, and no slope.
        slopes = torch.stack(
            [
                (naive(term, exact.moved(h * unit), exact) - naive(term, exact.moved(-h * unit), exact)) / (2 * h)
                for unit in units.double()
            ]
        )
        got = torch.stack([at.jvp(unit) for unit in units]).double()
        sizes = slopes.abs().flatten(1).amax(1)
        assert (sizes.view(2, K)[:, 1:] > 1e-3 * sizes.max()).all()
        assert sizes.max() > 0.03
        assert not got.view(2, K, -1)[:, 0].any()  # omega
        errors = (got - slopes).abs().flatten(1).amax(1)
        assert (errors <= 2e-4 * sizes + 1e-5 * sizes.max()).all()

    def test_vjp_is_adjoint_of_jvp(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(20, tuple(term.values.shape), (0.7, 3))
        at = term.linearise(g)
        for i in range(20):  # each Gaussian alone: the large ones do not hide the small ones
            step, grid = torch.zeros_like(steps(g)), noise(tuple(term.values.shape), i)
            step[i] = steps(g)[i]
            change = at.jvp(step)
            left, right = (change.double() * grid).sum(), (at.vjp(grid).double() * step).sum()
            assert abs(left - right) <= 1e-5 * float(change.norm() * grid.norm())
        assert at.jvp(steps(g)).abs().max() > 0.03
        assert not at.vjp(term.values)[:, 0].any()

    def test_is_linear(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(20, tuple(term.values.shape), (0.7, 3))
        at, v, w = term.linearise(g), steps(g, 1), steps(g, 2)
        apart = at.jvp(v) - 3 * at.jvp(w)
        size = float(apart.abs().max())
        torch.testing.assert_close(at.jvp(v - 3 * w), apart, rtol=0, atol=1e-5 * size)


# The blocks


def own_blocks(at: LinearisedNeighbourhood | LinearisedEllipsoid, g: Gaussians) -> Tensor:
    """Return the block diagonal of ``J^T J`` without omega, (N, K - 1, K - 1)."""
    blocks = []
    for i, _ in enumerate(g.means):
        columns = []
        for k in range(1, steps(g).shape[1]):
            unit = torch.zeros_like(steps(g))
            unit[i, k] = 1
            columns.append(at.jvp(unit).flatten().double())
        J = torch.stack(columns, 1)
        blocks.append(J.T @ J)
    return torch.stack(blocks)


def as_matrices(at: LinearisedNeighbourhood | LinearisedEllipsoid, g: Gaussians) -> Tensor:
    n, K = steps(g).shape
    columns = [at.blocks.times(unit.expand(n, K)) for unit in torch.eye(K)]
    return torch.stack(columns, 2).double()


@pytest.mark.parametrize("term", CASES)
class TestBlocks:
    @pytest.mark.parametrize("sigma", [(0.1, 0.3), (0.5, 3), (5, 30)], ids=str)
    def test_are_positive_and_invert(self, term: Neighbourhood | Ellipsoid, sigma: tuple[float, float]) -> None:
        g = gaussians(12, tuple(term.values.shape), sigma)
        g.means[0] = 1000.0  # one that touches nothing
        at = term.linearise(g)
        matrices = as_matrices(at, g)
        torch.testing.assert_close(matrices, matrices.mT, rtol=0, atol=1e-6 * float(matrices.abs().max()))
        scale = matrices.diagonal(dim1=1, dim2=2).rsqrt()
        assert torch.linalg.eigvalsh(scale[:, :, None] * matrices * scale[:, None]).min() > 1e-5
        v = steps(g)
        torch.testing.assert_close(at.blocks.solve(at.blocks.times(v.double())), v.double())
        torch.testing.assert_close(at.blocks.times(at.blocks.solve(v)), v, rtol=0, atol=1e-3)
        assert at.blocks.solve(v).dtype == torch.float32

    def test_zero_volume(self, term: Neighbourhood | Ellipsoid) -> None:
        g = gaussians(5, tuple(term.values.shape), (0.5, 3))
        if isinstance(term, Ellipsoid):
            at = Ellipsoid(torch.zeros_like(term.values), term.k, term.normalised).linearise(g)
        else:
            at = Neighbourhood(torch.zeros_like(term.values), 1, term.normalised).linearise(g)
        assert torch.isfinite(at.blocks.solve(steps(g))).all()


@pytest.mark.parametrize("shape", [(30, 32), (15, 16, 17)], ids=str)
class TestBlocksAreClose:
    @pytest.mark.parametrize("normalised", [False, True])
    @pytest.mark.parametrize("k", [1.5, 3])
    def test_ellipsoid(self, shape: tuple[int, ...], k: float, normalised: bool) -> None:
        g = gaussians(8, shape, (1, 3))
        at = Ellipsoid(noise(shape), k, normalised).linearise(g)
        expected = own_blocks(at, g)
        mean = expected.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        got = as_matrices(at, g)[:, 1:, 1:]
        assert ((got - expected - 0.1 * mean * torch.eye(got.shape[1])).abs() < 1e-3 * mean).all()

    @pytest.mark.parametrize("radius", [1, 2, 3])
    def test_neighbourhood_of_a_constant(self, shape: tuple[int, ...], radius: float) -> None:
        g = gaussians(8, shape, (1, 1.5), margin=6)
        at = Neighbourhood(torch.full(shape, 0.5), radius, False).linearise(g)
        assert spread(at, g, low=0.4, high=1.5) < 3

    @pytest.mark.parametrize("normalised", [False, True])
    @pytest.mark.parametrize("radius", [1, 3])
    @pytest.mark.parametrize("smooth", [0, 1, 3])
    def test_neighbourhood_of_a_volume(
        self, shape: tuple[int, ...], radius: float, smooth: float, normalised: bool
    ) -> None:
        g = gaussians(12, shape, (1, 2.5))
        values = ndimage.gaussian_filter(noise(shape).numpy(), smooth)
        at = Neighbourhood(torch.from_numpy(values / values.std()), radius, normalised).linearise(g)
        spread(at, g, low=0.03, high=30)


def spread(at: LinearisedNeighbourhood, g: Gaussians, *, low: float, high: float) -> float:
    """Return the worst condition number of the true blocks after preconditioning; check their median size."""
    roots = torch.linalg.cholesky(as_matrices(at, g)[:, 1:, 1:])
    halves = torch.linalg.solve_triangular(roots, own_blocks(at, g), upper=False)
    eigenvalues = torch.linalg.eigvalsh(torch.linalg.solve_triangular(roots, halves.mT, upper=False))
    assert low < float(eigenvalues.mean(1).median()) < high
    return float((eigenvalues[:, -1] / eigenvalues[:, 0]).max())


class TestInitialSigma:
    @pytest.mark.parametrize("shape", [(90, 110), (40, 42, 44)], ids=str)
    @pytest.mark.parametrize("make", [(Neighbourhood, 1), (Neighbourhood, 2), (Ellipsoid, 1.5), (Ellipsoid, 3)])
    def test_total_support_is_about_one(self, shape: tuple[int, ...], make: tuple[type, float]) -> None:
        n_voxels, ndim, count = math.prod(shape), len(shape), 200
        kind, size = make
        term = kind(torch.ones(shape), size, False)  # predicts the support itself
        sigma = term.initial_sigma(n_voxels, count, ndim)
        assert sigma > 0.7
        random = torch.rand(count, ndim, generator=torch.Generator().manual_seed(0))
        g = Gaussians(
            random * torch.tensor(shape) - 0.5, (torch.eye(ndim) / sigma).expand(count, ndim, ndim), torch.ones(count)
        )
        # Some of it lies outside of the grid.
        assert 0.6 < float(term.predict(g).mean()) < 1.1

    def test_normalised(self) -> None:
        for term in (Neighbourhood(torch.ones(8, 8, 8), 2, True), Ellipsoid(torch.ones(8, 8, 8), 3, True)):
            assert term.initial_sigma(8000, 8, 3) == pytest.approx(5)

    @pytest.mark.parametrize("k", [0, -1, SUPPORT + 0.1, math.nan])
    def test_ellipsoids_no_larger_than_gaussians(self, k: float) -> None:
        with pytest.raises(ValueError, match=r"radius has to be positive and at most 3\.3"):
            Ellipsoid(torch.ones(8, 8), k, False)


# The artefacts


class TestCutSurfaces:
    @pytest.mark.parametrize("k", [1, 3])
    @pytest.mark.parametrize("shape", [(14, 15), (6, 7, 8), (1, 9)], ids=str)
    def test_are_where_membership_changes(self, shape: tuple[int, ...], k: float) -> None:
        g = gaussians(12, shape, (0.5, 2))
        g = g.join(g.select(torch.arange(4)))  # twins: what is counted twice does not cancel
        inside = (squared_radii(g, shape) < k**2).numpy().reshape(*shape, -1)
        surfaces = cut_surfaces(g, shape, k)
        assert len(surfaces) == len(shape)
        for axis, surface in enumerate(surfaces):
            assert surface.dtype == bool
            assert np.array_equal(surface, np.diff(inside, axis=axis).any(-1))

    def test_none(self) -> None:
        surfaces = cut_surfaces(gaussians(0, (5, 6), (1, 2)), (5, 6), 3)
        assert [s.shape for s in surfaces] == [(4, 6), (5, 5)]
        assert not any(s.any() for s in surfaces)


class TestSurfaceArtefact:
    @pytest.mark.parametrize("shape", [(80, 90), (30, 32, 34)], ids=str)
    def test_steps_show(self, shape: tuple[int, ...]) -> None:
        g = gaussians(30, shape, (1.5, 2.5))
        cut = splat_flat(*g[:2], noise((30,)), shape, 2) + 0.05 * noise(shape)
        measured = surface_artefact(cut, g, 2)
        assert measured.ratio > 30
        assert measured.excess > 10
        assert 0 < measured.share < 0.5
        # The same steps are no sign of a cut at another radius.
        assert surface_artefact(cut, g, 2.6).excess < 2

    @pytest.mark.parametrize("shape", [(80, 90), (30, 32, 34)], ids=str)
    def test_noise_shows_none(self, shape: tuple[int, ...]) -> None:
        measured = surface_artefact(noise(shape), gaussians(30, shape, (1.5, 2.5)), 2)
        assert measured.ratio == pytest.approx(1, abs=0.1)
        assert measured.control_ratio == pytest.approx(1, abs=0.1)
        assert measured.excess == pytest.approx(1, abs=0.1)
        assert measured.on_surface == pytest.approx(2, abs=0.2)  # of independent numbers of variance one

    def test_steep_residuals_near_gaussians_are_no_cut(self) -> None:
        shape = (60, 64)
        g = gaussians(6, shape, (2, 3), margin=10)
        C = one(2).expand(6, 6)
        smooth = splat(*g[:2], C, shape)
        measured = surface_artefact(smooth, g, 1)
        assert measured.ratio > 3
        assert measured.excess < 1.5

    def test_means_over_pairs(self) -> None:
        residual = np.array([[0, 0, 3, 3], [0, 0, 3, 4]], np.float32)
        g = Gaussians(torch.tensor([[0.5, 0.0]]), torch.diag(torch.tensor([1 / 10, 1 / 1.6]))[None], torch.ones(1))
        measured = surface_artefact(residual, g, 1)
        assert measured.on_surface == pytest.approx(9)  # two pairs of steps of 3
        assert measured.elsewhere == pytest.approx(2 / 8)  # two steps of 1 among the other eight pairs
        assert measured.ratio == pytest.approx(36)
        assert measured.share == pytest.approx(2 / 10)
        assert np.array_equal(artefact_map(residual, g, 1), [[0, 4.5, 4.5, 0], [0, 4.5, 4.5, 0]])

    def test_steps_on_surfaces_only(self) -> None:
        g = gaussians(5, (20, 21), (1, 2))
        measured = surface_artefact(splat_flat(*g[:2], torch.ones(5), (20, 21), 2), g, 2)
        assert measured.elsewhere == 0
        assert measured.ratio == math.inf

    @pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 6), (4, 5, 6)], ids=str)
    def test_nothing_to_compare(self, shape: tuple[int, ...]) -> None:
        some, none = gaussians(5, shape, (1, 2)), gaussians(0, shape, (1, 2))
        everywhere = gaussians(1, shape, (100, 101))
        for g in (none, everywhere):
            measured = surface_artefact(noise(shape), g, 3)
            assert math.isnan(measured.on_surface)
            assert math.isnan(measured.ratio)
            assert math.isnan(measured.excess)
            assert not artefact_map(noise(shape), g, 3).any()
        constant = surface_artefact(torch.ones(shape), some, 1)
        assert math.isnan(constant.ratio)
        assert math.isnan(constant.excess)

    def test_surfaces_everywhere(self) -> None:
        g = Gaussians(torch.zeros(1, 2), 3 * torch.eye(2)[None], torch.ones(1))
        measured = surface_artefact(np.array([[0.0, 1.0]]), g, 1)
        assert measured.on_surface == 1
        assert measured.share == 1
        assert math.isnan(measured.elsewhere)
        assert math.isnan(measured.ratio)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_map_holds_all_steps_on_surfaces(self, shape: tuple[int, ...]) -> None:
        g, residual = gaussians(4, shape, (0.5, 1)), noise(shape)
        shown = artefact_map(residual, g, 2)
        assert shown.dtype == np.float32
        assert shown.shape == shape
        surfaces = cut_surfaces(g, shape, 2)
        energy = sum(float((np.diff(residual, axis=a)[s] ** 2).sum()) for a, s in enumerate(surfaces))
        assert shown.sum() == pytest.approx(energy, rel=1e-5)
        beside = np.zeros(shape, bool)
        for axis, surface in enumerate(surfaces):
            for place in np.argwhere(surface):
                beside[tuple(place)] = True
                place[axis] += 1
                beside[tuple(place)] = True
        assert np.array_equal(shown > 0, beside)
        assert not beside.all()
