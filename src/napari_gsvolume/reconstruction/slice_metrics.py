"""How near a volume recovered from some of its slices comes to the others, and a spline to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics import psnr_between


def missing_psnr(reconstruction: ArrayLike, volume: ArrayLike, known: NDArray[np.bool_], axis: int) -> float:
    """Return the PSNR in dB over the slices that were not known, with the volume's data range max - min."""
    truth, found = (np.moveaxis(np.asarray(v, np.float64), axis, 0) for v in (volume, reconstruction))
    return psnr_between(truth[~known], found[~known], float(np.ptp(truth)))


def cubic_spline(volume: ArrayLike, known: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Return the cubic spline through the known slices, to compare with."""
    from scipy.interpolate import make_interp_spline

    stack = np.moveaxis(np.asarray(volume, np.float64), axis, 0)
    places = np.flatnonzero(known)
    spline = make_interp_spline(places, stack[places], k=min(3, len(places) - 1), axis=0)
    # Beyond the last known slice there is nothing to interpolate: the last one goes on.
    values = spline(np.clip(np.arange(len(stack)), 0, places[-1]))
    return np.moveaxis(values, 0, axis)
