import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_gsvolume.fitting import neighbours
from napari_gsvolume.fitting.neighbours import nearest_pairs, overlapping_pairs
from napari_gsvolume.fitting.penalties import (
    Overlap,
    Penalty,
    Smoothness,
    Spacing,
    Sparsity,
    clip_to_orthant,
    mean_overlap,
    pseudo_gradient,
    spacings,
)
from napari_gsvolume.kernels import n_monomials
from napari_gsvolume.operators.gaussian_sum import Gaussians

NDIMS = pytest.mark.parametrize("ndim", [2, 3])
MAKE: dict[str, Callable[[int, tuple[int, ...]], Penalty]] = {
    "sparsity": lambda count, shape: Sparsity(count),
    "overlap": lambda count, shape: Overlap(count),
    "smoothness": Smoothness,
    "spacing": lambda count, shape: Spacing(count, target=0.8),
}
ALL = pytest.mark.parametrize("name", MAKE)
CURVED = pytest.mark.parametrize("name", ["overlap", "smoothness", "spacing"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: on a busy machine threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussians(n: int, ndim: int, radii: tuple[float, float] = (0.5, 2.0), *, seed: int = 0) -> Gaussians:
    """Return Gaussians of any orientation, about one in each cube of two voxels, in float64."""
    random = np.random.default_rng(seed)
    means = random.uniform(0, 2 * max(n, 1) ** (1 / ndim), (n, ndim))
    axes = np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    scales = radii[0] * (radii[1] / radii[0]) ** random.uniform(size=(n, 1, ndim))
    factors = axes / scales @ np.linalg.qr(random.normal(size=(n, ndim, ndim)))[0]
    weights = random.uniform(0.3, 2, n) * random.choice([-1, 1], n)
    return Gaussians(*(torch.from_numpy(a) for a in (means, factors, weights)))


def refreshed(name: str, g: Gaussians, shape: tuple[int, ...] | None = None) -> Penalty:
    penalty = MAKE[name](len(g.weights), shape or (20,) * g.means.shape[1])
    penalty.refresh(g)
    return penalty


def round_ones(means: list[list[float]], radii: list[float]) -> Gaussians:
    mu = torch.tensor(means, dtype=torch.float64)
    factors = torch.eye(mu.shape[1], dtype=torch.float64) / torch.tensor(radii, dtype=torch.float64)[:, None, None]
    return Gaussians(mu, factors, torch.ones(len(mu), dtype=torch.float64))


def on_grid(g: Gaussians, spacing: float = 0.2, reach: float = 7.0) -> tuple[Tensor, float]:
    """Return every Gaussian at the points of a fine grid around them all, (N, ...), and the volume of a cell."""
    low, high = g.means.amin(0) - reach, g.means.amax(0) + reach
    axes = [torch.arange(float(a), float(b), spacing, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    e = [torch.exp(-((points - mu) @ W).square().sum(-1) / 2) for mu, W in zip(g.means, g.factors, strict=True)]
    return torch.stack(e), spacing ** len(axes)


def all_overlaps(g: Gaussians) -> Tensor:
    """Return o of all with all, (N, N), by the product of two Gaussians: int e_i e_j in terms of precisions."""
    ndim, P = g.means.shape[1], g.factors @ g.factors.mT
    S = torch.linalg.inv(P)
    d = g.means[:, None] - g.means
    h = (d[:, :, None] @ torch.linalg.inv(S[:, None] + S) @ d[:, :, :, None])[:, :, 0, 0]
    product = (2 * math.pi) ** (ndim / 2) * torch.linalg.det(P[:, None] + P).rsqrt() * torch.exp(-h / 2)
    energy: Tensor = math.pi ** (ndim / 2) / torch.linalg.det(g.factors).abs()
    overlap: Tensor = product / (energy[:, None] * energy).sqrt()
    return overlap


def hessian(penalty: Penalty, g: Gaussians, h: float = 1e-3) -> Tensor:
    """Return the second differences of the value by the parameters of the whitened step, row by row."""
    size = penalty.gradient(g).numel()
    units = h * torch.eye(size, dtype=torch.float64)

    def value(step: Tensor) -> float:
        return float(penalty.value(g.moved(step.view(len(g.weights), -1))))

    H = torch.zeros(size, size, dtype=torch.float64)
    even = [value(u) + value(-u) - 2 * float(penalty.value(g)) for u in units]
    for a in range(size):
        H[a, a] = even[a]
        for b in range(a):
            both = value(units[a] + units[b]) + value(-units[a] - units[b]) - 2 * float(penalty.value(g))
            H[a, b] = H[b, a] = (both - even[a] - even[b]) / 2
    return H / h**2


@NDIMS
@ALL
class TestEveryPenalty:
    def test_gradient_is_the_slope(self, name: str, ndim: int) -> None:
        g = gaussians(12, ndim)
        penalty = refreshed(name, g)
        gradient = penalty.gradient(g)
        assert gradient.shape == (12, n_monomials(ndim))
        for seed in range(4):
            random = torch.Generator().manual_seed(seed)
            step = torch.randn(gradient.shape, dtype=torch.float64, generator=random)
            if seed == 3:
                step[1:] = 0  # one alone, so that the others do not drown its errors
            h = 1e-4
            slope = float(penalty.value(g.moved(h * step)) - penalty.value(g.moved(-h * step))) / (2 * h)
            # The differences' own error is of order h^2.
            assert float((gradient * step).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)

    def test_single_precision(self, name: str, ndim: int) -> None:
        g = gaussians(12, ndim)
        penalty = refreshed(name, g)
        single = Gaussians(*(t.float() for t in g))
        assert penalty.value(single) == pytest.approx(float(penalty.value(g)), rel=1e-5)
        for got, expected in (
            (penalty.gradient(single), penalty.gradient(g)),
            (penalty.curvature(single), penalty.curvature(g)),
        ):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    def test_scaling_grid_and_gaussians_changes_nothing(self, name: str, ndim: int) -> None:
        g = gaussians(30, ndim)
        larger = Gaussians(3 * g.means, g.factors / 3, g.weights)
        small, large = refreshed(name, g, (10,) * ndim), refreshed(name, larger, (30,) * ndim)
        assert small.value(g) > 0.01
        assert large.value(larger) == pytest.approx(float(small.value(g)), rel=1e-9)
        torch.testing.assert_close(large.gradient(larger), small.gradient(g))

    def test_is_a_mean(self, name: str, ndim: int) -> None:
        """Twice as many Gaussians for twice the volume."""
        g = gaussians(30, ndim)
        twice = g.join(g._replace(means=g.means + 1000))
        one, two = refreshed(name, g, (10,) * ndim), refreshed(name, twice, (20, *(10,) * (ndim - 1)))
        assert two.value(twice) == pytest.approx(float(one.value(g)), rel=1e-9)
        two.count = 30
        two.refresh(twice)
        assert two.value(twice) > 1.9 * one.value(g)

    @pytest.mark.parametrize("n", [0, 1])
    def test_few(self, name: str, ndim: int, n: int) -> None:
        g = gaussians(n, ndim)
        penalty = refreshed(name, g)
        alone = name in ("overlap", "spacing") or n == 0
        assert (penalty.value(g) == 0) == alone
        for rows in (penalty.gradient(g), penalty.curvature(g)):
            assert rows.shape == (n, n_monomials(ndim))
            assert torch.isfinite(rows).all()

    def test_coincident_centres(self, name: str, ndim: int) -> None:
        # More of them than a Gaussian has neighbours; the first four are identical.
        g = gaussians(12, ndim)
        g.means[:10] = g.means[0].clone()
        g.factors[:4] = g.factors[0].clone()
        penalty = refreshed(name, g)
        assert math.isfinite(penalty.value(g))
        assert torch.isfinite(penalty.gradient(g)).all()
        assert torch.isfinite(penalty.curvature(g)).all()

    def test_curvature_is_not_negative(self, name: str, ndim: int) -> None:
        g = gaussians(40, ndim)
        curvature = refreshed(name, g).curvature(g)
        assert (curvature >= 0).all()
        assert (curvature[:, 0] == 0).all()
        assert (curvature[:, 1 + ndim :] > 0).all() == (name != "sparsity")


@NDIMS
@CURVED
class TestCurvature:
    @pytest.mark.parametrize("radii", [(0.8, 0.9), (0.4, 2.0), (2.0, 4.0)], ids=str)
    def test_bounds_the_hessian(self, name: str, ndim: int, radii: tuple[float, float]) -> None:
        g = gaussians(4 if ndim == 2 else 3, ndim, radii)
        penalty = refreshed(name, g)
        H, bound = hessian(penalty, g), penalty.curvature(g).flatten()
        used = bound > 0
        assert float(H[~used].abs().sum()) < 1e-6
        scale = bound[used].rsqrt()
        largest = float(torch.linalg.eigvalsh(scale[:, None] * H[used][:, used] * scale).max())
        # Of spacing the part with second derivatives of s is left out; and a bound must not be far off.
        assert 0.05 < largest < (1.2 if name == "spacing" else 1.0001)

    def test_is_good_for_descent(self, name: str, ndim: int) -> None:
        g = gaussians(30, ndim)
        penalty = refreshed(name, g)
        values = [penalty.value(g)]
        for _ in range(20):
            curvature = penalty.curvature(g)
            step = torch.where(curvature > 0, -penalty.gradient(g) / curvature, 0.0)
            g = g.moved(step.clamp(-0.3, 0.3))
            values.append(penalty.value(g))
        assert (np.diff(values) < 0).all()
        assert values[-1] < 0.7 * values[0]


class TestSparsity:
    def test_value_and_gradient(self) -> None:
        g = gaussians(4, 2)._replace(weights=torch.tensor([0.5, -2, 0, 1e-9], dtype=torch.float64))
        penalty = refreshed("sparsity", g)
        assert penalty.value(g) == pytest.approx(2.5 / 4)
        assert penalty.gradient(g)[:, 0].tolist() == [0.25, -0.25, 0, 0.25]
        assert (penalty.gradient(g)[:, 1:] == 0).all()

    def test_pseudo_gradient(self) -> None:
        weights = torch.tensor([2.0, -2.0, 0, 0, 0, 0])
        downhill = torch.tensor([1.0, 1.0, 3, -3, 0.4, -0.5])
        assert pseudo_gradient(downhill, weights, 0.5).tolist() == [0.5, 1.5, 2.5, -2.5, 0, 0]

    def test_within_orthant(self) -> None:
        old = torch.tensor([1.0, 1, -1, -1, 0, 0, 0, 0, 1])
        new = torch.tensor([0.5, -0.5, -2, 2, 3, 3, -3, 3, 0])
        pseudo = torch.tensor([-1.0, -1, -1, 1, 2, -2, -2, 0, -1])
        assert clip_to_orthant(old, new, pseudo).tolist() == [0.5, 0, -2, 0, 3, 0, -3, 0, 0]

    def test_descent_ends_at_the_soft_threshold(self) -> None:
        aim = torch.tensor([2.0, -2, 0.3, -0.3, 1.5, 0.9], dtype=torch.float64)
        w = torch.tensor([0.0, 1, 1, 0, -4, 0], dtype=torch.float64)
        for _ in range(60):
            pseudo = pseudo_gradient(aim - w, w, 1.0)  # of (w - aim)^2 / 2
            w = clip_to_orthant(w, w + 0.7 * pseudo, pseudo)
        torch.testing.assert_close(w, torch.tensor([1.0, -1, 0, 0, 0.5, 0], dtype=torch.float64))
        assert (w[[2, 3, 5]] == 0).all()


class TestOverlap:
    @NDIMS
    def test_value_is_the_integral(self, ndim: int) -> None:
        g = gaussians(3, ndim, (0.7, 1.5))
        e, cell = on_grid(g)
        products = torch.einsum("i...,j...->ij", e, e) * cell
        energy = products.diagonal()
        expected = float((products / (energy[:, None] * energy).sqrt()).sum()) / 3 - 1  # less i = j
        assert expected > 0.1
        assert refreshed("overlap", g).value(g) == pytest.approx(expected, rel=1e-6)

    @NDIMS
    def test_identical_ones_overlap_fully(self, ndim: int) -> None:
        g = gaussians(1, ndim).select(torch.zeros(5, dtype=torch.int64))
        assert refreshed("overlap", g).value(g) == pytest.approx(4)
        assert mean_overlap(g, (100,) * ndim) == pytest.approx(4)

    @NDIMS
    @pytest.mark.parametrize("radii", [(0.8, 1.2), (0.1, 2.0), (0.05, 30.0)], ids=str)
    @pytest.mark.parametrize("together", [1 << 19, 100])
    def test_finds_all_pairs_above_the_threshold(
        self, ndim: int, radii: tuple[float, float], together: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(neighbours, "_CANDIDATES", together)
        g = gaussians(150, ndim, radii)
        expected = torch.triu(all_overlaps(g) >= 1e-3, 1)
        found = overlapping_pairs(g, 1e-3)
        assert 100 < len(expected.nonzero()) == found.shape[1]
        assert expected[found.amin(0), found.amax(0)].all()
        assert len({tuple(pair) for pair in found.T.tolist()}) == found.shape[1]

    @NDIMS
    def test_little_is_left_out(self, ndim: int) -> None:
        g = gaussians(400, ndim, (0.9, 1.1))
        exact = float(all_overlaps(g).fill_diagonal_(0).sum()) / 400
        assert 0.99 * exact < refreshed("overlap", g).value(g) < exact

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Huge Gaussians reach all others: those pairs are not all looked at at once."""
        monkeypatch.setattr(neighbours, "_CANDIDATES", 500)
        g = gaussians(300, 3, (0.2, 0.3))
        g.factors[::30] = torch.eye(3, dtype=torch.float64) / 100
        sizes: list[int] = []
        true_overlaps = neighbours.overlaps

        def overlaps(table: Tensor, pairs: Tensor) -> neighbours.Overlaps:
            sizes.append(pairs.shape[1])
            return true_overlaps(table, pairs)

        monkeypatch.setattr(neighbours, "overlaps", overlaps)
        overlapping_pairs(g, 1e-6)
        assert sum(sizes) > 10 * 270
        assert max(sizes) <= 800

    def test_mean_of_those_in_the_grid(self) -> None:
        g = round_ones([[5.0, 5.0], [5.0, 6.0], [-3.0, 5.0], [-3.0, 5.0]], [1.0] * 4)
        within = math.exp(-1 / 4)  # of round Gaussians of radius 1: exp(-d^2 / 4)
        across = math.exp(-64 / 4) + math.exp(-65 / 4)
        assert mean_overlap(g, (10, 10)) == pytest.approx(within, abs=2 * across)
        assert mean_overlap(g) == pytest.approx((within + 1) / 2, abs=2 * across)

    def test_pairs_are_those_of_the_last_refresh(self) -> None:
        far, near = round_ones([[0.0, 0.0], [50.0, 0.0]], [1.0, 1.0]), round_ones([[0.0, 0.0], [1.0, 0.0]], [1.0, 1.0])
        penalty = refreshed("overlap", far)
        assert penalty.value(near) == 0
        penalty.refresh(near)
        assert penalty.value(near) == pytest.approx(math.exp(-1 / 4))
        with pytest.raises(ValueError, match="refresh"):
            penalty.value(near.join(far))


class TestSmoothness:
    @NDIMS
    def test_value_is_the_integral(self, ndim: int) -> None:
        g, shape = gaussians(2, ndim, (0.7, 1.5)), (5, 6, 7)[:ndim]
        e, _ = on_grid(g)
        slopes = [torch.stack(torch.gradient(one, spacing=0.2)).square().sum() / one.square().sum() for one in e]
        spacing = (math.prod(shape) / 2) ** (1 / ndim)
        expected = spacing**2 * float(torch.stack(slopes).mean())
        # Central differences make slopes too small, by some 3 % at the smallest radius.
        assert refreshed("smoothness", g, shape).value(g) == pytest.approx(expected, rel=0.06)


class TestSpacing:
    def test_round_ones(self) -> None:
        g = round_ones([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], [1.0, 1.5])
        assert spacings(g, 2.0).tolist() == pytest.approx([5 / (2 + 3)])
        assert spacings(g, 1.0).tolist() == pytest.approx([5 / 2.5])
        penalty = Spacing(2, target=1.0)
        penalty.refresh(g)
        assert penalty.value(g) == pytest.approx(0, abs=1e-12)
        further = g._replace(means=2 * g.means)
        assert penalty.value(further) == pytest.approx((2 - 1) ** 2 / 2)

    @NDIMS
    def test_radii_are_those_of_the_ellipsoids(self, ndim: int) -> None:
        g, k = gaussians(2, ndim), 1.5
        d = g.means[1] - g.means[0]
        n = d / d.norm()
        radii = []
        for mu, W in zip(g.means, g.factors, strict=True):
            # March out from the centre to where the Gaussian has fallen to k standard deviations.
            t = torch.linspace(0, 10, 1_000_001, dtype=torch.float64)
            points = mu + t[:, None] * n
            radii.append(float(t[((points - mu) @ W).norm(dim=1) < k].max()))
        assert spacings(g, k).tolist() == pytest.approx([float(d.norm()) / sum(radii)], rel=1e-4)

    @NDIMS
    def test_pairs_are_the_nearest(self, ndim: int) -> None:
        g = gaussians(60, ndim)
        order = torch.cdist(g.means, g.means).fill_diagonal_(math.inf).argsort(1)[:, :6]
        expected = {(min(i, int(j)), max(i, int(j))) for i, row in enumerate(order) for j in row}
        found = nearest_pairs(g.means, 6)
        assert found.shape[1] == len(expected)
        assert {(int(i), int(j)) for i, j in found.T} == expected
        assert nearest_pairs(g.means[:3], 6).T.tolist() == [[0, 1], [0, 2], [1, 2]]

    def test_leads_to_the_target(self) -> None:
        g = round_ones([[0.0, 0.0], [4.0, 0.0], [0.0, 7.0]], [1.0, 0.8, 1.2])
        penalty = Spacing(3, target=1.3)
        penalty.refresh(g)
        for _ in range(200):
            curvature = penalty.curvature(g)
            g = g.moved(torch.where(curvature > 0, -penalty.gradient(g) / curvature, 0.0).clamp(-0.3, 0.3))
        torch.testing.assert_close(spacings(g), torch.full((3,), 1.3, dtype=torch.float64), rtol=0, atol=1e-3)
