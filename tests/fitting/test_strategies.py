"""Where Gaussians are added: what each strategy keeps of the sum, and what it promises of the error."""

import math

import numpy as np
import pytest
import torch

from napari_gsvolume.fitting.growth import births
from napari_gsvolume.fitting.split_merge import merge_similar, semi_axes, split_in_halves, splitting_matrices
from napari_gsvolume.fitting.strategies import (
    STRATEGIES,
    AdaptiveDensity,
    Merging,
    Relocation,
    ResidualBirths,
    SteepestSplitting,
    strategy,
)
from napari_gsvolume.kernels.reference import grid_points
from napari_gsvolume.operators.gaussian_sum import Gaussians, predict, self_overlap

SHAPES = [(24, 24), (20, 20, 20), (1, 24, 24), (20, 1, 20), (9, 1), (1, 1, 30)]

pytestmark = pytest.mark.usefixtures("one_thread")


def some(count, shape, radii=(1.0, 2.5), seed=0):
    """Oblique Gaussians of both signs in the grid, their centres at 0 along thin axes."""
    random = np.random.default_rng(seed)
    ndim = len(shape)
    means = random.uniform(0, np.array(shape) - 1, (count, ndim))
    axes = np.linalg.qr(random.normal(size=(count, ndim, ndim)))[0]
    factors = axes / random.uniform(*radii, (count, 1, ndim))
    weights = random.uniform(0.3, 1, count) * random.choice([-1, 1], count)
    return Gaussians(*(torch.from_numpy(a.astype(np.float32)) for a in (means, factors, weights)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def round_ones(means, sigmas, weights):
    means, sigmas = torch.tensor(means, dtype=torch.float32), torch.tensor(sigmas, dtype=torch.float32)
    return Gaussians(means, torch.eye(means.shape[1]) / sigmas[:, None, None], torch.tensor(weights))


def noise(shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32))


def dense(gaussians, shape):
    """The sum at every voxel, float64, not cut off."""
    means, factors, weights = (t.double() for t in gaussians)
    y = torch.einsum("nab,mna->mnb", factors, grid_points(shape)[:, None] - means)
    return (torch.exp(-y.square().sum(-1) / 2) @ weights).reshape(shape)


def moments(values):
    """Mass, mean and covariance of a grid."""
    points, p = grid_points(values.shape), values.flatten() / values.sum()
    mean = p @ points
    d = points - mean
    return values.sum(), mean, torch.einsum("m,ma,mb->ab", p, d, d)


def assert_same_moments(one, other, rtol=1e-4, atol=1e-4):
    for a, b in zip(moments(one), moments(other), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def half_squares(values):
    return float(values.double().square().sum()) / 2


def masses(gaussians):
    return gaussians.weights / torch.linalg.det(gaussians.factors).abs()


def one(gaussians, i):
    return gaussians.select(torch.tensor([i]))


class TestNames:
    def test_all_are_there(self):
        assert STRATEGIES == ("residual", "gradient", "saddle", "mcmc", "merge")
        assert [strategy(name).name for name in STRATEGIES] == list(STRATEGIES)

    def test_another_is_refused(self, refused):
        with refused(ValueError, "magic", "residual", "mcmc"):
            strategy("magic")


@pytest.mark.parametrize("name", STRATEGIES)
class TestAll:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize(("present", "wanted"), [(5, 6), (5, 9), (1, 7), (0, 4)])
    def test_grow_gives_what_is_wanted(self, name, shape, present, wanted):
        g = some(present, shape)
        change = strategy(name).grow(g, noise(shape), wanted, seeded(0))
        assert change.kept.tolist() == [True] * present
        assert len(change.gaussians.weights) == wanted
        assert change.n_new == wanted - present
        assert all(torch.isfinite(t).all() for t in change.gaussians)
        assert (torch.linalg.det(change.gaussians.factors) != 0).all()
        # The kept ones come first and in order: none is further than some of its own radii from where it was.
        moved = (change.gaussians.means[:present] - g.means)[:, None] @ g.factors
        assert (moved.norm(dim=-1) < 4).all()
        thin = torch.tensor(shape) == 1
        assert (change.gaussians.means[:, thin] == 0).all()

    def test_twenty_times_as_many(self, name):
        g = some(10, (20, 20, 20))
        change = strategy(name).grow(g, noise((20, 20, 20)), 200, seeded(0))
        assert len(change.gaussians.weights) == 200
        assert int((change.gaussians.weights == 0).sum()) >= 180

    @pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
    def test_grow_keeps_the_mass(self, name, shape):
        g = some(12, shape)
        grown = strategy(name).grow(g, 10 * noise(shape), 20, seeded(0)).gaussians
        torch.testing.assert_close(masses(grown).sum(), masses(g).sum(), rtol=1e-4, atol=1e-3)

    def test_growing_leaves_what_it_was_given(self, name):
        g, residual = some(12, (20, 20)), noise((20, 20))
        before = [t.clone() for t in (*g, residual)]
        strategy(name).grow(g, residual, 20, seeded(0))
        strategy(name).rearrange(g, residual, seeded(0))
        assert all(torch.equal(*pair) for pair in zip(before, (*g, residual), strict=True))

    def test_a_seed_gives_the_same_bits_and_another_others(self, name):
        g, residual = some(12, (20, 20, 20)), noise((20, 20, 20))
        first, again, other = (strategy(name).grow(g, residual, 40, seeded(seed)).gaussians for seed in (3, 3, 4))
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
        assert not torch.equal(first.means, other.means)

    @pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
    def test_rearranging_keeps_the_number(self, name, shape):
        g = some(50, shape, radii=(0.8, 1.5))
        g = g.join(one(g, 7)).join(g._replace(weights=g.weights / 1e4).select(torch.arange(5)))
        change = strategy(name).rearrange(g, noise(shape), seeded(0))
        assert (change is None) == (name not in ("mcmc", "merge"))
        if change is not None:
            assert change.n_new == int((~change.kept).sum()) > 0
            assert len(change.gaussians.weights) == len(g.weights) == len(change.kept)
            assert all(torch.isfinite(t).all() for t in change.gaussians)

    def test_nothing_is_left_to_explain(self, name):
        g = some(6, (20, 20))
        grown = strategy(name).grow(g, torch.zeros(20, 20), 9, seeded(0)).gaussians
        assert len(grown.weights) == 9
        assert all(torch.isfinite(t).all() for t in grown)


@pytest.mark.parametrize("kind", [ResidualBirths, Merging])
def test_residual_births_are_births(kind):
    g, residual = some(12, (20, 20, 20)), noise((20, 20, 20))
    change = kind().grow(g, residual, 30, seeded(3))
    expected = g.join(births(residual, 18, 12, seeded(3)))
    assert all(torch.equal(*pair) for pair in zip(change.gaussians, expected, strict=True))


class TestHalves:
    @pytest.mark.parametrize("shape", [(41, 41), (33, 33, 33)], ids=str)
    def test_keep_mass_mean_and_covariance(self, shape):
        for g in (one(some(5, shape, radii=(1.2, 3), seed=seed), 0) for seed in range(3)):
            g = g._replace(means=torch.full_like(g.means, shape[0] // 2 + 0.3))
            plus, minus = split_in_halves(g, shape, 0.7)
            pair = dense(plus.join(minus), shape)
            assert_same_moments(pair, dense(g, shape))
            assert (pair - dense(g, shape)).abs().max() > 1e-2 * g.weights.abs()

    def test_are_apart_along_the_longest_axis_and_shorter_there(self):
        g = Gaussians(torch.zeros(1, 3), torch.diag(torch.tensor([1.0, 0.25, 0.5]))[None], torch.ones(1))
        plus, minus = split_in_halves(g, (9, 9, 9), 0.6)
        assert (plus.means - minus.means).abs().flatten().tolist() == pytest.approx([0, 2 * 0.6 * 4, 0], abs=1e-5)
        for half in (plus, minus):
            assert semi_axes(half, (9, 9, 9))[0][0].norm(dim=1).tolist() == pytest.approx([3.2, 2, 1], rel=1e-5)

    def test_change_the_sum_from_fourth_order_on(self):
        shape = (25, 25)
        g = round_ones([[12, 12]], [2], [1.0])
        pairs = (a.join(b) for a, b in (split_in_halves(g, shape, share) for share in (0.2, 0.4)))
        changes = [(dense(pair, shape) - dense(g, shape)).norm() for pair in pairs]
        assert changes[1] / changes[0] == pytest.approx(16, rel=0.3)

    def test_factors_are_axes_over_radii(self):
        g = some(20, (20, 20, 20))
        turned = torch.linalg.qr(torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
        plus, minus = split_in_halves(g._replace(factors=g.factors @ turned), (20, 20, 20), 0.7)
        for half in (plus, minus):
            gram = half.factors.mT @ half.factors
            torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), atol=1e-5, rtol=1e-5)

    def test_on_a_thin_grid_the_section_keeps_its_moments(self):
        shape = (1, 41, 41)
        g = some(1, shape, radii=(1.5, 3))
        g = g._replace(means=torch.tensor([[0.0, 20.2, 19.7]]))
        plus, minus = split_in_halves(g, shape, 0.7)
        assert plus.means[0, 0] == minus.means[0, 0] == 0
        assert_same_moments(dense(plus.join(minus), shape)[0], dense(g, shape)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_semi_axes(shape):
    g = some(15, shape)
    axes, whitened = semi_axes(g, shape)
    thick = [k for k, n in enumerate(shape) if n > 1]
    assert axes.shape == whitened.shape == (15, len(thick), len(shape))
    torch.testing.assert_close(axes @ g.factors, whitened, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whitened @ whitened.mT, torch.eye(len(thick)).expand(15, -1, -1), atol=1e-5, rtol=0)
    lengths = axes.norm(dim=2)
    assert (lengths[:, :-1] >= lengths[:, 1:]).all()
    section = torch.linalg.inv((g.factors @ g.factors.mT)[:, thick][:, :, thick])
    torch.testing.assert_close((axes.mT @ axes)[:, thick][:, :, thick], section, atol=1e-4, rtol=1e-4)


class TestGradient:
    def two(self, sigma):
        """A Gaussian in the place of two smaller ones, another that is right, and the residual of both."""
        shape = (20, 40)
        truth = round_ones([[10, 8], [10, 12], [10, 30]], [0.5 * sigma, 0.5 * sigma, 2], [1.0, 1, 1])
        g = round_ones([[10, 10], [10, 30]], [sigma, 2], [1.0, 1])
        g.factors[0, 1, 1] /= 1.2
        return g, (dense(truth, shape) - dense(g, shape)).float()

    def test_a_large_one_with_the_error_is_split(self):
        g, residual = self.two(4)
        change = AdaptiveDensity(threshold=1, large=0.1).grow(g, residual, 3, seeded(0))
        plus, minus = split_in_halves(one(g, 0), (20, 40), 0.7)
        expected = plus.join(one(g, 1)).join(minus)
        assert all(torch.allclose(*pair) for pair in zip(change.gaussians, expected, strict=True))
        assert change.kept.tolist() == [True, True]

    def test_a_small_one_with_the_error_is_cloned(self):
        g, residual = self.two(4)
        grow = AdaptiveDensity(threshold=1, large=9, pace=0.4).grow
        clones = grow(g, residual, 3, seeded(0)).gaussians
        assert clones.weights.tolist() == [0.5, 1, 0.5]
        assert torch.equal(clones.means[:2], g.means)
        assert torch.equal(clones.factors, g.factors[[0, 1, 0]])
        moved = g.factors[0].T @ (clones.means[2] - g.means[0])
        assert moved.norm() == pytest.approx(0.4, rel=1e-4)

    @pytest.mark.parametrize("shape", [(20, 20), (14, 14, 14), (1, 20, 20)], ids=str)
    def test_a_clone_goes_downhill_by_half_of_the_slope(self, shape):
        g = one(some(1, shape, radii=(1.5, 2)), 0)
        g = g._replace(means=torch.tensor(shape)[None] // 2 + torch.zeros_like(g.means))
        target = dense(g._replace(means=g.means + torch.tensor([n > 1 for n in shape]) * 0.8), shape)
        residual = target - dense(g, shape)
        pace = 1e-2
        grow = AdaptiveDensity(threshold=0.5, large=math.inf, pace=pace).grow
        clones = grow(g, residual.float(), 2, seeded(0)).gaussians
        change = half_squares(target - dense(clones, shape)) - half_squares(residual)
        # The steepest way the centre can go, in its radii.
        steps = np.random.default_rng(0).normal(size=(400, len(shape))) * (np.array(shape) > 1)
        slopes = []
        for step in torch.from_numpy(steps.astype(np.float32)):
            step = step / (step @ g.factors[0]).norm() * 1e-3
            moved = dense(g._replace(means=g.means + step), shape)
            slopes.append((half_squares(target - moved) - half_squares(residual)) / 1e-3)
        assert change / (pace / 2) == pytest.approx(min(slopes), rel=0.05)
        assert min(slopes) < -0.1

    def test_the_score_adds_up_squares_of_single_voxels(self):
        """An even residual does not pull a centre anywhere, and yet its Gaussian is chosen."""
        g = round_ones([[10, 10], [10, 30]], [3, 3], [1.0, 1])
        residual = torch.zeros(20, 40)
        residual[10, 8] = residual[10, 12] = 1
        residual[10, 30] = 3  # at its centre a Gaussian has no slope
        for large in (0.1, math.inf):
            grown = AdaptiveDensity(threshold=1, large=large).grow(g, residual, 3, seeded(0)).gaussians
            assert grown.weights[1] == 1
            assert grown.weights[2] == grown.weights[0] != 1
            assert (grown.means[2] - grown.means[0]).norm() > 0.4 * 3 * 0.99

    def test_of_two_with_the_same_error_the_heavy_one_is_chosen(self):
        g = round_ones([[10, 10], [10, 30]], [3, 3], [1.0, 2])
        residual = torch.zeros(20, 40)
        residual[10, [8, 12, 28, 32]] = 1
        grown = AdaptiveDensity(threshold=1).grow(g, residual, 3, seeded(0)).gaussians
        assert grown.weights[0] == 1
        assert grown.weights[1] != 2

    def test_the_rest_are_births(self):
        g, residual = self.two(4)
        grown = AdaptiveDensity().grow(g, residual, 8, seeded(0)).gaussians
        assert int((grown.weights == 0).sum()) >= 4


class TestSaddle:
    @pytest.mark.parametrize("shape", [(30, 30), (24, 24, 24)], ids=str)
    def test_eigenvalues_are_second_differences_of_the_loss(self, shape):
        random = np.random.default_rng(2)
        middle = torch.tensor(shape) / 2
        g = one(some(1, shape, radii=(1.5, 2.2)), 0)
        g = g._replace(means=middle[None] + torch.from_numpy(random.uniform(-1, 1, (1, len(shape))).astype(np.float32)))
        others = some(3, shape, radii=(1.5, 3), seed=4)
        target = dense(others._replace(means=middle + others.means / 5 - middle / 5), shape)
        residual = target - dense(g, shape)
        C = splitting_matrices(g, residual.float())[0].double()
        torch.testing.assert_close(C, C.T)
        values, vectors = torch.linalg.eigh(C)
        assert float(values[-1] - values[0]) > 0.5
        s = 0.03
        for value, v in zip(values, vectors.T, strict=True):
            delta = torch.linalg.solve(g.factors[0].double().T, s * v)
            pair = [Gaussians(g.means.double() + sign * delta, g.factors, g.weights / 2) for sign in (1, -1)]
            change = half_squares(target - dense(pair[0].join(pair[1]), shape)) - half_squares(residual)
            # The kernels cut Gaussians off where they are 0.4 % of their peak: some per cent of a second moment.
            assert change / (s**2 / 2) == pytest.approx(float(value), rel=0.05, abs=0.05 * float(values.abs().max()))

    @pytest.mark.parametrize("along", [(1, 0), (3, 4), (1, 2, 2)], ids=str)
    def test_one_between_two_blobs_is_split_towards_them(self, along):
        ndim = len(along)
        shape = (31,) * ndim
        u = torch.tensor(along) / math.hypot(*along)
        middle = torch.full((ndim,), 15.0)
        two = round_ones([(middle + 4.5 * u).tolist(), (middle - 4.5 * u).tolist()], [2, 2], [1.0, 1])
        g = round_ones([middle.tolist()], [3.2], [0.6])
        target = dense(two, shape)
        residual = target - dense(g, shape)
        saddle = SteepestSplitting(threshold=0)
        offsets, decrease = saddle.splits(g, residual.float())
        assert abs(float(offsets[0] @ u)) == pytest.approx(float(offsets[0].norm()), rel=1e-3)
        change = saddle.grow(g, residual.float(), 2, seeded(0))
        assert change.kept.tolist() == [True]
        assert change.gaussians.weights.tolist() == pytest.approx([0.3, 0.3])
        assert torch.equal(change.gaussians.factors, g.factors.expand(2, -1, -1))
        torch.testing.assert_close(change.gaussians.means, torch.cat([middle + offsets, middle - offsets]))
        gained = half_squares(residual) - half_squares(target - dense(change.gaussians, shape))
        assert gained > 0.1 * half_squares(residual)
        assert gained == pytest.approx(float(decrease[0]), rel=0.35)

    def test_a_short_split_lowers_the_error_as_it_says(self):
        shape = (31, 31)
        target = dense(round_ones([[15, 11], [15, 19]], [2, 2], [1.0, 1]), shape)
        g = round_ones([[15, 15]], [3.2], [0.6])
        residual = target - dense(g, shape)
        saddle = SteepestSplitting(threshold=0, shortest=0.05, longest=0.05)
        _, decrease = saddle.splits(g, residual.float())
        pair = saddle.grow(g, residual.float(), 2, seeded(0)).gaussians
        gained = half_squares(residual) - half_squares(target - dense(pair, shape))
        assert gained == pytest.approx(float(decrease[0]), rel=0.05)

    def test_where_it_does_not_help_none_is_split(self):
        shape = (31, 31)
        g = round_ones([[15, 15]], [3], [1.0])
        residual = (dense(round_ones([[15, 15]], [2], [1.0]), shape) - dense(g, shape)).float()
        grown = SteepestSplitting().grow(g, residual, 2, seeded(0)).gaussians
        assert grown.weights.tolist() == [1, 0]
        assert torch.equal(grown.means[:1], g.means)

    def test_the_one_that_gains_most_is_split(self):
        shape = (31, 62)
        means = [[15, 11], [15, 19], [15, 43], [15, 49]]
        target = dense(round_ones(means, [2.0] * 4, [1.0] * 4), shape)
        g = round_ones([[15, 46], [15, 15]], [3.2, 3.2], [0.6, 0.6])
        residual = (target - dense(g, shape)).float()
        grown = SteepestSplitting(threshold=0).grow(g, residual, 3, seeded(0)).gaussians
        assert grown.weights.tolist() == pytest.approx([0.6, 0.3, 0.3])


class TestRelocation:
    @pytest.mark.parametrize("shape", [(30, 30), (20, 20, 20), (1, 24, 24)], ids=str)
    @pytest.mark.parametrize("wanted", [13, 24])
    def test_without_noise_nothing_changes(self, shape, wanted):
        g = some(12, shape)
        grown = Relocation(noise=0).grow(g, noise(shape), wanted, seeded(0)).gaussians
        assert (grown.weights != 0).all()
        torch.testing.assert_close(dense(grown, shape), dense(g, shape), atol=1e-6, rtol=0)
        assert torch.equal(grown.factors[:12], g.factors)

    def test_noise_keeps_the_mean_of_copies_and_parts_them(self):
        g = some(12, (20, 20, 20))
        grown = Relocation().grow(g, noise((20, 20, 20)), 24, seeded(0)).gaussians
        before = (masses(g)[:, None] * g.means).sum(0)
        torch.testing.assert_close((masses(grown)[:, None] * grown.means).sum(0), before, atol=1e-2, rtol=1e-4)
        assert len(torch.unique(grown.means, dim=0)) == 24
        shift = (predict(grown, (20, 20, 20)) - predict(g, (20, 20, 20))).abs().max()
        assert shift > 0.01

    def test_high_energy_is_copied_more_often(self):
        g = round_ones([[10.0 * i, 10] for i in range(1, 5)], [2] * 4, [1.0, 0.1, 1, 0.1])
        strong = 0
        for seed in range(10):
            grown = Relocation(noise=0).grow(g, torch.zeros(50, 20), 8, seeded(seed)).gaussians
            strong += int(((grown.means[4:, 0] == 10) | (grown.means[4:, 0] == 30)).sum())
        assert strong >= 36  # 99 % of the energy

    def test_the_dead_join_the_living(self):
        shape = (40, 40)
        g = some(100, shape)
        dead = torch.zeros(100, dtype=torch.bool)
        dead[[3, 50]] = True
        g = g._replace(weights=torch.where(dead, 1e-4, g.weights))
        change = Relocation(noise=0).rearrange(g, noise(shape), seeded(0))
        assert torch.equal(change.kept, ~dead)
        assert len(change.gaussians.weights) == 100
        living = g.select(~dead)
        torch.testing.assert_close(dense(change.gaussians, shape), dense(living, shape), atol=1e-6, rtol=0)
        assert torch.equal(change.gaussians.means[:98], living.means)

    def test_no_more_than_a_few_at_a_time_the_weakest_first(self):
        g = some(100, (40, 40))
        g = g._replace(weights=g.weights * torch.where(torch.arange(100) < 20, 1e-4 * torch.arange(100), 1.0))
        change = Relocation(most=0.05).rearrange(g, noise((40, 40)), seeded(0))
        assert change.n_new == 5
        energy = g.weights**2 * self_overlap(g)
        assert (~change.kept).nonzero().flatten().max() < 20
        assert not change.kept[energy.argmin()]

    def test_where_all_are_alive_nothing_is_done(self):
        g = some(100, (40, 40))
        assert Relocation().rearrange(g, 1e-3 * noise((40, 40)), seeded(0)) is None


class TestMerging:
    @pytest.mark.parametrize("shape", [(41, 41), (33, 33, 33)], ids=str)
    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_merged_pair_keeps_its_moments(self, shape, sign):
        middle = shape[0] / 2
        for seed in range(4):
            a = some(1, shape, radii=(1.5, 3), seed=seed)
            a = a._replace(means=torch.full_like(a.means, middle), weights=sign * a.weights.abs())
            b = Gaussians(a.means + 0.4, a.factors * 1.1, a.weights * 0.5)
            change = merge_similar(a.join(b), 0.7)
            assert change.kept.tolist() == [True, False]
            assert change.n_new == 0
            assert_same_moments(dense(change.gaussians, shape), dense(a.join(b), shape))
            gram = change.gaussians.factors.mT @ change.gaussians.factors
            torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), atol=1e-5, rtol=1e-5)

    def test_halves_become_their_parent_again(self):
        g = some(20, (80, 80, 80))
        g = g._replace(means=20 * torch.stack(torch.unravel_index(torch.arange(20), (3, 3, 3)), 1).float())
        change = merge_similar(
            split_in_halves(g, (80, 80, 80), 0.3)[0].join(split_in_halves(g, (80, 80, 80), 0.3)[1]), 0.8
        )
        assert change.kept.sum() == 20
        torch.testing.assert_close(change.gaussians.means, g.means, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(change.gaussians.weights, g.weights, atol=1e-3, rtol=1e-3)
        P, expected = (h.factors @ h.factors.mT for h in (change.gaussians, g))
        torch.testing.assert_close(P, expected, atol=1e-3, rtol=1e-3)

    def test_the_threshold_is_the_overlap(self):
        """Equal round ones overlap by exp(-d^2 / 4 sigma^2)."""
        g = round_ones([[0, 0, 0], [1, 0, 0]], [1.5, 1.5], [1.0, 2])
        overlap = math.exp(-1 / (4 * 1.5**2))
        assert merge_similar(g, overlap + 1e-3).kept.all()
        assert merge_similar(g, overlap - 1e-3).kept.tolist() == [False, True]

    def test_opposite_signs_and_zero_are_never_merged(self):
        g = round_ones([[5, 5]] * 3, [2, 2, 2], [1.0, -1, 0])
        change = merge_similar(g, 0.5)
        assert change.kept.all()
        assert all(torch.equal(*pair) for pair in zip(change.gaussians, g, strict=True))

    def test_different_shapes_are_not_merged(self):
        factors = torch.stack([torch.diag(torch.tensor([1, 0.2])), torch.diag(torch.tensor([0.2, 1]))])
        assert merge_similar(Gaussians(torch.zeros(2, 2), factors, torch.ones(2)), 0.8).kept.all()

    def test_closest_first_and_each_in_one_pair(self):
        g = round_ones([[0, 5], [0.5, 5], [0.7, 5], [30, 5]], [2] * 4, [1.0, 1, 1.1, 1])
        change = merge_similar(g, 0.8)
        assert change.kept.tolist() == [True, False, True, True]
        assert change.gaussians.means[:, 0].tolist() == pytest.approx([0, 0.605, 30], abs=1e-2)
        assert torch.equal(change.gaussians.weights[[0, 2]], torch.ones(2))

    def test_a_pile_becomes_half_as_many(self):
        g = round_ones([[5.0, 5, 5]] * 7, [2.0] * 7, [1.0] * 7)
        change = merge_similar(g, 0.8)
        assert change.kept.sum() == 4
        assert sorted(change.gaussians.weights.tolist()) == pytest.approx([1, 2, 2, 2], rel=1e-5)

    @pytest.mark.parametrize("count", [0, 1])
    def test_none_to_merge(self, count):
        assert len(merge_similar(some(count, (9, 9))).kept) == count

    def test_births_take_the_freed_places(self):
        shape = (40, 40)
        g = round_ones([[10, 10], [10.5, 10], [30, 30]], [2] * 3, [1.0, 0.5, 1])
        residual = torch.zeros(shape)
        residual[25, 8] = 1
        change = Merging().rearrange(g, residual, seeded(0))
        assert change.kept.tolist() == [True, False, True]
        assert change.n_new == 1
        assert change.gaussians.weights[2] == 0
        assert (change.gaussians.means[2] - torch.tensor([25.0, 8])).norm() < 6
        assert Merging().rearrange(g.select(change.kept), residual, seeded(0)) is None
