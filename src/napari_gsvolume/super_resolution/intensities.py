"""Normalization of intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Intensities:
    """The line that intensities are normalised by.

    Attributes
    ----------
    centre, scale : float
        0 and 1 become ``centre`` and ``centre + scale``.
    """

    centre: float
    scale: float

    @classmethod
    def of(cls, volume: NDArray[np.float32]) -> Intensities:
        """Return the median, and a quarter of what lies between the percentiles 1 and 99 (of all, if that is 0)."""
        low, middle, high = np.percentile(volume, (1, 50, 99))
        span = high - low or float(volume.max()) - float(volume.min())
        return cls(float(middle), float(span) / 4)
