"""PSNR of a reconstruction on the slices that were not known, and cubic interpolation as a baseline."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics import psnr_between


def missing_psnr(reconstruction: ArrayLike, volume: ArrayLike, known: NDArray[np.bool_], axis: int) -> float:
    """Return the PSNR in dB over the unknown slices, with the data range max - min of the volume.

    Parameters
    ----------
    reconstruction, volume : array_like, (Z, Y, X)
        Reconstructed and true volume.
    known : ndarray of bool
        Mask of the known slices along `axis`.
    axis : int
        Array axis along which slices are stacked.
    """
    truth, found = (np.moveaxis(np.asarray(v, np.float64), axis, 0) for v in (volume, reconstruction))
    return psnr_between(truth[~known], found[~known], float(np.ptp(truth)))


def cubic_spline(volume: ArrayLike, known: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Interpolate the unknown slices by a cubic spline through the known slices."""
    from scipy.interpolate import make_interp_spline

    stack = np.moveaxis(np.asarray(volume, np.float64), axis, 0)
    positions = np.flatnonzero(known)
    spline = make_interp_spline(positions, stack[positions], k=min(3, len(positions) - 1), axis=0)
    # The last known slice is repeated beyond its position, where a spline would extrapolate.
    values = spline(np.clip(np.arange(len(stack)), 0, positions[-1]))
    return np.moveaxis(values, 0, axis)
