"""Penalties on a set of Gaussians, as terms of the objective.

Each is a dimensionless mean over Gaussians: it is invariant when grid and Gaussians are scaled together, and when twice
as many Gaussians model twice as much. Gradients and curvatures are with respect to the whitened step ``(omega, a, B)``
of `napari_gsvolume.operators.gaussian_sum`, rows ``(N, K)``; an entry off the diagonal of B is one parameter that
stands in B twice. Throughout, P = W W^T, S = P^-1 and e_i = exp(-|W_i^T (x - mu_i)|^2 / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import n_monomials
from ..operators.gaussian_sum import Gaussians, multiplicity, symmetric, triangle, upper
from ..operators.small_matrices import inverse
from . import neighbours
from .neighbours import nearest_pairs, overlap_table, overlapping_pairs, overlaps

_PAIRS = 1 << 16
"""Pairs per batch; few enough for the cache."""


class Penalty(Protocol):
    """Differentiable function of a set of Gaussians, to be kept small."""

    name: str
    count: int
    """Number of Gaussians in the mean."""

    def refresh(self, gaussians: Gaussians) -> None:
        """Search the neighbours again; the other methods use the pairs of the last search."""

    def value(self, gaussians: Gaussians) -> Tensor:
        """Return the penalty, one float64 on the device, so that the host reads all terms of a loss at once."""

    def gradient(self, gaussians: Gaussians) -> Tensor:
        """Return the uphill gradient, ``(N, K)``."""

    def curvature(self, gaussians: Gaussians) -> Tensor:
        """Return a non-negative diagonal that approximately bounds the Hessian from above, ``(N, K)``."""


class _Mean:
    """Base of all penalties: a sum over Gaussians, divided by `count`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def refresh(self, gaussians: Gaussians) -> None:
        """Do nothing: the penalty has no pairs."""

    @property
    def _share(self) -> float:
        return 1 / max(self.count, 1)


class Sparsity(_Mean):
    """L1 penalty ``sum |w| / count``: it drives weights to exactly zero.

    The penalty has a kink at 0. Solvers therefore follow `pseudo_gradient` and end each step with `clip_to_orthant`, as
    in OWL-QN [1]_.

    References
    ----------
    .. [1] G. Andrew, J. Gao. Scalable Training of L1-Regularized Log-Linear Models. ICML, 2007.
    """

    name = "sparsity"

    def value(self, gaussians: Gaussians) -> Tensor:
        """Return ``sum_i |w_i| / count``."""
        return self._share * gaussians.weights.double().abs().sum()

    def gradient(self, gaussians: Gaussians) -> Tensor:
        """Return sign(w) / count in the column of omega, ``(N, K)``."""
        return _rows(gaussians, omega=self._share * gaussians.weights.sign())

    def curvature(self, gaussians: Gaussians) -> Tensor:
        """Return zeros, ``(N, K)``."""
        return _rows(gaussians)


def pseudo_gradient(downhill_omega: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return the steepest way down of a smooth function plus ``strength * sum |w|``, ``(N,)``.

    `downhill_omega` is g, minus the slope of the smooth function, and `strength` has been divided by the count. It is
    ``g - strength sign(w)``; where w is 0, g shortened by `strength`, and 0 where g is no longer than that.
    """
    shortened = downhill_omega - downhill_omega.clamp(-strength, strength)
    return torch.where(weights == 0, shortened, downhill_omega - strength * weights.sign())


def clip_to_orthant(old_weights: Tensor, new_weights: Tensor, pseudo: Tensor) -> Tensor:
    """Return the new weights, those set to 0 that have left the old ones' orthant, ``(N,)``.

    A weight's orthant is its sign, or where it is 0 that of the pseudo-gradient: in there |w| is linear.
    """
    sign = torch.where(old_weights == 0, pseudo.sign(), old_weights.sign())
    return torch.where(new_weights.sign() == sign, new_weights, torch.zeros_like(new_weights))


class _OnPairs(_Mean):
    """Base of penalties on pairs of neighbours."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._pairs = torch.zeros(2, 0, dtype=torch.int64)
        self._refreshed: int | None = None

    def _remember(self, pairs: Tensor, gaussians: Gaussians) -> None:
        self._pairs, self._refreshed = pairs, len(gaussians.weights)

    def _batches(self, gaussians: Gaussians) -> Sequence[Tensor]:
        """Return the pairs in batches of columns."""
        if len(gaussians.weights) != self._refreshed:
            raise InputError(f"Neighbours are of {self._refreshed} Gaussians, not {len(gaussians.weights)}: refresh.")
        return torch.split(self._pairs, _PAIRS, dim=1)


class Overlap(_OnPairs):
    """Sum over i and j != i of the normalised overlap o_ij (`neighbours.overlaps`) / count: it keeps them apart.

    Pairs with o < `neighbours.THRESHOLD` are left out. Of evenly spread Gaussians of one size these hold 0.1 % of the
    sum in 2D and 0.3 % in 3D (the tail of a chi-square distribution), so much is the value too small; and at a refresh
    it jumps by up to twice the threshold / count for each pair that comes or goes.
    """

    name = "overlap"

    def refresh(self, gaussians: Gaussians) -> None:
        """Search the overlapping pairs."""
        self._remember(overlapping_pairs(gaussians), gaussians)

    def value(self, gaussians: Gaussians) -> Tensor:
        """Return ``sum_i sum_{j != i} o_ij / count``."""
        table = overlap_table(gaussians)
        sums = [overlaps(table, pairs).overlap.sum() for pairs in self._batches(gaussians)]
        return 2 * self._share * torch.stack(sums).sum()

    def gradient(self, gaussians: Gaussians) -> Tensor:
        """Return the gradient ``(N, K)``.

        With A = S_i + S_j and C_i = W_i^-1, the derivatives of o_ij are ``o C_i A^-1 d`` by a_i, and by B_i
        ``o (I / 4 - C_i (A^-1 - A^-1 d d^T A^-1) C_i^T / 2)``; C_i is applied to the sums over j.
        """
        table, (n, ndim) = overlap_table(gaussians), gaussians.means.shape
        sums = table.new_zeros(n, n_monomials(ndim))
        for pairs in self._batches(gaussians):
            o, _, pull, precision = overlaps(table, pairs)
            outer = torch.stack([pull[k] * pull[m] for k, m in triangle(ndim)])
            for i, towards in zip(pairs, (pull, -pull), strict=True):
                terms = [torch.ones_like(o)[None], towards, (outer - precision) / 2]
                sums.index_add_(0, i, (2 * self._share * o * torch.cat(terms)).T)
        C = inverse(gaussians.factors.double())
        a = (C @ sums[:, 1 : 1 + ndim, None])[:, :, 0]
        B = C @ symmetric(sums[:, 1 + ndim :], ndim) @ C.mT + torch.diag_embed(sums[:, :1].expand(n, ndim)) / 4
        return _rows(gaussians, a=a, B=upper(B))

    def curvature(self, gaussians: Gaussians) -> Tensor:
        """Return a bound of the Hessian ``(N, K)``, all pairs' together.

        With h = d^T (S_i + S_j)^-1 d and (a, B) of both Gaussians, ``d2 o <= o (2 h |a|^2 + (D / 4 + h^2 / 2) |B|^2)``.
        Where centres nearly coincide o is concave; h counts as 1 at least, so that this does not call for long steps.
        """
        table, ndim = overlap_table(gaussians), gaussians.means.shape[1]
        bounds = table.new_zeros(len(gaussians.weights), 2)
        for pairs in self._batches(gaussians):
            o, h, _, _ = overlaps(table, pairs)
            both = 2 * self._share * o * torch.stack([2 * h.clamp_min(1), ndim / 4 + h * h / 2])
            for i in pairs:
                bounds.index_add_(0, i, both.T)
        return _rows(gaussians, a=bounds[:, :1], B=bounds[:, 1:])


def mean_overlap(gaussians: Gaussians, shape: Sequence[int] | None = None) -> float:
    """Return the mean over Gaussians of ``sum_{j != i} o_ij``; with a shape, over those centred in that grid."""
    table, pairs = overlap_table(gaussians), overlapping_pairs(gaussians)
    own = table.new_zeros(len(gaussians.weights))
    for some in torch.split(pairs, _PAIRS, dim=1):
        o = overlaps(table, some).overlap
        own.index_add_(0, some[0], o).index_add_(0, some[1], o)
    if shape is not None:
        inside = torch.ones_like(own, dtype=torch.bool)
        for x, size in zip(gaussians.means.T, shape, strict=True):
            inside &= (x >= -0.5) & (x <= size - 0.5)
        own = own[inside]
    return float(own.mean()) if len(own) else 0.0


class Smoothness(_Mean):
    """Mean squared slope of the Gaussians, each scaled to unit energy: it makes them wide and round.

    For G = e / (int e^2)^(1/2), ``int |grad G|^2 dx = tr(P) / 2``; times the squared mean spacing of centres it has no
    unit. The energy is scaled because ``int |grad e|^2 = int e^2 tr(P) / 2`` grows with size, as the (D - 2)th power
    of the radius for round ones: minimising it would shrink them in 3D, not smooth them, and ignore size in 2D.

    `shape` is that of the grid the Gaussians are spread over.
    """

    name = "smoothness"

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        super().__init__(count)
        self.shape = tuple(shape)

    def value(self, gaussians: Gaussians) -> Tensor:
        """Return ``spacing^2 sum_i tr(P_i) / (2 count)``, with ``spacing = (voxels / count)^(1/D)``."""
        return self._scale() * gaussians.factors.double().square().sum()

    def gradient(self, gaussians: Gaussians) -> Tensor:
        """Return the gradient ``(N, K)``, from ``d tr(P) = -<W^T W, B>``."""
        W = gaussians.factors.double()
        return _rows(gaussians, B=-self._scale() * upper(W.mT @ W))

    def curvature(self, gaussians: Gaussians) -> Tensor:
        """Return a bound of the Hessian ``(N, K)``.

        ``d2 tr(P) = tr(B G B)``, G = W^T W, and G is at most the diagonal matrix of its rows' sums of magnitudes.
        """
        W = gaussians.factors.double()
        sums = (W.mT @ W).abs().sum(2)  # (N, D)
        # tr(B diag(sums) B): an entry off the diagonal of B counts once with its row's sum, once with its column's.
        return _rows(gaussians, B=self._scale() * upper(sums[:, :, None] + sums[:, None]) / 2)

    def _scale(self) -> float:
        return math.pow(self._share * math.prod(self.shape), 2 / len(self.shape)) * self._share / 2


class Spacing(_OnPairs):
    """Squared deviation of neighbours' spacings from a target: it makes Gaussians touch, overlap or keep away.

    With unit vector n along d and ``r = k / (n^T P n)^(1/2)``, the radius of a Gaussian's ellipsoid of k standard
    deviations towards the other, ``s_ij = |d| / (r_i + r_j)``: below 1 the ellipsoids overlap, at 1 they touch on the
    line of centres, above there is a gap.

    Parameters
    ----------
    count : int
    target : float
        Target spacing s, positive.
    k : float
        Radius of a Gaussian in standard deviations.
    n_neighbours : int
        Number of nearest centres of each Gaussian that make pairs, each pair once.
    """

    name = "spacing"

    def __init__(self, count: int, target: float = 1.0, k: float = 2.0, n_neighbours: int = 6) -> None:
        super().__init__(count)
        self.target, self.k, self.n_neighbours = target, k, n_neighbours

    def refresh(self, gaussians: Gaussians) -> None:
        """Search the pairs of nearest centres."""
        self._remember(nearest_pairs(gaussians.means, self.n_neighbours), gaussians)

    def value(self, gaussians: Gaussians) -> Tensor:
        """Return ``sum_pairs (s - target)^2 / count``."""
        batches = (neighbours.spacings(gaussians, pairs, self.k).spacing for pairs in self._batches(gaussians))
        return self._share * torch.stack([(s - self.target).square().sum() for s in batches]).sum()

    def gradient(self, gaussians: Gaussians) -> Tensor:
        """Return the gradient ``(N, K)``."""
        gradient = torch.zeros_like(_rows(gaussians), dtype=torch.float64)
        for pairs in self._batches(gaussians):
            s, slopes = neighbours.spacings(gaussians, pairs, self.k)
            for i, slope in zip(pairs, slopes, strict=True):
                gradient.index_add_(0, i, 2 * self._share * (s - self.target)[:, None] * slope)
        return gradient.to(gaussians.weights.dtype)

    def curvature(self, gaussians: Gaussians) -> Tensor:
        """Return a bound of the Gauss-Newton Hessian ``(N, K)``, that with s taken as linear.

        ds is a sum of four parts, a and B of both Gaussians: its square is at most four times the sum of theirs. But
        for some 10 % that bounds the Hessian itself, too, even where its other term, (s - target) d2s, adds to it.
        """
        n, ndim = gaussians.means.shape
        bounds = gaussians.means.new_zeros(n, 2, dtype=torch.float64)
        for pairs in self._batches(gaussians):
            squares = neighbours.spacings(gaussians, pairs, self.k).slopes.square()
            squares[:, :, 1 + ndim :] /= multiplicity(ndim, squares)  # to the full matrix' |B|^2
            parts = torch.stack([squares[:, :, 1 : 1 + ndim].sum(2), squares[:, :, 1 + ndim :].sum(2)], 2)
            for i, part in zip(pairs, parts, strict=True):
                bounds.index_add_(0, i, 8 * self._share * part)
        return _rows(gaussians, a=bounds[:, :1], B=bounds[:, 1:])


def spacings(gaussians: Gaussians, k: float = 2.0, n_neighbours: int = 6) -> Tensor:
    """Return s of all pairs of neighbours (see `Spacing`), ``(M,)``."""
    return neighbours.spacings(gaussians, nearest_pairs(gaussians.means, n_neighbours), k).spacing


def _rows(gaussians: Gaussians, omega: Tensor | float = 0, a: Tensor | float = 0, B: Tensor | float = 0) -> Tensor:
    """Return rows ``(N, K)`` of omega, a and the upper triangle of B, entries off its diagonal doubled."""
    n, ndim = gaussians.means.shape
    rows = gaussians.weights.new_zeros(n, n_monomials(ndim), dtype=torch.float64)
    rows[:, 0] = omega
    rows[:, 1 : 1 + ndim] = a
    rows[:, 1 + ndim :] = B
    rows[:, 1 + ndim :] *= multiplicity(ndim, rows)
    return rows.to(gaussians.weights.dtype)
