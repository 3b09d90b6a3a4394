"""Estimation of the noise variance of projections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS = 12
_MEDIAN_OF_SQUARES = 0.4549
"""Median of the square of a standard normal variable."""


def estimate_variance(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the variance of white noise in projections, as a function of their values.

    Parameters
    ----------
    images : ndarray, (K, V, U)
        Projections.

    Returns
    -------
    ndarray, (K, V, U)
        Noise variance of each pixel.

    Notes
    -----
    Mixed second differences along both axes, ``[1, -2, 1] x [1, -2, 1] / 6``, are dominated by noise [1]_; the median
    of their squares is robust against edges. The noise of X-rays grows with the line integral, so the variance is
    estimated in bins of the values and interpolated.

    References
    ----------
    .. [1] J. Immerkaer, "Fast noise variance estimation", Comput. Vis. Image Underst. 64(2), 300-302, 1996.
    """
    if min(images.shape[1:]) < 3:
        return np.zeros(images.shape)
    columns = np.diff(images, 2, axis=2)
    squares = (np.diff(columns, 2, axis=1) / 6) ** 2
    middle = images[:, 1:-1, 1:-1]
    edges = np.unique(np.quantile(middle, np.linspace(0, 1, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, max(len(edges) - 2, 0))
    occupied = [b for b in range(max(len(edges) - 1, 1)) if (bins == b).any()]
    brightness = np.array([np.median(middle[bins == b]) for b in occupied])
    variance = np.array([np.median(squares[bins == b]) / _MEDIAN_OF_SQUARES for b in occupied])
    # Structure only adds variance, so that the variance is made non-decreasing with the value.
    variance = np.minimum.accumulate(variance[::-1])[::-1]
    interpolated: NDArray[np.float64] = np.interp(images, brightness, variance)
    return interpolated
