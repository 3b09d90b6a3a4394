"""Pairs of neighbouring Gaussians: search, overlap and spacing.

Pairs are unordered, each listed once, as the columns ``(i, j)`` of an int64 tensor ``(2, M)``; ``d = mu_j - mu_i``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ..operators.gaussian_sum import Gaussians, multiplicity, upper
from ..operators.small_matrices import determinant, inverse

OVERLAP_THRESHOLD = 1e-3
"""Smallest normalised overlap of a pair; other pairs are left out."""
_CANDIDATES = 1 << 19
"""Candidate pairs per batch; it bounds the memory that a few huge Gaussians need."""
_TESTS = 1 << 23
"""Pairs per batch of an all-pairs comparison; it bounds the memory, and is enough to occupy a GPU."""
_SOFTENING = 1e-6
"""Softening of distances in radii (added in squares), so that coincident centres have the slope zero."""


class Overlaps(NamedTuple):
    """Normalised overlaps o of M pairs, and the terms of their derivatives, with ``A = S_i + S_j``."""

    overlap: Tensor
    """o, (M,)."""
    squared_distance: Tensor
    """h = d^T A^-1 d, (M,)."""
    pull: Tensor
    """A^-1 d, (D, M)."""
    inverse: Tensor
    """Upper triangle of A^-1 row by row, (D (D + 1) / 2, M)."""


def overlap_table(gaussians: Gaussians) -> Tensor:
    """Return the table for `overlaps`, float64: rows mu, upper triangle of S, log |det W|; columns are Gaussians."""
    means, factors = gaussians.means.detach().double(), gaussians.factors.detach().double()
    S = _covariances(factors)
    return torch.cat([means, upper(S), determinant(factors).abs().log()[:, None]], 1).T.contiguous()


def overlaps(table: Tensor, pairs: Tensor) -> Overlaps:
    """Return the normalised overlaps of pairs ``(2, M)`` of the Gaussians of an `overlap_table`.

    With ``e_i = exp(-|W_i^T (x - mu_i)|^2 / 2)``, ``o_ij = int e_i e_j / (int e_i^2 int e_j^2)^(1/2)``, in (0, 1] and
    1 for identical Gaussians::

        o_ij = (2^D / (|det W_i| |det W_j| det(S_i + S_j)))^(1/2) exp(-d^T (S_i + S_j)^-1 d / 2)
    """
    ndim = 2 if len(table) == 6 else 3
    first, second = table.index_select(1, pairs[0]), table.index_select(1, pairs[1])
    d = second[:ndim] - first[:ndim]
    both = first[ndim:] + second[ndim:]
    precision, size = _inverse(both[:-1])
    if ndim == 2:
        a, b, c = precision
        pull = torch.stack([a * d[0] + b * d[1], b * d[0] + c * d[1]])
    else:
        a, b, c, e, f, g = precision
        x, y, z = d
        pull = torch.stack([a * x + b * y + c * z, b * x + e * y + f * z, c * x + f * y + g * z])
    squared = (d * pull).sum(0)
    overlap = 2 ** (ndim / 2) * torch.exp(-(squared + both[-1]) / 2) / size.sqrt()
    return Overlaps(overlap, squared, pull, precision)


class Spacings(NamedTuple):
    """Spacings s of M pairs, and their derivatives by the whitened steps of i and j."""

    spacing: Tensor
    """s, (M,)."""
    slopes: Tensor
    """(2, M, K)."""


def spacings(gaussians: Gaussians, pairs: Tensor, k: float) -> Spacings:
    """Return the spacings of pairs ``(2, M)``, in float64.

    With n along d, ``r_i = k / (n^T P_i n)^(1/2)`` is the radius at k standard deviations of Gaussian i towards the
    other, and ``s = |d| / (r_i + r_j)``. By the distances in radii ``rho_i = |y_i|``, ``y_i = W_i^T d``, that is
    ``s = rho_i rho_j / (k (rho_i + rho_j))``, which needs no n. As d changes by v, and by a step of i, rho_i does by
    ``y_i^T (W_i^T v - B_i y_i / 2) / rho_i``.
    """
    W = gaussians.factors.detach().double()
    C, means = inverse(W), gaussians.means.detach().double()
    d = means[pairs[1]] - means[pairs[0]]
    y = [(W[i] * d[:, :, None]).sum(1) for i in pairs]
    rho = [(v.square().sum(1, keepdim=True) + _SOFTENING**2).sqrt() for v in y]  # (M, 1)
    both = rho[0] + rho[1]
    # The slope of s by rho, along y / rho: s changes by u_i . (W_i^T v - B_i y_i / 2), and by the same of j.
    u = [y[0] * (rho[1] / both) ** 2 / (k * rho[0]), y[1] * (rho[0] / both) ** 2 / (k * rho[1])]
    by_d = _times(W[pairs[0]], u[0]) + _times(W[pairs[1]], u[1])
    half = multiplicity(d.shape[1], d) / 2
    slopes = [
        torch.cat([torch.zeros_like(both), sign * _times(C[i], by_d), -half * upper(v[:, :, None] * w[:, None])], 1)
        for sign, i, v, w in zip((-1, 1), pairs, u, y, strict=True)
    ]
    return Spacings((rho[0] * rho[1] / (k * both))[:, 0], torch.stack(slopes))


def overlapping_pairs(gaussians: Gaussians, threshold: float = OVERLAP_THRESHOLD) -> Tensor:
    """Return all pairs with ``o_ij >= threshold`` and no others, ``(2, M)``.

    As ``d^T A^-1 d >= d_k^2 / A_kk`` along each axis k, bounding boxes are compared first, and o itself is computed for
    the pairs that are left. Memory is bounded but for the result.
    """
    table = overlap_table(gaussians)
    found = [torch.zeros(2, 0, dtype=torch.int64, device=table.device)]
    S, cut = _covariances(gaussians.factors.detach().double()), -2 * math.log(threshold)
    centres, squares = table[: gaussians.means.shape[1]], S.diagonal(dim1=1, dim2=2).T * cut  # (D, N)
    if table.device.type == "cpu":
        candidates = _near_on_host(centres, squares, (2 * cut * torch.linalg.eigvalsh(S)[:, -1]).sqrt())
    else:
        candidates = _near_on_device(centres, squares)
    for near in candidates:
        found += [some[:, overlaps(table, some).overlap >= threshold] for some in torch.split(near, _CANDIDATES, 1)]
    return torch.cat(found, 1)


def nearest_pairs(means: Tensor, n_neighbours: int) -> Tensor:
    """Return the pairs of which one is among the `n_neighbours` nearest centres of the other, ``(2, M)``."""
    n, device = len(means), means.device
    k = min(n_neighbours + 1, n)
    if k < 2:
        return torch.zeros(2, 0, dtype=torch.int64, device=device)
    centres = means.detach().double()
    if device.type == "cpu":
        j = torch.from_numpy(cKDTree(centres.numpy()).query(centres.numpy(), k=k)[1])  # (N, k)
    else:
        # Without matrix products, which lose the digits of small distances.
        exactly = "donot_use_mm_for_euclid_dist"
        rows = torch.split(centres, max(_TESTS // n, 1))
        j = torch.cat([torch.cdist(some, centres, compute_mode=exactly).topk(k, largest=False)[1] for some in rows])
    i = torch.arange(n, device=device)[:, None]
    unique = torch.unique(torch.minimum(i, j) * n + torch.maximum(i, j))
    pairs = torch.stack([unique // n, unique % n])
    return pairs[:, pairs[0] != pairs[1]]  # each centre is its own neighbour, not always the first


def _near_on_device(centres: Tensor, squares: Tensor) -> Iterator[Tensor]:
    """Yield pairs ``(2, M)`` whose boxes of half edges `squares`, squared, might touch: all are compared with all."""
    n, begin = centres.shape[1], 0
    while begin < n:
        end = min(n, begin + max(_TESTS // (n - begin), 1))
        near = torch.ones(end - begin, n - begin, dtype=torch.bool, device=centres.device).triu(1)
        for x, square in zip(centres, squares, strict=True):
            near &= (x[begin:end, None] - x[begin:]).square() <= square[begin:end, None] + square[begin:]
        yield near.nonzero().T + begin
        begin = end


def _near_on_host(centres: Tensor, squares: Tensor, radius: Tensor) -> Iterator[Tensor]:
    """Yield pairs ``(2, M)`` whose boxes of half edges `squares`, squared, might touch.

    With R^2 the largest eigenvalue of S, ``o_ij <= exp(-|d|^2 / (2 (R_i^2 + R_j^2)))``. So each Gaussian looks in a
    k-d tree for those not larger than itself within this radius, ``2 (-log threshold)^(1/2) R_i``. At constant density
    the work is in proportion to N, plus N for each Gaussian that reaches everywhere.
    """
    if centres.shape[1] < 2:
        return
    for i, j in _within(centres.T.numpy(), radius.numpy()):
        near = np.ones(len(i), bool)
        for x, square in zip(centres.numpy(), squares.numpy(), strict=True):
            near &= (x[i] - x[j]) ** 2 <= square[i] + square[j]
        yield torch.from_numpy(np.stack([i[near], j[near]]))


def _within(centres: NDArray[np.float64], radius: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield arrays i, j of all pairs with the centre of j in the ball of i, and the ball of i no smaller than j's."""
    n = len(centres)
    rank = np.empty(n, np.int64)
    rank[np.argsort(radius, kind="stable")] = np.arange(n)
    tree = cKDTree(centres)
    counts = tree.query_ball_point(centres, radius, return_length=True)
    batch = np.cumsum(counts) // _CANDIDATES
    for members in np.split(np.arange(n), np.flatnonzero(np.diff(batch)) + 1):
        lists = tree.query_ball_point(centres[members], radius[members], return_sorted=False)
        i = np.repeat(members, counts[members])
        j = np.fromiter(chain.from_iterable(lists), np.int64, count=len(i))
        smaller = rank[j] < rank[i]
        yield i[smaller], j[smaller]


def _covariances(factors: Tensor) -> Tensor:
    C = inverse(factors)
    return C.mT @ C


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices * vectors[:, None, :]).sum(2)


def _inverse(triangle: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverses (likewise) and determinants of symmetric matrices, rows of upper triangles ``(3 or 6, M)``.

    By cofactors: torch.linalg takes many times as long for matrices this small.
    """
    if len(triangle) == 3:
        a, b, c = triangle
        cofactors = torch.stack([c, -b, a])
        determinant = a * c - b * b
    else:
        a, b, c, d, e, f = triangle
        cofactors = torch.stack(
            [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
        )
        determinant = a * cofactors[0] + b * cofactors[1] + c * cofactors[2]
    return cofactors / determinant, determinant
