"""The kernels as the formulas read: dense, torch, float64, differentiable. Slow; for tests and for reading."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .constants import SUPPORT


def monomials(d: Tensor) -> Tensor:
    """Return ``(1, d, upper triangle of d d^T)``; `d` is ``(..., D)``, the result ``(..., K)``."""
    ndim = d.shape[-1]
    rows, columns = torch.triu_indices(ndim, ndim)
    return torch.cat([torch.ones_like(d[..., :1]), d, d[..., rows] * d[..., columns]], dim=-1)


def basis(points: Tensor, means: Tensor, factors: Tensor, support: float = SUPPORT) -> tuple[Tensor, Tensor]:
    """Return offsets ``x - mu`` ``(M, N, D)`` and cut Gaussians ``e`` ``(M, N)`` at `points` ``(M, D)``."""
    d = points[:, None, :] - means[None]  # (M, N, D)
    q = _squared_radius(d, factors)
    return d, torch.where(q < support**2, torch.exp(-q / 2), torch.zeros_like(q))


def inside(points: Tensor, means: Tensor, factors: Tensor, support: float) -> Tensor:
    """Return the indicators ``[|W^T (x - mu)| < support]``, ``(M, N)``, float64, at `points` ``(M, D)``."""
    return (_squared_radius(points[:, None, :] - means[None], factors) < support**2).double()


def _squared_radius(d: Tensor, factors: Tensor) -> Tensor:
    """Return ``|W^T d|^2``, ``(M, N)``, of offsets ``(M, N, D)``."""
    y = torch.einsum("nab,mna->mnb", factors, d)
    return (y * y).sum(-1)


def grid_points(shape: Sequence[int]) -> Tensor:
    """Return the index coordinates of all voxels, ``(M, D)``, float64."""
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))


def splat(
    means: Tensor, factors: Tensor, coefficients: Tensor, shape: Sequence[int], *, support: float = SUPPORT
) -> Tensor:
    """Return what `napari_gsvolume.kernels.splat` returns, in float64."""
    d, e = basis(grid_points(shape), means.double(), factors.double(), support)
    values = (e * (monomials(d) * coefficients.double()).sum(-1)).sum(-1)
    return values.reshape(tuple(shape))


def gather(means: Tensor, factors: Tensor, grid: Tensor, *, support: float = SUPPORT) -> Tensor:
    """Return what `napari_gsvolume.kernels.gather` returns, in float64."""
    d, e = basis(grid_points(grid.shape), means.double(), factors.double(), support)
    return torch.einsum("m,mn,mnk->nk", grid.double().reshape(-1), e, monomials(d))


def splat_flat(means: Tensor, factors: Tensor, values: Tensor, shape: Sequence[int], support: float) -> Tensor:
    """Return what `napari_gsvolume.kernels.splat_flat` returns, in float64."""
    within = inside(grid_points(shape), means.double(), factors.double(), support)
    return (within @ values.double()).reshape(tuple(shape))


def gather_flat(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Return what `napari_gsvolume.kernels.gather_flat` returns, in float64."""
    within = inside(grid_points(grid.shape), means.double(), factors.double(), support)
    return within.mT @ grid.double().reshape(-1)
