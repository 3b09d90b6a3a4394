"""How the viewer looks at its layers, as directions of rays and of the rows and columns of a detector."""

from __future__ import annotations

import numpy as np
from napari.viewer import Viewer
from numpy.typing import NDArray

from ..geometry import Grid
from ..scan import Scan, along, voxel_size_mm


def seen_along(viewer: Viewer, grid: Grid, most: int | None = None) -> Scan:
    """Return one parallel view of a grid's voxels the way the viewer shows them.

    In 3D rays run along the camera's; in 2D through the slices, as if all of them were looked through.

    Parameters
    ----------
    viewer : napari.Viewer
    grid : Grid
    most : int, optional
        Pixels of the longer side of the detector, at most.
    """
    size = voxel_size_mm(grid)
    # Index coordinates times mm are the scanner's frame.
    ray, right, down = np.linalg.solve(grid.affine[:-1, :-1], _directions(viewer).T).T * size
    scan = along(grid.shape, size, ray, right, down)
    if most is not None and max(scan.pixels) > most:
        side = float(size.min()) * max(scan.pixels) / most
        scan = along(grid.shape, size, ray, right, down, pixel_size=(side, side))
    return scan


def _directions(viewer: Viewer) -> NDArray[np.float64]:
    """Return where the viewer looks, its right and its down, rows in the world's last three axes."""
    dims, camera = viewer.dims, viewer.scene.camera
    spatial = [axis for axis in dims.order if axis >= dims.ndim - 3]
    if dims.ndisplay == 3 and len(spatial) == 3:
        view, up = np.array(camera.view_direction, float), np.array(camera.up_direction, float)
        right = np.cross(view, up) * (1 if str(camera.handedness.value) == "right" else -1)
        shown = np.stack([view, right, -up])
    else:
        vertical, horizontal = (str(way.value) for way in camera.orientation2d)
        shown = np.zeros((3, 3))
        shown[0, 0] = 1
        shown[1, 2] = 1 if horizontal == "right" else -1
        shown[2, 1] = 1 if vertical == "down" else -1
    directions = np.zeros((3, 3))
    directions[:, [axis - (dims.ndim - 3) for axis in spatial]] = shown
    return directions
