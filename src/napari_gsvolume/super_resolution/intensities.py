"""Normalization of intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Intensities:
    """Linear normalization of intensities: ``normalized = (intensity - centre) / scale``.

    Attributes
    ----------
    centre, scale : float
        Intensity that becomes 0, and the difference of intensities that becomes 1.
    """

    centre: float
    scale: float

    @classmethod
    def of(cls, volume: NDArray[np.float32]) -> Intensities:
        """Return the normalization by the median and a quarter of the span of the percentiles 1 to 99 (or of all)."""
        low, middle, high = np.percentile(volume, (1, 50, 99))
        span = high - low or float(volume.max()) - float(volume.min())
        return cls(float(middle), float(span) / 4)
