"""Kernels of all computations with Gaussians: `splat` and its adjoint `gather`.

With ``e_i(x) = exp(-|y|^2 / 2)``, ``y = W_i^T (x - mu_i)``, cut to zero where ``|y| >= SUPPORT``, and the monomials
``(1, d, d d^T)`` of ``d = x - mu_i``, `splat` sums ``e_i(x)`` times a quadratic polynomial in ``d`` over the
Gaussians, and `gather` sums a grid times ``e_i`` times each monomial over the voxels. Every value, gradient and
directional derivative of a sum of Gaussians is one of the two followed by small algebra (see
`napari_gsvolume.operators.gaussian_sum`).

Monomials are ordered ``1, d_0 .. d_D-1``, then the upper triangle of ``d d^T`` row by row, each product once: ten of
them in 3D ``(1, z, y, x, zz, zy, zx, yy, yx, xx)``, six in 2D ``(1, y, x, yy, yx, xx)``.

`splat_flat` and `gather_flat` are a second such pair, with the ellipsoids ``1_i(x) = [|y| < support]`` in place of the
Gaussians.

They run on the device of their tensors, the CPU (`cpu`) or an NVIDIA GPU (`cuda`). On a GPU the host does not wait for
a check of finite numbers: `splat` finds NaN in means and factors when it lists the tiles they reach into, `gather`
leaves such Gaussians at 0, and NaN in coefficients and grids spreads, as it does in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..devices import available_device, devices, first_sentence, unusable_message
from ..errors import InputError
from .constants import NOT_FINITE, SUPPORT

__all__ = [
    "SUPPORT",
    "available_device",
    "devices",
    "gather",
    "gather_flat",
    "n_monomials",
    "prepare",
    "splat",
    "splat_flat",
]


def _kernels(device: torch.device) -> ModuleType:
    """Return the module with the kernels for a device."""
    if device.type == "cuda":
        from . import cuda

        return cuda
    from . import cpu

    return cpu


def prepare(device: torch.device) -> None:
    """Load the kernels, and compile those that are not cached yet, so that the next calls are fast.

    Raises
    ------
    ValueError
        If the kernels do not run on the GPU.
    """
    ndim = 3
    one = torch.zeros(1, ndim, device=device), torch.eye(ndim, device=device)[None]
    try:
        gather(*one, splat(*one, torch.ones(1, n_monomials(ndim), device=device), (2, 2, 2)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of numba's, of the driver's: there are many
        if device.type == "cpu":
            raise
        raise InputError(
            f"{unusable_message(str(device), f'its kernels do not run ({first_sentence(error)}).')}"
        ) from error


def n_monomials(ndim: int) -> int:
    """Return the number of monomials of degree at most two in `ndim` variables: 10 in 3D, 6 in 2D."""
    return (ndim + 1) * (ndim + 2) // 2


def splat(
    means: Tensor, factors: Tensor, coefficients: Tensor, shape: Sequence[int], *, support: float = SUPPORT
) -> Tensor:
    """Sum Gaussians times quadratic polynomials over a grid.

    Parameters
    ----------
    means : Tensor, (N, D)
        Centres in index coordinates of the grid (array axis order), D = 2 or 3.
    factors : Tensor, (N, D, D)
        ``W``, with precision ``W W^T``; invertible.
    coefficients : Tensor, (N, K)
        Coefficients of the monomials of ``x - mu``; K as `n_monomials` says.
    shape : sequence of int
        Shape of the grid, D axes.
    support : float
        Radius in standard deviations at which e_i is cut, at most `SUPPORT`.

    Returns
    -------
    Tensor, `shape`, float32
        ``sum_i e_i(x) sum_k coefficients[i, k] monomial_k(x - mu_i)`` at each voxel.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, a mean, factor or coefficient is not finite, or `support` is out of range.
    """
    _check(means, factors, coefficients, len(shape))
    _check_support(support)
    if coefficients.shape != (len(means), n_monomials(len(shape))):
        raise InputError(
            f"{len(means)} Gaussians in {len(shape)}D need coefficients of shape "
            f"{(len(means), n_monomials(len(shape)))}; got {tuple(coefficients.shape)}."
        )
    _check_finite("A coefficient is NaN or infinite.", coefficients)
    values: Tensor = _kernels(means.device).splat(means, factors, coefficients, tuple(shape), support)
    return values


def gather(means: Tensor, factors: Tensor, grid: Tensor, *, support: float = SUPPORT) -> Tensor:
    """Sum a grid times Gaussians times monomials; the adjoint of `splat`.

    Parameters
    ----------
    means, factors : Tensor, (N, D), (N, D, D)
        As in `splat`.
    grid : Tensor, D axes, float32
        One number a voxel.
    support : float
        As in `splat`.

    Returns
    -------
    Tensor, (N, K), float32
        ``sum_x grid(x) e_i(x) monomial_k(x - mu_i)``.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, a mean or factor is not finite, or `support` is out of range.
    """
    _check(means, factors, grid, grid.ndim)
    _check_support(support)
    moments: Tensor = _kernels(means.device).gather(means, factors, grid, support)
    return moments


def splat_flat(means: Tensor, factors: Tensor, values: Tensor, shape: Sequence[int], support: float) -> Tensor:
    """Sum constants over ellipsoids.

    Parameters
    ----------
    means, factors : Tensor, (N, D), (N, D, D)
        As in `splat`.
    values : Tensor, (N,)
        One number an ellipsoid. Of integers the sums are exact, modulo 2^64.
    shape : sequence of int
        Shape of the grid, D axes.
    support : float
        Radius of the ellipsoids in standard deviations; may exceed `SUPPORT`. Rounding decides about voxels right on
        the surface.

    Returns
    -------
    Tensor, `shape`, float32, or int64 if `values` are integers
        ``sum_i values[i] 1_i(x)``, ``1_i(x) = [|W_i^T (x - mu_i)| < support]``, at each voxel.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, a mean, factor or value is not finite, or `support` is out of range.
    """
    _check(means, factors, values, len(shape))
    _check_support(support, math.inf)
    if values.shape != (len(means),):
        raise InputError(f"{len(means)} ellipsoids need as many values; got values of shape {tuple(values.shape)}.")
    _check_finite("A value is NaN or infinite.", values)
    sums: Tensor = _kernels(means.device).splat_flat(means, factors, values, tuple(shape), support)
    return sums


def gather_flat(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Sum a grid over ellipsoids; the transpose of `splat_flat`.

    Parameters
    ----------
    means, factors, support
        As in `splat_flat`.
    grid : Tensor, D axes, float32
        One number a voxel.

    Returns
    -------
    Tensor, (N,), float32
        ``sum_x grid(x) 1_i(x)``.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, a mean or factor is not finite, or `support` is out of range.
    """
    _check(means, factors, grid, grid.ndim)
    _check_support(support, math.inf)
    sums: Tensor = _kernels(means.device).gather_flat(means, factors, grid, support)
    return sums


def _check(means: Tensor, factors: Tensor, amounts: Tensor, ndim: int) -> None:
    """Raise ValueError unless means and factors are of that many axes, finite, and where the amounts are."""
    if ndim not in (2, 3):
        raise InputError(f"The kernels work on grids of 2 or 3 axes; this one has {ndim}.")
    n = len(means)
    if means.shape != (n, ndim) or factors.shape != (n, ndim, ndim):
        raise InputError(
            f"On a {ndim}D grid means are (N, {ndim}) and factors (N, {ndim}, {ndim}); "
            f"got {tuple(means.shape)} and {tuple(factors.shape)}."
        )
    if not means.device == factors.device == amounts.device:
        raise InputError(f"Tensors have to be on one device; got {means.device}, {factors.device}, {amounts.device}.")
    _check_finite(NOT_FINITE, means, factors)


def _check_finite(message: str, *tensors: Tensor) -> None:
    """Raise ValueError if a tensor on the CPU is not finite; for one on a GPU the host would have to wait."""
    if any(t.device.type == "cpu" and not torch.isfinite(t).all() for t in tensors):
        raise InputError(message)


def _check_support(support: float, most: float = SUPPORT) -> None:
    if not (0 < support <= most and math.isfinite(support)):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise InputError(f"The support has to be positive{limit}; got {support:g}.")
