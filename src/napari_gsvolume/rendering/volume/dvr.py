"""Direct volume rendering of voxels: rays through the trilinear interpolant (numba, all cores).

A volume is the box of its voxels: half a voxel beyond the outermost centres, where the intensity is that of the nearest
point between centres. So a constant volume fills its physical extent, and the line integral along an axis is the sum
of the voxels. Equal steps divide each ray's way through the box; those in blocks of voxels where nothing can be seen
are left out, which changes no image.

Along a step the intensity goes linearly from one sample to the next, and colour and extinction are their means over
those in between, from tables of their integrals (Engel, Kraus and Ertl, High-quality pre-integrated volume rendering,
Graphics Hardware 2001): so steps may jump over a sharp surface. Intensities as such (the modes other than
"dvr") are sampled in the middle of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...devices import available_device
from ...errors import InputError
from ...kernels.numba_support import launch_lock
from ..cameras import Cameras, radius_of
from ..settings import RenderMode
from . import ray_marching_torch
from .ray_marching import ENTRIES, compose, project, ranges
from .transfer_functions import TransferFunction, preset

STEP = 0.5
"""Length of a step by default, in the smallest side of a voxel."""
_MODES: dict[str, int] = {"mip": 0, "minip": 1, "mean": 2, "xray": 3}
_TINY = 0.05  # of the transfer function's span, a voxel: below, as in noise, shading fades out with the gradient


def render(
    volume: ArrayLike,
    voxel_size: ArrayLike,
    cameras: Cameras,
    mode: RenderMode = "dvr",
    transfer: TransferFunction | None = None,
    *,
    step: float = STEP,
    shading: bool | None = None,
    background: ArrayLike = (0.0, 0.0, 0.0),
    mask: ArrayLike | None = None,
    device: str = "auto",
) -> NDArray[np.float32]:
    """Return images of a volume.

    With mode "dvr" light is emitted and absorbed along each ray: colours c and extinctions w of the transfer function
    at intensities s give ``I = integral c(s) w(s) exp(-integral w(s)) dt``, summed front to back until 0.1 % of the
    light is left (Max, Optical models for direct volume rendering, IEEE TVCG 1995; Levoy, Display of surfaces from
    volume data, IEEE CG&A 1988). Shading is Phong's, with the light at the camera, on both sides of surfaces, whose
    normals are central differences of the interpolant over a voxel to either side.

    Parameters
    ----------
    volume : array_like, (Z, Y, X)
        Intensities; rendered as float32.
    voxel_size : array_like, (3,) or a number
        Along z, y, x, mm.
    cameras : Cameras
        V cameras, in mm, (x, y, z), the volume's centre as the origin.
    mode : "dvr", "mip", "minip", "mean" or "xray"
        Colours; the largest, the smallest or the mean intensity along the ray in the volume; or the line integral,
        in intensity times mm.
    transfer : TransferFunction, optional
        For "dvr" alone; by default the preset "gray".
    step : float
        Longest distance between samples, in the smallest side of a voxel.
    shading : bool, optional
        By default as the transfer function says.
    background : array_like, (3,)
        Colour behind the volume, for "dvr". Where rays miss the volume the others have its smallest intensity, "minip"
        its largest, and "xray" 0.
    mask : array_like, (Z, Y, X), optional
        Where it is zero, as taken from the nearest voxel, there is nothing: no light, and no intensity.
    device : str
        As of `napari_gsvolume.devices.available_device`; on a GPU torch takes the samples.

    Returns
    -------
    ndarray, (V, H, W, C), float32
        C = 3 colours, from 0 to 1, for "dvr", else C = 1.

    Raises
    ------
    ValueError
        If the volume is not a finite one with three axes, the mask has another shape, there is no such mode, the
        size of a voxel, the step or the background makes no sense, or the device cannot be used.
    """
    images = render_views(
        volume, voxel_size, cameras, mode, transfer,
        step=step, shading=shading, background=background, mask=mask, device=device,
    )  # fmt: skip
    return np.stack(list(images))


def render_views(
    volume: ArrayLike,
    voxel_size: ArrayLike,
    cameras: Cameras,
    mode: RenderMode = "dvr",
    transfer: TransferFunction | None = None,
    *,
    step: float = STEP,
    shading: bool | None = None,
    background: ArrayLike = (0.0, 0.0, 0.0),
    mask: ArrayLike | None = None,
    device: str = "auto",
) -> Iterator[NDArray[np.float32]]:
    """Return an iterator over images ``(H, W, C)``, float32, each rendered when it is asked for; else as `render`."""
    array = np.ascontiguousarray(volume, np.float32)
    if array.ndim != 3 or not array.size:
        raise InputError(f"A volume to render has three axes (z, y, x) and at least one voxel; got {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("The volume holds NaN or infinite voxels; replace them before rendering it.")
    size, behind = (_three(a, name) for a, name in ((voxel_size, "size of a voxel"), (background, "background")))
    if not (size > 0).all():
        raise InputError("The size of a voxel has to be positive.")
    if not ((behind >= 0) & (behind <= 1)).all():
        raise InputError("The colour of the background has to be from 0 to 1.")
    if not 0 < step < np.inf:
        raise InputError(f"The step has to be positive; got {step:g}.")
    if mode not in get_args(RenderMode):
        raise InputError(f"There is no mode {mode!r}; there are {', '.join(get_args(RenderMode))}.")
    inside = np.zeros((0, 0, 0), np.bool_) if mask is None else np.ascontiguousarray(np.asarray(mask) != 0)
    if mask is not None and inside.shape != array.shape:
        raise InputError(f"The mask has to be of the volume's shape {array.shape}, it is {inside.shape}.")
    if mode == "dvr" and transfer is None:
        transfer = preset("gray", array)
    return _images(
        array, size, cameras, _MODES.get(mode, -1), transfer, step * size.min(), shading, behind, inside,
        available_device(device),
    )  # fmt: skip


def _images(
    volume: NDArray[np.float32],
    size: NDArray[np.float64],
    cameras: Cameras,
    mode: int,
    transfer: TransferFunction | None,
    step: float,
    shading: bool | None,
    behind: NDArray[np.float64],
    mask: NDArray[np.bool_],
    device: str,
) -> Iterator[NDArray[np.float32]]:
    flat = cameras.orthographic
    with launch_lock:
        least, most = ranges(volume)
        masked = ranges(mask.astype(np.float32))[1] == 0 if mask.size else np.zeros(least.shape, np.bool_)
    if mode < 0 and transfer is not None:
        lit = transfer.shading if shading is None else shading
        table, low, scale = _lookup(transfer, least.min(), most.max(), 2 * radius_of(volume.shape, size))
        tiny = (_TINY * float(np.ptp(transfer.values)) or 1e-30) / size.min()
        seen = np.concatenate([[0], np.cumsum(table[:, 3] > 0)])
        first, last = (np.clip((a.astype(np.float64) - low) * scale, 0, ENTRIES - 1) for a in (least, most))
        empty = masked | (seen[np.ceil(last).astype(int) + 1] == seen[np.floor(first).astype(int)])
    nothing = float(most.max() if mode == _MODES["minip"] else least.min())
    if device != "cpu":
        voxels, inside = torch.as_tensor(volume, device=device), torch.as_tensor(mask, device=device)
        for matrix in _rays(cameras, volume.shape, size):
            rays = ray_marching_torch.Rays(voxels, inside, matrix, cameras.size, flat, size, step)
            if mode < 0:
                drawn = ray_marching_torch.compose(rays, table, low, scale, tiny, lit, behind)
            else:
                drawn = ray_marching_torch.project(rays, mode, nothing)
            yield drawn.cpu().numpy()
        return
    for matrix in _rays(cameras, volume.shape, size):
        image = np.empty((*cameras.size, 3 if mode < 0 else 1), np.float32)
        with launch_lock:  # for one view at a time: others that wait for it get their turn
            if mode < 0:
                compose(
                    volume, mask, empty, image, matrix, flat, size, step, table, low, scale, tiny, lit, behind
                )  # fmt: skip
            else:
                project(volume, mask, most, image, matrix, flat, size, step, mode, nothing)
        yield image


def _three(numbers: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(numbers, np.float64)
    if array.shape not in ((), (3,)) or not np.isfinite(array).all():
        raise InputError(f"The {name} has to be three finite numbers.")
    return np.broadcast_to(array, 3).copy()


def _lookup(
    transfer: TransferFunction, least: float, most: float, diagonal: float
) -> tuple[NDArray[np.float64], float, float]:
    """Return a table ``(ENTRIES, 8)``, the intensity of its first entry, and its entries an intensity.

    It has red, green, blue, each times the extinction, and the extinction, and the integrals of the four. It spans what
    both the volume and the points of the transfer function do, with a margin for an edge at its end.
    """
    margin = np.ptp(transfer.values) / ENTRIES or 1e-3
    low, high = np.clip((least, most), transfer.values[0] - margin, transfer.values[-1] + margin)
    table = transfer.table(low, high, ENTRIES)
    table[:, 3] = transfer.extinction(table[:, 3], diagonal)
    table[:, :3] *= table[:, 3:]
    integrals = np.zeros_like(table)
    integrals[1:] = np.cumsum(table[1:] + table[:-1], 0) / 2
    return np.concatenate([table, integrals], 1), float(low), float((ENTRIES - 1) / (high - low)) if high > low else 0.0


def _rays(cameras: Cameras, shape: tuple[int, ...], size: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield of each camera a matrix (3, 6) that takes ``(x, y, 1)`` of a pixel twice to its ray, in voxels (z, y, x).

    First to a point of the ray, a perspective camera's position, then to its direction, of any length.
    """
    middle = (np.array(shape) - 1) / 2
    for matrix, intrinsics, position in zip(cameras.matrices, cameras.intrinsics, cameras.positions, strict=True):
        to_voxels = matrix[:3, :3].T[::-1] / size[:, None]
        ways = to_voxels @ np.linalg.inv(intrinsics)
        starts = np.zeros((3, 3))
        if cameras.orthographic:
            starts, ways = ways, np.zeros((3, 3))
            ways[:, 2] = to_voxels[:, 2]
            starts[:, 2] -= to_voxels[:, 2]
        starts[:, 2] += position[::-1] / size + middle
        yield np.concatenate([starts, ways], 1)
