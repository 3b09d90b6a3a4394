"""Splitting and merging of Gaussians at constant mass, mean and covariance.

The mass of a Gaussian is ``int f = (2 pi)^(D/2) m`` with ``m = w |S|^(1/2)``, ``S = (W W^T)^-1`` its covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import gather
from ..operators.gaussian_sum import Gaussians, self_overlap, symmetric
from ..operators.small_matrices import determinant, inverse
from .neighbours import overlapping_pairs

MERGE_OVERLAP = 0.8
"""Normalised overlap above which two Gaussians may be merged; that of equal Gaussians 0.94 radii apart."""


@dataclass(frozen=True, eq=False)
class Change:
    """Change of a set of Gaussians.

    Attributes
    ----------
    kept : Tensor, bool, (N_old,)
        Mask of the old Gaussians that remain, modified or not: a solver keeps its state of them.
    gaussians : Gaussians
        Kept Gaussians in their order, then the new ones.
    """

    kept: Tensor
    gaussians: Gaussians

    @property
    def n_new(self) -> int:
        """Number of new Gaussians."""
        return len(self.gaussians.weights) - int(self.kept.sum())


def append(gaussians: Gaussians, new: Gaussians) -> Change:
    """Return the change that keeps all Gaussians and appends new ones."""
    return Change(torch.ones_like(gaussians.weights, dtype=torch.bool), gaussians.join(new))


def substitute(gaussians: Gaussians, index: Tensor, others: Gaussians) -> Gaussians:
    """Return the Gaussians with those at the positions `index` replaced by the others."""
    return Gaussians(*(t.index_copy(0, index, new) for t, new in zip(gaussians, others, strict=True)))


def semi_axes(gaussians: Gaussians, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the principal semi-axes of the Gaussians, the longest first.

    Along an axis of the grid with one voxel, Gaussians are indistinguishable and should not move. The axes are thus
    those of the section ``x_k = mu_k`` for all such k. With ``W_t`` the rows of W for the other, thick axes and
    ``W_t = U diag(s) V^T``, its precision is ``W_t W_t^T``; so its semi-axes are the columns of ``U diag(1 / s)``, and
    the rows of ``V^T`` are the same in whitened coordinates.

    Parameters
    ----------
    gaussians : Gaussians
    shape : sequence of int
        Shape of the grid; T of its D axes are longer than one voxel.

    Returns
    -------
    axes : Tensor, (N, T, D)
        Semi-axes as rows, as long as the radius, zero along thin axes of the grid.
    whitened : Tensor, (N, T, D)
        ``W^T axis``, orthonormal rows.
    """
    thick = [k for k, n in enumerate(shape) if n > 1]
    W_t = torch.stack([gaussians.factors[:, k] for k in thick], 1)
    U, s, Vt = torch.linalg.svd(W_t, full_matrices=False)  # s: inverse radii, largest first
    axes = torch.zeros_like(Vt)
    for k, along in zip(thick, (U / s[:, None]).unbind(1), strict=True):
        axes[:, :, k] = along
    return axes.flip(1), Vt.flip(1)


def split_in_halves(gaussians: Gaussians, shape: tuple[int, ...], share: float) -> tuple[Gaussians, Gaussians]:
    """Split each Gaussian along its longest axis into two; their sum has its mass, mean and covariance.

    The centres go to ``mu +- delta``, delta `share` (t) of the semi-axis, and what their distance adds to the
    covariance of the pair is taken out of each: ``S' = S - delta delta^T``. In whitened coordinates that is
    ``I - t^2 v v^T``, so ``W' = W (I + (1 / sqrt(1 - t^2) - 1) v v^T)`` and ``|S'| = (1 - t^2) |S|``; half of the mass
    each makes ``w' = w / (2 sqrt(1 - t^2))``. The sum f changes from fourth order in t on. The new factors are of the
    form ``R diag(1 / sigma)``.

    Parameters
    ----------
    gaussians : Gaussians
    shape : sequence of int
        Shape of the grid.
    share : float
        t, in (0, 1).
    """
    axes, whitened = semi_axes(gaussians, shape)
    delta, v = share * axes[:, 0], whitened[:, 0]
    steeper = 1 / math.sqrt(1 - share**2)
    Wv = (gaussians.factors @ v[:, :, None])[:, :, 0]
    R, s, _ = torch.linalg.svd(gaussians.factors + (steeper - 1) * Wv[:, :, None] * v[:, None])
    factors = R * s[:, None]
    weights = gaussians.weights * (steeper / 2)
    return (
        Gaussians(gaussians.means + delta, factors, weights),
        Gaussians(gaussians.means - delta, factors.clone(), weights.clone()),
    )


def splitting_matrices(gaussians: Gaussians, residual: Tensor) -> Tensor:
    """Return the splitting matrix of each Gaussian in whitened coordinates, ``(N, D, D)``.

    ``C = sum_x dL/df w W^-1 Hess_mu(e) W^-T`` for half the squared error L, ``dL/df = -residual`` (Liu et al. 2019).
    With ``Hess_mu(e) = e (P d d^T P - P)`` that is ``-w (W^T M_2 W - M_0 I)``, M_0 and M_2 the moments of the residual.
    """
    ndim = residual.ndim
    moments = gather(gaussians.means, gaussians.factors, residual)
    M = gaussians.factors.mT @ symmetric(moments[:, ndim + 1 :], ndim) @ gaussians.factors
    M0 = torch.diag_embed(moments[:, :1].expand(-1, ndim))
    matrices: Tensor = -gaussians.weights[:, None, None] * (M - M0)
    return matrices


def merge_similar(gaussians: Gaussians, threshold: float = MERGE_OVERLAP) -> Change:
    """Merge pairs of nearly equal Gaussians, closest pairs first.

    A pair has weights of one sign and a normalised overlap above the threshold,

        o_ij = (2 pi)^(D/2) |P_i + P_j|^(-1/2) exp(-d^T (S_i + S_j)^-1 d / 2) / sqrt(c_i c_j)

    with ``P = S^-1`` and ``d = mu_i - mu_j``; a Gaussian is in one pair at most. The sum of a pair is replaced by the
    Gaussian of the same mass ``m = m_i + m_j``, mean ``sum_k p_k mu_k`` and covariance ``sum_k p_k S_k + p_i p_j d
    d^T``, ``p_k = m_k / m`` (moment matching; for mixtures of Gaussians: Runnalls 2007). It takes the place of the one
    of higher energy, and the other goes.

    Parameters
    ----------
    gaussians : Gaussians
        N Gaussians.
    threshold : float
        Smallest normalised overlap of a merged pair, in (0, 1).

    Returns
    -------
    Change
        Change without new Gaussians.
    """
    first, second = _closest_pairs(gaussians, threshold)
    energy = gaussians.weights**2 * self_overlap(gaussians)
    stays = torch.where(energy[first] >= energy[second], first, second)
    merged = _merged(gaussians.select(first), gaussians.select(second))
    kept = torch.ones_like(gaussians.weights, dtype=torch.bool)
    kept[first + second - stays] = False
    return Change(kept, substitute(gaussians, stays, merged).select(kept))


def _closest_pairs(gaussians: Gaussians, threshold: float) -> tuple[Tensor, Tensor]:
    """Return pairs above the threshold of one sign, no Gaussian in two, as positions ``(M,)`` and ``(M,)``."""
    pairs = overlapping_pairs(gaussians, threshold)
    i, j = pairs[:, gaussians.weights[pairs].prod(0) > 0]
    order = torch.argsort(_overlaps(gaussians.select(i), gaussians.select(j)), descending=True, stable=True)
    taken: set[int] = set()
    selected = []
    for k, a, b in zip(order.tolist(), i[order].tolist(), j[order].tolist(), strict=True):
        if a not in taken and b not in taken:
            taken.update((a, b))
            selected.append(k)
    index = torch.tensor(selected, dtype=torch.long, device=i.device)
    return i[index], j[index]


def _overlaps(a: Gaussians, b: Gaussians) -> Tensor:
    """Return the normalised overlap of each Gaussian of `a` with that of `b`, ``(M,)`` float64."""
    d = (a.means - b.means).double()[:, :, None]  # (M, D, 1)
    both = _covariances(a) + _covariances(b)
    distance = (d.mT @ inverse(both) @ d)[:, 0, 0]
    # |P_i + P_j| = |S_i + S_j| |P_i| |P_j| and c = pi^(D/2) |P|^(-1/2).
    determinants = determinant(a.factors.double()).abs() * determinant(b.factors.double()).abs()
    ndim = a.means.shape[1]
    overlap: Tensor = torch.exp(-distance / 2) * (2**ndim / (determinants * determinant(both))).sqrt()
    return overlap


def _merged(a: Gaussians, b: Gaussians) -> Gaussians:
    """Return the Gaussian with the moments of each pair, its factor ``R diag(1 / sigma)``."""
    S_a, S_b = _covariances(a), _covariances(b)
    m_a, m_b = (g.weights.double() * determinant(S).sqrt() for g, S in ((a, S_a), (b, S_b)))
    p = (m_a / (m_a + m_b))[:, None]
    d = (a.means - b.means).double()  # (M, D)
    q = p[:, :, None]
    S = q * S_a + (1 - q) * S_b + q * (1 - q) * d[:, :, None] * d[:, None]
    variances, R = torch.linalg.eigh(S)
    weights = (m_a + m_b) / variances.prod(1).sqrt()
    means = b.means + p * d
    return Gaussians(*(t.to(a.means) for t in (means, R / variances.sqrt()[:, None], weights)))


def _covariances(gaussians: Gaussians) -> Tensor:
    """Return ``S = (W W^T)^-1``, ``(N, D, D)`` float64."""
    C = inverse(gaussians.factors.double())
    return C.mT @ C
