"""Memory of a fit: checks before it, errors during it, and release after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from .errors import OutOfMemoryError

Result = TypeVar("Result")

# 33 bytes were measured at 256^3 voxels (benchmarks/fit.py --memory); the rest keeps the machine usable.
_HOST_BYTES_PER_VOXEL = 40
# At most 25, 34 and 96 bytes per voxel were measured (96^3 voxels on the device of tests/helpers/pretended_device.py),
# and 3,500 per Gaussian; the rest is for the kernels. Batches of pairs of Gaussians, and libraries, need a constant.
_DEVICE_BYTES_PER_VOXEL = {"weights": 30, "ellipsoid": 40, "neighbourhood": 110}
_DEVICE_BYTES_PER_GAUSSIAN = 4000
_DEVICE_BYTES = 2**28


def check_host(shape: Sequence[int], free: int | None = None) -> None:
    """Raise OutOfMemoryError if a fit of a volume of this shape needs more than is free, or than `free` bytes."""
    _check(shape, math.prod(shape) * _HOST_BYTES_PER_VOXEL, free_bytes("cpu") if free is None else free, "cpu")


def check_device(device: str, shape: Sequence[int], data_term: str, count: int) -> None:
    """Raise OutOfMemoryError if a fit of `count` Gaussians to this shape needs more than is free on a GPU."""
    if device != "cpu":
        needed = (
            _DEVICE_BYTES + math.prod(shape) * _DEVICE_BYTES_PER_VOXEL[data_term] + count * _DEVICE_BYTES_PER_GAUSSIAN
        )
        _check(shape, needed, free_bytes(device), device)


def _check(shape: Sequence[int], needed: int, free: int, device: str) -> None:
    if needed > free:
        on, choice = ("", "") if device == "cpu" else (f" on the device '{device}'", ", or choose the device 'cpu'")
        raise OutOfMemoryError(
            f"Fitting a volume of {' x '.join(map(str, shape))} voxels takes about {needed / 2**30:.1f} GiB{on} and "
            f"{free / 2**30:.1f} GiB are free; crop it, or choose a coarser level{choice}."
        )


def require_memory(needed: float, what: str, advice: str) -> None:
    """Raise OutOfMemoryError if more is needed than is free; `what` begins the sentence, `advice` ends it."""
    free = free_bytes("cpu")
    if needed > free:
        raise OutOfMemoryError(f"{what} about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; {advice}.")


def free_bytes(device: str) -> int:
    """Return the free memory of a device, bytes."""
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    # The cache of torch is free for tensors, but not for the driver.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def release_cache() -> None:
    """Release the GPU memory in the cache of torch for other programs."""
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def run_on_device(device: torch.device, compute: Callable[[], Result]) -> Result:
    """Return ``compute()``; if memory runs out, free what it took and raise OutOfMemoryError."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Raised here, not in the handler: the traceback of the original error keeps tensors alive.
    raise out_of_memory_error(device)


def is_out_of_memory(error: Exception) -> bool:
    """Return True for the errors by which NumPy and torch run out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def out_of_memory_error(device: torch.device) -> MemoryError:
    """Return the error for memory that ran out on a device."""
    choice = "" if device.type == "cpu" else ", or choose the device 'cpu'"
    return OutOfMemoryError(f"Memory ran out during the fit; crop the volume or ask for fewer Gaussians{choice}.")
