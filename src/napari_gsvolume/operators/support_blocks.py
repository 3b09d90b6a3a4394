"""Blocks of ``J^T J``, one a Gaussian, of the data terms without weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .gaussian_sum import symmetric
from .small_matrices import determinant, inverse


class OwnBlocks:
    """Symmetric positive definite matrix with one block per Gaussian, and its inverse.

    Parameters
    ----------
    blocks : Tensor, (N, K - 1, K - 1), float64
        Of (a, B), positive semidefinite; a millionth of their mean eigenvalue is added. The block of omega, on which
        nothing depends, is 1.
    """

    def __init__(self, blocks: Tensor) -> None:
        more = 1e-6 * blocks.diagonal(dim1=1, dim2=2).mean()
        one = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
        self.matrices = blocks + torch.where(more > 0, more, 1.0) * one
        self._roots = torch.linalg.cholesky_ex(self.matrices)[0]  # without having the host look for errors

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, ``(N, K)``."""
        own = self.matrices.diagonal(dim1=1, dim2=2)
        return torch.cat([torch.ones_like(own[:, :1]), own], 1).float()

    def times(self, step: Tensor) -> Tensor:
        """Return the blocks times a step ``(N, K)``."""
        product = (self.matrices @ step[:, 1:, None].to(self.matrices))[:, :, 0]
        return torch.cat([step[:, :1], product.to(step)], 1)

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse blocks times a gradient ``(N, K)``."""
        solution = torch.cholesky_solve(gradient[:, 1:, None].to(self.matrices), self._roots)[:, :, 0]
        return torch.cat([gradient[:, :1], solution.to(gradient)], 1)


def shape_blocks(factors: Tensor, variance: float) -> Tensor:
    """Return the integrals of products of Gaussians' derivatives over ``int e^2``, (N, K - 1, K - 1), float64.

    Smoothed, before they are multiplied, by a Gaussian of integral one and this variance along each axis, which stands
    for the ball of a neighbourhood. With ``T = (1 + variance W^T W)^-1``::

        sqrt(det T) (a^T T a / 2 + tr(T B T B) / 8 + (tr B / 2 - tr(T B) / 4)^2)
    """
    n, ndim = factors.shape[:2]
    W = factors.double()
    one, each = (torch.eye(k, dtype=W.dtype, device=W.device) for k in (ndim, ndim * (ndim + 1) // 2))
    T = inverse(one + variance * (W.mT @ W))  # (N, D, D)
    units = symmetric(each, ndim)  # (L, D, D): B of each entry
    TB = T[:, None] @ units  # (N, L, D, D)
    trace = torch.einsum("laa->l", units) / 2 - torch.einsum("nlaa->nl", TB) / 4
    blocks = W.new_zeros(n, ndim + len(units), ndim + len(units))
    blocks[:, :ndim, :ndim] = T / 2
    blocks[:, ndim:, ndim:] = torch.einsum("nlab,nmba->nlm", TB, TB) / 8 + outer(trace, trace)
    blocks *= determinant(T).sqrt()[:, None, None]
    return blocks


def outer(u: Tensor, v: Tensor) -> Tensor:
    """Return ``u v^T`` of each row."""
    return u[:, :, None] * v[:, None]
