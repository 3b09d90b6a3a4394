"""Units of length: everything that the package does with them, by pint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from .grid import Grid
from .types import Float64Array


@cache
def metres_per_unit(unit: str) -> float | None:
    """Return the length of a unit in metres; None if the unit is no length, as a pixel, or is unknown.

    Parameters
    ----------
    unit : str
        Unit in any spelling that pint reads: ``"mm"``, ``"millimeter"``, ``"um"``, ``"micron"``, ...

    Examples
    --------
    >>> from napari_gsvolume.units import metres_per_unit
    >>> metres_per_unit("mm"), metres_per_unit("pixel")
    (0.001, None)
    """
    return _length(unit, "m")


@cache
def mm_per_unit(unit: str) -> float:
    """Return the length of a unit in millimetres; 1 if the unit is no length, as a pixel.

    Examples
    --------
    >>> from napari_gsvolume.units import mm_per_unit
    >>> mm_per_unit("um"), mm_per_unit("pixel")
    (0.001, 1.0)
    """
    length = _length(unit, "mm")
    return 1.0 if length is None else length


def voxel_size_mm(grid: Grid) -> Float64Array:
    """Return the voxel size of a grid in millimetres, shape ``(D,)``; units that are no lengths count as millimetres.

    Examples
    --------
    >>> from napari_gsvolume import Grid
    >>> from napari_gsvolume.units import voxel_size_mm
    >>> voxel_size_mm(Grid((4, 4), units=("um", "um"))).tolist()
    [0.001, 0.001]
    """
    return grid.voxel_size * [mm_per_unit(unit) for unit in grid.units]


def are_same_units(units: Sequence[str], others: Sequence[str]) -> bool:
    """Return True if units are equal axis by axis, in any spelling; pixels are compatible with every unit."""
    from pint import Unit

    pairs = zip(units, others, strict=False)
    return all("pixel" in pair or Unit(pair[0]) == Unit(pair[1]) for pair in pairs)


def _length(unit: str, target: str) -> float | None:
    from pint import Quantity, UndefinedUnitError

    try:
        quantity = Quantity(1, unit)
    except UndefinedUnitError:
        return None
    return float(quantity.to(target).magnitude) if quantity.check("[length]") else None
