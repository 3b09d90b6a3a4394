"""Weighted sum of Gaussians at voxels, with its Jacobian products.

Derivatives are taken in whitened coordinates. Gaussian i moves by a step ``(omega, a, B)``, B symmetric::

    w += omega,    mu += W^-T a,    W <- W exp(-B / 2)

so that, with ``y = W^T (x - mu)``, ``df = e (omega + w a.y + (w / 2) y^T B y)``: a is in units of the Gaussian's own
radii, B the relative growth of its axes squared. A step is stored as ``(N, K)`` rows ``(omega, a_1 .. a_D, upper
triangle of B)``, in the order of the kernels' monomials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import gather, n_monomials, splat
from .small_matrices import determinant, exponential, inverse


class Gaussians(NamedTuple):
    """Tensors of N Gaussians: means (N, D), factors (N, D, D), weights (N,)."""

    means: Tensor
    factors: Tensor
    weights: Tensor

    def select(self, index: Tensor) -> Gaussians:
        """Return the Gaussians at an index (a mask or positions)."""
        return Gaussians(*(t[index] for t in self))

    def join(self, others: Gaussians) -> Gaussians:
        """Return these Gaussians followed by the others."""
        return Gaussians(*(torch.cat(pair) for pair in zip(self, others, strict=True)))

    def moved(self, step: Tensor) -> Gaussians:
        """Return the Gaussians after a whitened step ``(N, K)``."""
        ndim = self.means.shape[1]
        a, B = step[:, 1 : ndim + 1], symmetric(step[:, ndim + 1 :], ndim)
        shift = (inverse(self.factors).mT @ a[:, :, None])[:, :, 0]  # W^-T a
        return Gaussians(self.means + shift, self.factors @ exponential(-B / 2), self.weights + step[:, 0])

    def to(self, device: torch.device) -> Gaussians:
        """Return the Gaussians on a device."""
        return Gaussians(*(t.to(device) for t in self))


def empty(ndim: int, device: torch.device) -> Gaussians:
    """Return an empty set of Gaussians."""
    return Gaussians(*(torch.zeros(0, *shape, device=device) for shape in ((ndim,), (ndim, ndim), ())))


def self_overlap(gaussians: Gaussians) -> Tensor:
    """Return ``c = int e^2 = pi^(D/2) / |det W|`` of each Gaussian, ``(N,)``; its energy is ``w^2 c``."""
    overlap: Tensor = math.pi ** (gaussians.means.shape[1] / 2) / determinant(gaussians.factors).abs()
    return overlap


def predict(gaussians: Gaussians, shape: Sequence[int]) -> Tensor:
    """Return the sum of the Gaussians at every voxel."""
    coefficients = gaussians.weights.new_zeros(len(gaussians.weights), n_monomials(len(shape)))
    coefficients[:, 0] = gaussians.weights
    return splat(gaussians.means, gaussians.factors, coefficients, shape)


def jvp(gaussians: Gaussians, step: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the Jacobian-vector product J step, with a whitened step ``(N, K)``, at every voxel."""
    ndim = len(shape)
    w = gaussians.weights[:, None]
    linear = (gaussians.factors @ (w * step[:, 1 : ndim + 1])[:, :, None])[:, :, 0]  # W w a
    Q = gaussians.factors @ symmetric(step[:, ndim + 1 :], ndim) @ gaussians.factors.mT
    quadratic = upper(Q) * (w * multiplicity(ndim, w) / 2)
    return splat(gaussians.means, gaussians.factors, torch.cat([step[:, :1], linear, quadratic], 1), shape)


def vjp(gaussians: Gaussians, grid: Tensor) -> Tensor:
    """Return the vector-Jacobian product J^T grid: the gradient of ``<grid, f>`` by a whitened step, ``(N, K)``."""
    ndim = grid.ndim
    moments = gather(gaussians.means, gaussians.factors, grid)
    w = gaussians.weights[:, None]
    linear = (gaussians.factors.mT @ moments[:, 1 : ndim + 1, None])[:, :, 0] * w  # w W^T m
    M = gaussians.factors.mT @ symmetric(moments[:, ndim + 1 :], ndim) @ gaussians.factors
    quadratic = upper(M) * (w * multiplicity(ndim, w) / 2)
    return torch.cat([moments[:, :1], linear, quadratic], 1)


def triangle(ndim: int) -> list[tuple[int, int]]:
    """Return the row and the column of each entry of an upper triangle, row by row."""
    return [(i, j) for i in range(ndim) for j in range(i, ndim)]


def symmetric(rows: Tensor, ndim: int) -> Tensor:
    """Return symmetric matrices ``(..., D, D)`` from the rows of their upper triangles."""
    # Entry by entry, here and below: lists of indices would be copied to the GPU, and the host would wait.
    place = {entry: k for k, entry in enumerate(triangle(ndim))}
    entries = [rows[..., place[min(i, j), max(i, j)]] for i in range(ndim) for j in range(ndim)]
    return torch.stack(entries, -1).reshape(*rows.shape[:-1], ndim, ndim)


def upper(matrix: Tensor) -> Tensor:
    """Return the rows of the upper triangles of matrices ``(..., D, D)``."""
    return torch.stack([matrix[..., i, j] for i, j in triangle(matrix.shape[-1])], -1)


def multiplicity(ndim: int, like: Tensor) -> Tensor:
    """Return the number of occurrences of each entry of an upper triangle in the full matrix."""
    return upper(2 - torch.eye(ndim, dtype=like.dtype, device=like.device))
