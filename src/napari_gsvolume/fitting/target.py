"""Target of a fit: the volume, checked and scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import memory
from ..errors import InputError
from ..grid import Grid


@dataclass(frozen=True, eq=False)
class Target:
    """Scaled volume: ``values = (volume - background) / data_range``, zero at invalid voxels.

    The background is the most common intensity, where no Gaussians are needed.
    """

    values: Tensor
    valid: Tensor | None
    n_valid: int
    background: float
    data_range: float
    grid: Grid
    notes: tuple[str, ...]

    def to(self, device: torch.device) -> Target:
        """Return the target on a device."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, values=self.values.to(device), valid=valid)

    def residual(self, prediction: Tensor) -> Tensor:
        """Return values - prediction, zero at invalid voxels; overwrites `prediction`."""
        residual = torch.sub(self.values, prediction, out=prediction)
        return residual if self.valid is None else residual.mul_(self.valid)

    def mean_square(self, residual: Tensor) -> Tensor:
        """Return the mean squared residual over the valid voxels, one float64."""
        return torch.dot(residual.flatten(), residual.flatten()).double() / self.n_valid


def check_volume(volume: ArrayLike, *, free_bytes: int | None = None) -> NDArray[np.generic]:
    """Return the volume as a real array, or raise an error if it cannot be fitted.

    Raises
    ------
    ValueError
        If the volume is not 2D or 3D, empty, not numeric, or complex.
    MemoryError
        If a fit needs more memory than is free.
    """
    shape = np.shape(volume)
    if len(shape) not in (2, 3):
        hint = "; choose one time point or channel" if len(shape) > 3 else ""
        raise InputError(f"A fit needs a 2D or 3D volume; this one has {len(shape)} axes (shape {shape}){hint}.")
    size = math.prod(shape)
    if size == 0:
        raise InputError(f"The volume is empty (shape {shape}).")
    memory.check_host(shape, free_bytes)
    array = np.asarray(volume)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise InputError(f"A fit needs real numbers; this volume holds {array.dtype}.")
    return array


def make_target(volume: ArrayLike, grid: Grid) -> Target:
    """Return the volume scaled for the solvers; raise an error as `check_volume`, or if the volume is constant."""
    array = check_volume(volume)
    if array.size < 2:
        raise InputError("The volume is a single voxel: there is nothing to fit.")
    notes: list[str] = []
    valid = np.isfinite(array)
    n_valid = int(valid.sum())
    if n_valid < 2:
        raise InputError("The volume has no finite voxels to fit (NaN or infinite everywhere).")
    missing = array.size - n_valid
    if missing:
        notes.append(f"{missing:,} voxels are NaN or infinite; they are left out of the fit.")
    finite = array[valid] if missing else array
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        raise InputError(f"The volume is constant (every voxel is {low:g}): there is nothing to fit.")
    with np.errstate(over="ignore"):
        span = np.float64(high) - np.float64(low)
    if not span < np.finfo(np.float32).max:
        raise InputError(f"The intensities span {low:g} to {high:g}, more than float32 holds; scale the volume first.")
    # To [0, 1] in float64, a buffer at a time: large integers and offsets do not survive float32.
    values = np.zeros(array.shape, np.float32)
    np.subtract(array, low, out=values, dtype=np.float64, casting="same_kind", where=valid)
    values /= np.float32(high - low)
    background = _most_common(values[valid] if missing else values)
    values -= np.float32(background)
    values[~valid] = 0
    return Target(
        torch.from_numpy(values),
        torch.from_numpy(valid) if missing else None,
        n_valid,
        low + background * (high - low),
        high - low,
        grid,
        tuple(notes),
    )


def _most_common(values: NDArray[np.float32]) -> float:
    """Return the median of the fullest of 256 bins of [0, 1]."""
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    fullest = int(counts.argmax())
    inside = values[(values >= edges[fullest]) & (values <= edges[fullest + 1])]
    return float(np.median(inside)) if len(inside) else 0.5
