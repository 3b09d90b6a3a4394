"""Sliders of the viewer, and the slices of a grid that they show."""

from __future__ import annotations

import numpy as np
from napari.viewer import Viewer

from ....grid import Grid


def index_at(viewer: Viewer, grid: Grid, axis: int) -> int:
    """Return the index along an axis of a grid at the viewer's slider, clipped to the grid."""
    dim, slope, offset = _line(grid, axis)
    point = viewer.dims.point[viewer.dims.ndim - grid.ndim + dim]
    return min(max(int(np.rint(slope * point + offset)), 0), grid.shape[axis] - 1)


def move_to(viewer: Viewer, grid: Grid, axis: int, index: int) -> None:
    """Move the viewer's slider to a slice of a grid."""
    dim, slope, offset = _line(grid, axis)
    index = min(max(index, 0), grid.shape[axis] - 1)
    viewer.dims.set_point(viewer.dims.ndim - grid.ndim + dim, (index - offset) / slope)


def set_slice_axis(viewer: Viewer, axis: int) -> None:
    """Show the slices across an axis (0 to 2, of the last three), if the viewer is in 2D and shows others."""
    dims = viewer.dims
    first = dims.ndim - 3
    if dims.ndisplay != 2 or first < 0 or first + axis not in dims.displayed:
        return
    others = [k for k in range(first, dims.ndim) if k != first + axis]
    dims.order = (*range(first), first + axis, *others)
    viewer.reset_view()


def slice_axis_of(viewer: Viewer) -> int:
    """Return the axis (0 to 2, of the last three) across which the viewer shows slices."""
    dims = viewer.dims
    if dims.ndisplay == 2 and dims.ndim >= 3:
        return max(int(dim) for dim in dims.not_displayed) - int(dims.ndim - 3)
    return 0


def _line(grid: Grid, axis: int) -> tuple[int, float, float]:
    """Return the world axis along an axis of a grid, and slope and offset of index = slope * world + offset.

    For oblique grids the contributions of the other axes are left out, as in napari's slicing.
    """
    inverse = np.linalg.inv(grid.affine)[axis]
    dim = int(np.abs(inverse[:-1]).argmax())
    return dim, float(inverse[dim]), float(inverse[-1])
