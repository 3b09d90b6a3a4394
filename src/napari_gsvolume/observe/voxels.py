"""Voxels: every voxel is a sample of the sum of Gaussians.

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

from ..splat import gather, n_monomials, splat


class Gaussians(NamedTuple):
    """The bare tensors of N Gaussians: means (N, D), factors (N, D, D), weights (N,)."""

    means: Tensor
    factors: Tensor
    weights: Tensor

    def select(self, index: Tensor) -> Gaussians:
        """Return the Gaussians that `index` (a mask or positions) names."""
        return Gaussians(*(t[index] for t in self))

    def join(self, others: Gaussians) -> Gaussians:
        """Return these Gaussians followed by the others."""
        return Gaussians(*(torch.cat(pair) for pair in zip(self, others, strict=True)))

    def moved(self, step: Tensor) -> Gaussians:
        """Return the Gaussians after a whitened step ``(N, K)``."""
        ndim = self.means.shape[1]
        a, B = step[:, 1 : ndim + 1], symmetric(step[:, ndim + 1 :], ndim)
        shift = torch.linalg.solve(self.factors.mT, a)  # W^-T a
        return Gaussians(self.means + shift, self.factors @ torch.linalg.matrix_exp(-B / 2), self.weights + step[:, 0])


def empty(ndim: int) -> Gaussians:
    """Return no Gaussians."""
    return Gaussians(torch.zeros(0, ndim), torch.zeros(0, ndim, ndim), torch.zeros(0))


def self_overlap(gaussians: Gaussians) -> Tensor:
    """Return ``c = int e^2 = pi^(D/2) / |det W|`` of each Gaussian, ``(N,)``; its energy is ``w^2 c``."""
    overlap: Tensor = math.pi ** (gaussians.means.shape[1] / 2) / torch.linalg.det(gaussians.factors).abs()
    return overlap


def predict(gaussians: Gaussians, shape: Sequence[int]) -> Tensor:
    """Return the sum of the Gaussians at every voxel."""
    coefficients = gaussians.weights.new_zeros(len(gaussians.weights), n_monomials(len(shape)))
    coefficients[:, 0] = gaussians.weights
    return splat(gaussians.means, gaussians.factors, coefficients, shape)


def derivative(gaussians: Gaussians, step: Tensor, shape: Sequence[int]) -> Tensor:
    """Return J step: how every voxel changes with a whitened step ``(N, K)``."""
    ndim = len(shape)
    w = gaussians.weights[:, None]
    linear = (gaussians.factors @ (w * step[:, 1 : ndim + 1])[:, :, None])[:, :, 0]  # W w a
    Q = gaussians.factors @ symmetric(step[:, ndim + 1 :], ndim) @ gaussians.factors.mT
    quadratic = upper(Q) * (w * multiplicity(ndim, w) / 2)
    return splat(gaussians.means, gaussians.factors, torch.cat([step[:, :1], linear, quadratic], 1), shape)


def transposed_derivative(gaussians: Gaussians, grid: Tensor) -> Tensor:
    """Return J^T grid: the gradient of ``<grid, f>`` with respect to a whitened step, ``(N, K)``."""
    ndim = grid.ndim
    moments = gather(gaussians.means, gaussians.factors, grid)
    w = gaussians.weights[:, None]
    linear = (gaussians.factors.mT @ moments[:, 1 : ndim + 1, None])[:, :, 0] * w  # w W^T m
    M = gaussians.factors.mT @ symmetric(moments[:, ndim + 1 :], ndim) @ gaussians.factors
    quadratic = upper(M) * (w * multiplicity(ndim, w) / 2)
    return torch.cat([moments[:, :1], linear, quadratic], 1)


def symmetric(triangle: Tensor, ndim: int) -> Tensor:
    """Return symmetric matrices ``(..., D, D)`` from the rows of their upper triangles."""
    rows, columns = torch.triu_indices(ndim, ndim)
    matrix = triangle.new_empty(*triangle.shape[:-1], ndim, ndim)
    matrix[..., rows, columns] = triangle
    matrix[..., columns, rows] = triangle
    return matrix


def upper(matrix: Tensor) -> Tensor:
    """Return the rows of the upper triangles of matrices ``(..., D, D)``."""
    rows, columns = torch.triu_indices(matrix.shape[-1], matrix.shape[-1])
    return matrix[..., rows, columns]


def multiplicity(ndim: int, like: Tensor) -> Tensor:
    """Return how often each entry of an upper triangle stands in the full matrix."""
    rows, columns = torch.triu_indices(ndim, ndim)
    return torch.where(rows == columns, 1.0, 2.0).to(like)
