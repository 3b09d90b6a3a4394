"""How noisy images are, from the images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS = 12
_MEDIAN_OF_SQUARES = 0.4549
"""Median of the square of a standard normal variable."""


def estimate_variance(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance of white noise in images ``(K, V, U)``, as a function of how bright they are.

    Mixed second differences along both axes, ``[1, -2, 1] x [1, -2, 1] / 6``, are nearly all noise; the median of their
    squares is not misled by edges. X-rays are noisier where more is in their way, so that is found out for ranges of
    brightness one by one, and interpolated.
    """
    if min(images.shape[1:]) < 3:
        return np.zeros(images.shape)
    columns = np.diff(images, 2, axis=2)
    squares = (np.diff(columns, 2, axis=1) / 6) ** 2
    middle = images[:, 1:-1, 1:-1]
    edges = np.unique(np.quantile(middle, np.linspace(0, 1, _BINS + 1)))
    bins = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, max(len(edges) - 2, 0))
    inhabited = [b for b in range(max(len(edges) - 1, 1)) if (bins == b).any()]
    brightness = np.array([np.median(middle[bins == b]) for b in inhabited])
    variance = np.array([np.median(squares[bins == b]) / _MEDIAN_OF_SQUARES for b in inhabited])
    # Structure only adds to it: nothing is noisier than what is brighter.
    variance = np.minimum.accumulate(variance[::-1])[::-1]
    interpolated: NDArray[np.float64] = np.interp(images, brightness, variance)
    return interpolated
