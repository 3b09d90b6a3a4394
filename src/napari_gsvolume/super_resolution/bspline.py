"""B-spline interpolation: the baseline of super-resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..svd.continuous_basis import ContinuousBasis, fine_centres
from .degradation import Array, Degradation, apply_separable
from .settings import UpsampleAxes


def upsampling_factors(factor: float, axis: int, axes: UpsampleAxes, ndim: int = 3) -> tuple[float, ...]:
    """Return the upsampling factor of each array axis of a volume with slices stacked along `axis`.

    A single image (`ndim` 2) allows in-plane super-resolution only.

    Raises
    ------
    InputError
        If there is no such axis.

    Examples
    --------
    >>> from napari_gsvolume.super_resolution.bspline import upsampling_factors
    >>> upsampling_factors(2, 0, "in-plane"), upsampling_factors(3, 0, "through-plane")
    ((1.0, 2, 2), (3, 1.0, 1.0))
    """
    if ndim == 2:
        if axes == "through-plane" or axis != 0:
            raise InputError("An image of two axes is one slice along z; it has no other slices.")
        return factor, factor
    return tuple(factor if (k == axis) == (axes == "through-plane") else 1.0 for k in range(ndim))


@lru_cache(maxsize=64)
def interpolation_matrix(n: int, factor: float, order: int = 3) -> NDArray[np.float64]:
    """Return the matrix (round(n factor), n) from samples to their B-spline at the centres of the fine voxels.

    Boundaries are mirrored about the outer faces; see `ContinuousBasis`. The matrix is cached: do not modify it.
    """
    return ContinuousBasis.fit(np.eye(n), order=order).evaluate(fine_centres(n, factor))


def upsample_bspline(volume: Array, factors: Sequence[float], order: int = 3, onto: Degradation | None = None) -> Array:
    """Return a volume upsampled by the B-spline through its voxels [1]_.

    Parameters
    ----------
    volume : ndarray or Tensor, (..., n_1, ..., n_d)
        Axes before the last d are a batch. Integers become float32.
    factors : sequence of float, (d,)
        Factors of the last d axes, 1 or more; the fine grid is ``Grid.resampled(factors)``.
    order : int
        Degree of the B-spline, 1 (linear) to 5.
    onto : Degradation, optional
        Degradation model: the result is projected so that its degradation equals `volume`.

    Returns
    -------
    ndarray or Tensor, (..., round(n_1 f_1), ..., round(n_d f_d))

    Raises
    ------
    InputError
        If the volume is not finite, or degree or factors are out of range.

    References
    ----------
    .. [1] M. Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 16,
       1999.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.super_resolution import upsample_bspline
    >>> upsample_bspline(np.ones((4, 5)), (2, 2)).shape
    (8, 10)
    """
    lengths = tuple(volume.shape)[volume.ndim - len(factors) :]
    if len(lengths) != len(factors) or min(volume.shape) < 1 or not all(np.isfinite(f) and f >= 1 for f in factors):
        raise InputError(
            f"Each axis needs voxels and a factor of 1 or more; got the shape {tuple(volume.shape)} and the factors "
            f"{tuple(factors)}."
        )
    if not (volume.isfinite() if isinstance(volume, torch.Tensor) else np.isfinite(volume)).all():
        raise InputError("The volume contains NaN or infinite intensities, which would spread; replace them first.")
    matrices = [None if f == 1 else interpolation_matrix(n, f, order) for n, f in zip(lengths, factors, strict=True)]
    upsampled = apply_separable(volume, matrices)
    return upsampled if onto is None else onto.project(upsampled, volume)


def upsample_matrix(n: int, factor: float, order: int = 3) -> NDArray[np.float64]:
    """Return `interpolation_matrix`, (round(n factor), n); the identity for a factor of 1."""
    return np.eye(n) if factor == 1 else interpolation_matrix(n, factor, order)
