"""Units of length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .grid import Grid


def voxel_size_mm(grid: Grid) -> NDArray[np.float64]:
    """Return the size of a voxel, mm; where the unit is no length, as that of pixels, it counts as mm."""
    from pint import Quantity

    units = (Quantity(1, unit) for unit in grid.units)
    return grid.voxel_size * [float(u.to("mm").magnitude) if u.check("[length]") else 1.0 for u in units]


def mm_per_unit(unit: str) -> float:
    """Return how many millimetres a unit of the world is; 1 if it is no length, as a pixel."""
    return float(voxel_size_mm(Grid((1, 1, 1), units=(unit,) * 3))[0])
