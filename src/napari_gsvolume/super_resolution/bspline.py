"""Super-resolution by a B-spline: what every learned scheme has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..svd.continuous_basis import ContinuousBasis, fine_centres
from .degradation import Array, Degradation, separable
from .settings import Axes


def factors_of(factor: float, axis: int, axes: Axes, ndim: int = 3) -> tuple[float, ...]:
    """Return the factor for each array axis of a volume whose slices are stacked along `axis`.

    A single image (`ndim` 2) has only what is in-plane.

    Raises
    ------
    ValueError
        If there is no such axis.
    """
    if ndim == 2:
        if axes == "through-plane" or axis != 0:
            raise InputError("An image of two axes is one slice along z; it has no other slices.")
        return factor, factor
    return tuple(factor if (k == axis) == (axes == "through-plane") else 1.0 for k in range(ndim))


@lru_cache(maxsize=64)
def interpolation(n: int, factor: float, order: int = 3) -> NDArray[np.float64]:
    """Return the matrix (round(n factor), n) from samples to their B-spline at the centres of finer voxels.

    Boundaries are mirrored about the outer faces; see `ContinuousBasis`. It is kept: leave it as it is.
    """
    return ContinuousBasis.fitted(np.eye(n), order=order).evaluate(fine_centres(n, factor))


def spline(volume: Array, factors: Sequence[float], order: int = 3, onto: Degradation | None = None) -> Array:
    """Return a volume, made finer by a B-spline through its voxels.

    Parameters
    ----------
    volume : ndarray or Tensor, (..., n_1, ..., n_d)
        Axes before the last d are a batch. Integers become float32.
    factors : sequence of float, (d,)
        For each of the last d axes, 1 or more; the finer grid is ``Grid.resampled(factors)``.
    order : int
        Of the B-spline, 1 (linear) to 5.
    onto : Degradation, optional
        Project, so that the result degrades to exactly `volume`.

    Returns
    -------
    ndarray or Tensor, (..., round(n_1 f_1), ..., round(n_d f_d))

    Raises
    ------
    ValueError
        If the volume is not finite, or order or factors are not as above.
    """
    lengths = tuple(volume.shape)[volume.ndim - len(factors) :]
    if len(lengths) != len(factors) or min(volume.shape) < 1 or not all(np.isfinite(f) and f >= 1 for f in factors):
        raise InputError(
            f"Each axis has voxels and a factor of 1 or more; got {tuple(volume.shape)}, {tuple(factors)}."
        )
    if not (volume.isfinite() if isinstance(volume, torch.Tensor) else np.isfinite(volume)).all():
        raise InputError("There are NaN or infinite intensities, which would spread; replace them first.")
    matrices = [None if f == 1 else interpolation(n, f, order) for n, f in zip(lengths, factors, strict=True)]
    finer = separable(volume, matrices)
    return finer if onto is None else onto.project(finer, volume)


def finer(n: int, factor: float, order: int = 3) -> NDArray[np.float64]:
    """Return `interpolation` by splines, (round(n factor), n), which of a factor of 1 changes nothing."""
    return np.eye(n) if factor == 1 else interpolation(n, factor, order)
