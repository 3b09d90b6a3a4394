"""Direct volume rendering of voxel volumes: ray marching through the trilinear interpolant (numba, all cores).

The volume is the box of its voxels, which extends half a voxel beyond the outermost centres; there the intensity is
that of the nearest point between centres. So a constant volume fills its physical extent, and the line integral along
an axis is the sum of the voxels. The part of each ray inside the box is divided into equal steps. Steps in blocks
without visible voxels are skipped, which changes no image.

Between two samples the intensity is linear, and colour and extinction are averages over these intensities, from tables
of their integrals (pre-integrated volume rendering), so that steps cannot jump over a sharp surface. The modes other
than "dvr" sample intensities in the middle of the steps.

References
----------
M. Levoy, "Display of surfaces from volume data", IEEE Computer Graphics and Applications 8 (3), 1988.
N. Max, "Optical models for direct volume rendering", IEEE Transactions on Visualization and Computer Graphics 1, 1995.
K. Engel, M. Kraus, T. Ertl, "High-quality pre-integrated volume rendering using hardware-accelerated pixel shading",
Graphics Hardware, 2001.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...devices import available_device
from ...errors import InputError
from ...kernels.numba_support import launch_lock
from ...progress import Budget, Step, finish
from ...types import Float32Array, Float64Array
from ..cameras import Cameras, bounding_radius
from ..settings import RenderMode
from . import ray_marching_torch
from .ray_marching import TABLE_SIZE, block_ranges, composite_image, project_image
from .transfer_functions import TransferFunction

RAY_STEP = 0.5
"""Default distance between samples along a ray, in units of the smallest voxel side."""
_MODES: dict[str, int] = {"mip": 0, "minip": 1, "mean": 2, "xray": 3}
_MIN_GRADIENT = (
    0.05  # per voxel, relative to the transfer function's span; shading of weaker gradients (noise) fades out
)


@dataclass(frozen=True, eq=False)
class RenderStep(Step):
    """State of `render_views_steps` after each image.

    Attributes
    ----------
    view, views : int
        Number of rendered images, and number of images in total.
    image : ndarray, (H, W, C), float32
        Newest image.
    """

    view: int
    views: int
    image: Float32Array = field(repr=False)

    @property
    def summary(self) -> str:
        """Number of rendered images, as in "3 of 24"."""
        return f"{self.view} of {self.views}"


def render_views(
    volume: ArrayLike,
    voxel_size: ArrayLike,
    cameras: Cameras,
    mode: RenderMode = "dvr",
    transfer_function: TransferFunction | None = None,
    *,
    ray_step: float = RAY_STEP,
    shading: bool | None = None,
    background: ArrayLike = (0.0, 0.0, 0.0),
    mask: ArrayLike | None = None,
    device: str = "auto",
) -> Float32Array:
    """Render a volume from all cameras of a set.

    In mode "dvr" light is emitted and absorbed along each ray: with the colour c(s) and the extinction w(s) that the
    transfer function assigns to the intensity s, a pixel is ``I = integral c(s) w(s) exp(-integral w(s)) dt``,
    composited front to back until the transmittance falls below 0.001. Shading is Phong's, with a light at the camera
    that illuminates both sides of surfaces; normals are central differences of the interpolant.

    Parameters
    ----------
    volume : array_like, (Z, Y, X)
        Intensities; rendered as float32.
    voxel_size : array_like, (3,) or a number
        Voxel size along z, y, x, mm.
    cameras : Cameras
        V cameras in the OpenCV convention; world coordinates are (x, y, z) in mm, with the volume's centre as the
        origin.
    mode : "dvr", "mip", "minip", "mean" or "xray"
        Direct volume rendering (colours); maximum, minimum or mean intensity along the ray inside the volume; or line
        integral, in intensity times mm.
    transfer_function : TransferFunction, optional
        Colours and opacities of mode "dvr"; by default the preset "gray".
    ray_step : float
        Maximum distance between samples, in units of the smallest voxel side.
    shading : bool, optional
        Phong shading of mode "dvr"; by default as the transfer function says.
    background : array_like, (3,)
        Background colour of mode "dvr", 0 to 1. Rays that miss the volume get its minimum in modes "mip" and "mean",
        its maximum in mode "minip", and 0 in mode "xray".
    mask : array_like, (Z, Y, X), optional
        Voxels where the mask is 0 (nearest neighbour) are treated as empty.
    device : str
        Compute device, see `napari_gsvolume.devices.available_device`; a GPU renders with torch.

    Returns
    -------
    ndarray, (V, H, W, C), float32
        C = 3 colour channels, 0 to 1, in mode "dvr"; otherwise C = 1.

    Raises
    ------
    InputError
        If the volume is not finite or has not three axes, the shape of the mask differs, the mode does not exist, the
        voxel size, ray step or background is out of range, or the device cannot be used.

    See Also
    --------
    render_views_steps : the same with progress
    iter_views : images one after another

    References
    ----------
    M. Levoy, "Display of surfaces from volume data", IEEE Computer Graphics and Applications 8 (3), 1988.
    N. Max, "Optical models for direct volume rendering", IEEE Transactions on Visualization and Computer Graphics 1,
    1995.
    K. Engel, M. Kraus, T. Ertl, "High-quality pre-integrated volume rendering using hardware-accelerated pixel
    shading", Graphics Hardware, 2001.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.rendering import TransferFunction, orbit_cameras, render_views, turntable_directions
    >>> volume = vessel_phantom(16)[0]
    >>> cameras = orbit_cameras(turntable_directions(3), radius=14.0, image_size=(32, 32))
    >>> render_views(volume, 1.0, cameras, "dvr", TransferFunction.from_preset("mr", volume)).shape
    (3, 32, 32, 3)
    >>> render_views(volume, 1.0, cameras, "mip").shape
    (3, 32, 32, 1)
    """
    return finish(
        render_views_steps(
            volume,
            voxel_size,
            cameras,
            mode,
            transfer_function,
            ray_step=ray_step,
            shading=shading,
            background=background,
            mask=mask,
            device=device,
        )
    )


def render_views_steps(
    volume: ArrayLike,
    voxel_size: ArrayLike,
    cameras: Cameras,
    mode: RenderMode = "dvr",
    transfer_function: TransferFunction | None = None,
    *,
    ray_step: float = RAY_STEP,
    shading: bool | None = None,
    background: ArrayLike = (0.0, 0.0, 0.0),
    mask: ArrayLike | None = None,
    device: str = "auto",
    budget: Budget | None = None,
) -> Generator[RenderStep, None, Float32Array]:
    """Yield a step after each image and return all images; parameters and errors are those of `render_views`.

    Parameters
    ----------
    budget : Budget, optional
        Stop request; a run that is stopped returns the images ``(k, H, W, C)`` of the first k cameras, k at least 1.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> from napari_gsvolume.rendering import fibonacci_directions, orbit_cameras, render_views_steps
    >>> cameras = orbit_cameras(fibonacci_directions(2), radius=14.0, image_size=(16, 16))
    >>> for step in render_views_steps(vessel_phantom(16)[0], 1.0, cameras, "mip"):
    ...     print(step.message, step.summary)
    Rendering 1 of 2
    Rendering 2 of 2
    """
    images = iter_views(
        volume,
        voxel_size,
        cameras,
        mode,
        transfer_function,
        ray_step=ray_step,
        shading=shading,
        background=background,
        mask=mask,
        device=device,
    )
    return _collect(images, len(cameras), budget or Budget())


def _collect(images: Iterator[Float32Array], views: int, budget: Budget) -> Generator[RenderStep, None, Float32Array]:
    collected: Float32Array = np.empty(0, np.float32)
    for k, image in enumerate(images):
        if not k:
            collected = np.empty((views, *image.shape), np.float32)
        collected[k] = image
        yield RenderStep((k + 1) / views, "Rendering", k + 1, views, image)
        if budget.stop():
            return collected[: k + 1]
    return collected


def iter_views(
    volume: ArrayLike,
    voxel_size: ArrayLike,
    cameras: Cameras,
    mode: RenderMode = "dvr",
    transfer_function: TransferFunction | None = None,
    *,
    ray_step: float = RAY_STEP,
    shading: bool | None = None,
    background: ArrayLike = (0.0, 0.0, 0.0),
    mask: ArrayLike | None = None,
    device: str = "auto",
) -> Iterator[Float32Array]:
    """Return an iterator over images ``(H, W, C)``, float32, each rendered when it is requested.

    Parameters and errors are those of `render_views`; inputs are checked at once.
    """
    array = np.ascontiguousarray(volume, np.float32)
    if array.ndim != 3 or not array.size:
        raise InputError(f"A volume to render has three axes (z, y, x) and at least one voxel; got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("The volume contains NaN or infinite voxels; replace them before rendering it.")
    size, background_color = (
        _three_numbers(a, name) for a, name in ((voxel_size, "voxel size"), (background, "background colour"))
    )
    if not (size > 0).all():
        raise InputError("The voxel size has to be positive.")
    if not ((background_color >= 0) & (background_color <= 1)).all():
        raise InputError("The background colour has to be from 0 to 1.")
    if not 0 < ray_step < np.inf:
        raise InputError(f"The ray step has to be positive; got {ray_step:g}.")
    if mode not in get_args(RenderMode):
        raise InputError(f"There is no mode {mode!r}; the modes are {', '.join(get_args(RenderMode))}.")
    visible = np.zeros((0, 0, 0), np.bool_) if mask is None else np.ascontiguousarray(np.asarray(mask) != 0)
    if mask is not None and visible.shape != array.shape:
        raise InputError(f"The mask has to have the volume's shape {array.shape}; got {visible.shape}.")
    if mode == "dvr" and transfer_function is None:
        transfer_function = TransferFunction.from_preset("gray", array)
    return _images(
        array,
        size,
        cameras,
        _MODES.get(mode, -1),
        transfer_function,
        ray_step * size.min(),
        shading,
        background_color,
        visible,
        available_device(device),
    )


def _images(
    volume: Float32Array,
    size: Float64Array,
    cameras: Cameras,
    mode: int,
    transfer_function: TransferFunction | None,
    step: float,
    shading: bool | None,
    background: Float64Array,
    mask: NDArray[np.bool_],
    device: str,
) -> Iterator[Float32Array]:
    orthographic = cameras.orthographic
    with launch_lock:
        least, most = block_ranges(volume)
        masked = block_ranges(mask.astype(np.float32))[1] == 0 if mask.size else np.zeros(least.shape, np.bool_)
    if mode < 0 and transfer_function is not None:
        shaded = transfer_function.shading if shading is None else shading
        diagonal = 2 * bounding_radius(volume.shape, size)
        table, low, scale = _preintegrated_table(transfer_function, least.min(), most.max(), diagonal)
        min_gradient = (_MIN_GRADIENT * float(np.ptp(transfer_function.values)) or 1e-30) / size.min()
        # A block is empty if no entry of the table between its minimum and its maximum is opaque.
        opaque = np.concatenate([[0], np.cumsum(table[:, 3] > 0)])
        first, last = (np.clip((a.astype(np.float64) - low) * scale, 0, TABLE_SIZE - 1) for a in (least, most))
        empty = masked | (opaque[np.ceil(last).astype(int) + 1] == opaque[np.floor(first).astype(int)])
    missed = float(most.max() if mode == _MODES["minip"] else least.min())
    if device != "cpu":
        voxels, visible = torch.as_tensor(volume, device=device), torch.as_tensor(mask, device=device)
        for matrix in _ray_matrices(cameras, volume.shape, size):
            rays = ray_marching_torch.Rays(voxels, visible, matrix, cameras.image_size, orthographic, size, step)
            if mode < 0:
                rendered = ray_marching_torch.composite_image(rays, table, low, scale, min_gradient, shaded, background)
            else:
                rendered = ray_marching_torch.project_image(rays, mode, missed)
            yield rendered.cpu().numpy()
        return
    for matrix in _ray_matrices(cameras, volume.shape, size):
        image = np.empty((*cameras.image_size, 3 if mode < 0 else 1), np.float32)
        rays_and_steps = matrix, orthographic, size, step
        with launch_lock:  # for one view at a time, so that other threads get their turn
            if mode < 0:
                lookup = table, low, scale, min_gradient, shaded
                composite_image(volume, mask, empty, image, *rays_and_steps, *lookup, background)
            else:
                project_image(volume, mask, most, image, *rays_and_steps, mode, missed)
        yield image


def _three_numbers(numbers: ArrayLike, name: str) -> Float64Array:
    array = np.asarray(numbers, np.float64)
    if array.shape not in ((), (3,)) or not np.isfinite(array).all():
        raise InputError(f"The {name} has to be three finite numbers.")
    return np.broadcast_to(array, 3).copy()


def _preintegrated_table(
    transfer_function: TransferFunction, least: float, most: float, diagonal: float
) -> tuple[Float64Array, float, float]:
    """Return a lookup table ``(TABLE_SIZE, 8)``, the intensity of its first entry, and its entries per intensity.

    Columns are red, green and blue, each times the extinction, the extinction, and the integrals of these four. The
    table covers the intersection of the volume's range and that of the transfer function, with a margin for a step at
    its end.
    """
    margin = np.ptp(transfer_function.values) / TABLE_SIZE or 1e-3
    low, high = np.clip((least, most), transfer_function.values[0] - margin, transfer_function.values[-1] + margin)
    table = transfer_function.lookup_table(low, high, TABLE_SIZE)
    table[:, 3] = transfer_function.extinction(table[:, 3], diagonal)
    table[:, :3] *= table[:, 3:]
    integrals = np.zeros_like(table)
    integrals[1:] = np.cumsum(table[1:] + table[:-1], 0) / 2
    return (
        np.concatenate([table, integrals], 1),
        float(low),
        float((TABLE_SIZE - 1) / (high - low)) if high > low else 0.0,
    )


def _ray_matrices(cameras: Cameras, shape: tuple[int, ...], size: Float64Array) -> Iterator[Float64Array]:
    """Yield for each camera a matrix ``(3, 6)`` that maps pixels ``(x, y, 1)`` to rays in voxel coordinates (z, y, x).

    The first three columns give a point of the ray (the position of perspective cameras), the others its direction, of
    any length.
    """
    centre = (np.array(shape) - 1) / 2
    for matrix, intrinsics, position in zip(cameras.matrices, cameras.intrinsics, cameras.positions, strict=True):
        to_voxels = matrix[:3, :3].T[::-1] / size[:, None]
        directions = to_voxels @ np.linalg.inv(intrinsics)
        starts = np.zeros((3, 3))
        if cameras.orthographic:
            starts, directions = directions, np.zeros((3, 3))
            directions[:, 2] = to_voxels[:, 2]
            starts[:, 2] -= to_voxels[:, 2]
        starts[:, 2] += position[::-1] / size + centre
        yield np.concatenate([starts, directions], 1)
