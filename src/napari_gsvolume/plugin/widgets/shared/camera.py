"""Camera of the viewer, as cameras of the package and as geometry of a parallel projection."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.viewer import Viewer
from numpy.typing import NDArray

from ....grid import Grid
from ....rendering.cameras import Cameras
from ....tomography.presets import parallel_view
from ....tomography.scan import Scan
from ....units import voxel_size_mm


@dataclass(frozen=True, eq=False)
class ViewerCamera:
    """Cameras with the view of a volume on a viewer's canvas.

    Attributes
    ----------
    cameras : Cameras
    mirrored : bool
        True if the canvas shows the mirror image of the cameras' picture, which is the default: (x, y, z) is
        right-handed for cameras, (z, y, x) for napari.
    centre : (float, float, float)
        World coordinates (last three axes) in the middle of the picture.
    pixel : float
        Size of a pixel there, in the unit of the world.
    """

    cameras: Cameras
    mirrored: bool
    centre: tuple[float, float, float]
    pixel: float

    def as_displayed(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return an image ``(H, W, C)`` of a camera, mirrored as the canvas shows it."""
        return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image

    def orbit(self, n: int) -> ViewerCamera:
        """Return `n` cameras on an orbit around the vertical of the picture, the first at this one."""
        [matrix] = self.cameras.matrices
        axis = matrix[1, :3]  # the camera's y, in the world
        K = np.cross(np.eye(3), axis)
        matrices = np.tile(matrix, (n, 1, 1))
        for k, angle in enumerate(2 * math.pi * np.arange(n) / n):
            turn = np.eye(3) + math.sin(angle) * K + (1 - math.cos(angle)) * K @ K  # Rodrigues' formula
            matrices[k, :3, :3] = matrix[:3, :3] @ turn
        intrinsics = np.tile(self.cameras.intrinsics, (n, 1, 1))
        return replace(self, cameras=replace(self.cameras, matrices=matrices, intrinsics=intrinsics))


def viewer_camera(viewer: Viewer, grid: Grid, size: int) -> ViewerCamera:
    """Return the camera of the canvas, in the frame of a grid.

    In 3D, direction, centre, zoom and perspective are those of the canvas: each point of the volume is at the same
    place in the picture as on the canvas. In 2D, the camera looks along the sliced axis, through all slices, with
    parallel rays. A sheared layer is an exception: it is seen along the same rays, but drawn without the shear.

    Parameters
    ----------
    viewer : napari.Viewer
    grid : Grid
    size : int
        Longer side of the picture, pixels.
    """
    mm = voxel_size_mm(grid)
    to_mm = np.diag(mm) @ np.linalg.inv(grid.affine[:-1, :-1])  # differences in the world, to mm along the array axes
    forward, right, down = ((to_mm @ way)[::-1] for way in _directions(viewer))
    forward = forward / np.linalg.norm(forward)
    down = down - forward * (forward @ down)
    down = down / np.linalg.norm(down)
    across = np.cross(down, forward)
    mirrored = bool(across @ right < 0)

    dims, camera = viewer.dims, viewer.scene.camera
    world = float(np.linalg.norm(to_mm @ _directions(viewer)[2]))  # mm of a unit of the world, down the picture
    height, width = (max(1.0, float(n)) for n in viewer.canvas.viewbox_size(viewer.layers))
    factor = size / max(height, width)
    shape = (max(1, round(factor * height)), max(1, round(factor * width)))
    focal = camera.zoom / world * factor  # pixels of the picture a mm, in the plane of the centre
    point = _centre(viewer, grid)
    centre = to_mm @ (point - grid.affine[:-1, :-1] @ _middle(grid) - grid.affine[:-1, -1])
    space = dims.ndisplay == 3
    orthographic = not (space and camera.perspective > 0)
    distance = 2 * float(np.linalg.norm(mm * grid.shape))
    if not orthographic:
        angle = math.radians(max(camera.perspective, 0.01)) / 2
        distance = shape[0] / 2 / math.tan(angle) / focal
        focal *= distance
    matrix = np.eye(4)
    matrix[:3, :3] = across, down, forward
    matrix[:3, 3] = -matrix[:3, :3] @ (centre[::-1] - distance * forward)
    intrinsics = np.array([[focal, 0, shape[1] / 2], [0, focal, shape[0] / 2], [0, 0, 1]])
    cameras = Cameras(matrix[None], intrinsics[None], shape, orthographic)
    return ViewerCamera(cameras, mirrored, (point[0], point[1], point[2]), 1 / (camera.zoom * factor))


def _middle(grid: Grid) -> NDArray[np.float64]:
    return (np.array(grid.shape) - 1) / 2


def _centre(viewer: Viewer, grid: Grid) -> NDArray[np.float64]:
    """Return the world coordinates (last three axes) in the middle of the canvas."""
    dims, centre = viewer.dims, np.array(viewer.scene.camera.center, float)
    point = grid.affine[:-1, :-1] @ _middle(grid) + grid.affine[:-1, -1]  # along an axis that is sliced
    shown = list(dims.order)[-dims.ndisplay :]
    for axis, value in zip(shown, centre[-dims.ndisplay :], strict=True):
        if axis >= dims.ndim - 3:
            point[axis - (dims.ndim - 3)] = value
    return point


def scan_along_view(viewer: Viewer, grid: Grid, most: int | None = None) -> Scan:
    """Return the geometry of one parallel projection of a grid along the viewer's line of sight.

    In 3D the rays run along the view direction of the camera, in 2D across the slices.

    Parameters
    ----------
    viewer : napari.Viewer
    grid : Grid
    most : int, optional
        Largest number of pixels of the longer side of the detector.
    """
    size = voxel_size_mm(grid)
    # Index coordinates times mm are the scanner's frame.
    ray, right, down = np.linalg.solve(grid.affine[:-1, :-1], _directions(viewer).T).T * size
    scan = parallel_view(grid.shape, size, ray, right, down)
    if most is not None and max(scan.pixels) > most:
        side = float(size.min()) * max(scan.pixels) / most
        scan = parallel_view(grid.shape, size, ray, right, down, pixel_size=(side, side))
    return scan


def _directions(viewer: Viewer) -> NDArray[np.float64]:
    """Return the view direction, right and down of the canvas, as rows, in the world's last three axes."""
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
