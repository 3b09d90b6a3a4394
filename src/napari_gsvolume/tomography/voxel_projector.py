"""Ray casting through the trilinear interpolant of a volume, and its exact adjoint (numba, all cores).

Beyond the outermost voxel centres a volume falls to zero within one voxel. Samples lie in the middle of steps of equal
length along each ray; `back_project` scatters to the sample positions of `project_voxels`, so that it is the exact
adjoint.
"""

from __future__ import annotations

from math import floor

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..kernels.numba_support import launch_lock
from . import voxel_projector_torch
from .scan import Mode, Scan

_MODES: dict[str, int] = {"xray": 0, "mip": 1, "minip": 2, "mean": 3}
RAY_STEP = 0.5
"""Default distance between samples along a ray, relative to the smallest side of a voxel."""
_BEAMS = {"parallel": 0, "fan": 1, "cone": 2}


def project_voxels(
    volume: ArrayLike, scan: Scan, mode: Mode = "xray", *, step: float = RAY_STEP, device: str = "cpu"
) -> NDArray[np.float32]:
    """Project voxels by ray casting.

    Parameters
    ----------
    volume : array_like, (Z, Y, X)
        Voxels, of the scan's shape.
    scan : Scan
        Acquisition geometry.
    mode : "xray", "mip", "minip" or "mean"
        Line integral, in intensity times mm; or maximum, minimum or mean intensity along the part of the ray within
        the outermost voxel centres, 0 for rays that miss them.
    step : float
        Distance between samples, relative to the smallest side of a voxel.
    device : str
        Device of torch; all but the CPU use `voxel_projector_torch`.

    Returns
    -------
    ndarray, (K, V, U), float32

    Raises
    ------
    ValueError
        If the volume does not have the scan's shape, or is not finite.
    """
    array = check_voxels(volume, scan)
    length = step * scan.voxel_size.min()
    if device != "cpu":
        return voxel_projector_torch.project_voxels(torch.as_tensor(array, device=device), scan, mode, length)
    images = np.zeros(scan.image_shape, np.float32)
    with launch_lock:
        _project(array, images, *_rays(scan), length, _MODES[mode])
    return images


def check_voxels(volume: ArrayLike, scan: Scan) -> NDArray[np.float32]:
    """Return a volume as a contiguous array; raise ValueError if it cannot be projected."""
    array = np.ascontiguousarray(volume, np.float32)
    if array.shape != scan.shape:
        raise InputError(f"The scan is of a volume of shape {scan.shape}, this volume is {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError("The volume holds NaN or infinite voxels; replace them before projecting it.")
    return array


def back_project(images: ArrayLike, scan: Scan, *, step: float = RAY_STEP) -> NDArray[np.float32]:
    """Apply the adjoint of the line integrals of `project_voxels` to images ``(K, V, U)``; return a float32 volume."""
    array = np.ascontiguousarray(images, np.float32)
    if array.shape != scan.image_shape:
        raise InputError(f"The scan has projections of shape {scan.image_shape}, these are {array.shape}.")
    parts = np.zeros((numba.get_num_threads(), *scan.shape), np.float32)
    with launch_lock:
        _back_project(array, parts, *_rays(scan), step * scan.voxel_size.min())
    return np.asarray(parts.sum(0))


def _rays(scan: Scan) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return source, centre, u and v of each view ``(K, 4, 3)``, the voxel size, and the index of the beam."""
    return np.stack([scan.sources, scan.centres, scan.u, scan.v], 1), scan.voxel_size, _BEAMS[scan.beam]


@njit(cache=True, nogil=True, inline="always")
def _floor(x):  # type: ignore[no-untyped-def]
    return int(floor(x))  # noqa: RUF046, numba's floor is a float


@njit(cache=True, nogil=True, inline="always")
def _ray(view, i, j, beam, voxel, middle, low, high, step):  # type: ignore[no-untyped-def]
    """Return first sample (voxels), step (voxels per sample), and number of samples of the ray to a pixel."""
    start, way = np.empty(3), np.empty(3)
    length = 0.0
    for d in range(3):
        pixel = view[1, d] + i * view[2, d] + j * view[3, d]
        source = view[0, d] + (j * view[3, d] if beam == 1 else 0.0)
        way[d] = view[0, d] if beam == 0 else pixel - source
        start[d] = (pixel if beam == 0 else source) / voxel[d] + middle[d]
        length += way[d] * way[d]
    length = np.sqrt(length)
    enter, leave = (-1e30 if beam == 0 else 0.0), 1e30  # in steps; rays start at the source
    for d in range(3):
        way[d] *= step / (length * voxel[d])
        if abs(way[d]) > 1e-12:
            first, last = (low[d] - start[d]) / way[d], (high[d] - start[d]) / way[d]
            enter, leave = max(enter, min(first, last)), min(leave, max(first, last))
        elif not low[d] <= start[d] <= high[d]:
            leave = enter
    if beam != 0:
        leave = min(leave, length / step)  # and end at the pixel
    if not leave > enter:
        return start, way, 0
    n = -_floor(enter - leave + 1e-9)
    for d in range(3):
        start[d] += (enter + (leave - enter - n + 1) / 2) * way[d]  # the middle of the first step
    return start, way, n


@njit(cache=True, nogil=True, inline="always")
def _sample(volume, z, y, x):  # type: ignore[no-untyped-def]
    """Return the trilinear interpolant, with zeros around the volume."""
    nz, ny, nx = volume.shape
    z0, y0, x0 = _floor(z), _floor(y), _floor(x)
    fz, fy, fx = z - z0, y - y0, x - x0
    value = 0.0
    for dz in range(2):
        iz = z0 + dz
        if 0 <= iz < nz:
            wz = fz if dz else 1 - fz
            for dy in range(2):
                iy = y0 + dy
                if 0 <= iy < ny:
                    w = wz * (fy if dy else 1 - fy)
                    if 0 <= x0 < nx:
                        value += w * (1 - fx) * volume[iz, iy, x0]
                    if 0 <= x0 + 1 < nx:
                        value += w * fx * volume[iz, iy, x0 + 1]
    return value


@njit(cache=True, nogil=True, parallel=True)
def _project(volume, images, views, voxel, beam, step, mode):  # type: ignore[no-untyped-def]
    n_views, nv, nu = images.shape
    shape = np.array(volume.shape)
    middle = (shape - 1) / 2
    inside = mode != 0
    low, high = (np.zeros(3), shape - 1.0) if inside else (np.full(3, -1.0), shape * 1.0)
    for row in prange(n_views * nv):
        k, jj = row // nv, row % nv
        for ii in range(nu):
            start, way, n = _ray(views[k], ii - (nu - 1) / 2, jj - (nv - 1) / 2, beam, voxel, middle, low, high, step)
            total, most, least = 0.0, -np.inf, np.inf
            for s in range(n):
                value = _sample(volume, start[0] + s * way[0], start[1] + s * way[1], start[2] + s * way[2])
                total += value
                most, least = max(most, value), min(least, value)
            if mode == 0:
                images[k, jj, ii] = total * step
            elif n:
                images[k, jj, ii] = most if mode == 1 else least if mode == 2 else total / n


@njit(cache=True, nogil=True, parallel=True)
def _back_project(images, parts, views, voxel, beam, step):  # type: ignore[no-untyped-def]
    n_views, nv, nu = images.shape
    n_parts, nz, ny, nx = parts.shape
    shape = np.array((nz, ny, nx))
    middle = (shape - 1) / 2
    low, high = np.full(3, -1.0), shape * 1.0
    for part in prange(n_parts):
        volume = parts[part]
        for row in range(part, n_views * nv, n_parts):
            k, jj = row // nv, row % nv
            for ii in range(nu):
                amount = images[k, jj, ii] * step
                if amount == 0:
                    continue
                start, way, n = _ray(
                    views[k], ii - (nu - 1) / 2, jj - (nv - 1) / 2, beam, voxel, middle, low, high, step
                )
                for s in range(n):
                    z, y, x = start[0] + s * way[0], start[1] + s * way[1], start[2] + s * way[2]
                    z0, y0, x0 = _floor(z), _floor(y), _floor(x)
                    fz, fy, fx = z - z0, y - y0, x - x0
                    for dz in range(2):
                        iz = z0 + dz
                        if 0 <= iz < nz:
                            wz = amount * (fz if dz else 1 - fz)
                            for dy in range(2):
                                iy = y0 + dy
                                if 0 <= iy < ny:
                                    w = wz * (fy if dy else 1 - fy)
                                    if 0 <= x0 < nx:
                                        volume[iz, iy, x0] += w * (1 - fx)
                                    if 0 <= x0 + 1 < nx:
                                        volume[iz, iy, x0 + 1] += w * fx
