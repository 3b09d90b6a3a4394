"""The memory of a fit: whether there is enough before it, running out during it, giving it back after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from .errors import OutOfMemoryError

Result = TypeVar("Result")

# At 256^3 33 were measured (benchmarks/fit.py --memory); the rest keeps the machine usable.
_HOST_BYTES_A_VOXEL = 40
# At most 25, 34 and 96 were measured, of 96^3 voxels on the device that tests/pretended_device.py pretends, and 3,500 a
# Gaussian; the rest is for what kernels need. Pairs of Gaussians, looked at some at a time, and libraries take as much
# whatever the volume.
_DEVICE_BYTES_A_VOXEL = {"weights": 30, "ellipsoid": 40, "neighbourhood": 110}
_DEVICE_BYTES_A_GAUSSIAN = 4000
_DEVICE_BYTES = 2**28


def check_host(shape: Sequence[int], free: int | None = None) -> None:
    """Raise MemoryError if fitting a volume of that shape takes more than is free, or than `free` bytes."""
    _check(shape, math.prod(shape) * _HOST_BYTES_A_VOXEL, free_bytes("cpu") if free is None else free, "cpu")


def check_device(device: str, shape: Sequence[int], data_term: str, count: int) -> None:
    """Raise MemoryError if fitting `count` Gaussians to a volume of that shape takes more than is free on a GPU."""
    if device != "cpu":
        needed = _DEVICE_BYTES + math.prod(shape) * _DEVICE_BYTES_A_VOXEL[data_term] + count * _DEVICE_BYTES_A_GAUSSIAN
        _check(shape, needed, free_bytes(device), device)


def _check(shape: Sequence[int], needed: int, free: int, device: str) -> None:
    if needed > free:
        on, choice = ("", "") if device == "cpu" else (f" on the device '{device}'", ", or choose the device 'cpu'")
        raise OutOfMemoryError(
            f"Fitting a volume of {' x '.join(map(str, shape))} voxels takes about {needed / 2**30:.1f} GiB{on} and "
            f"{free / 2**30:.1f} GiB are free; crop it, or choose a coarser level{choice}."
        )


def require_memory(needed: float, what: str, advice: str) -> None:
    """Raise MemoryError if `what`, the beginning of a sentence, takes more than is free; `advice` ends it."""
    free = free_bytes("cpu")
    if needed > free:
        raise OutOfMemoryError(f"{what} about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; {advice}.")


def free_bytes(device: str) -> int:
    """Return how much memory can be had on a device."""
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    # What torch keeps for the next tensor is not free to the driver.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def release_cache() -> None:
    """Let other programs have what torch keeps of a GPU's memory for the next tensor."""
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def run_on_device(device: torch.device, compute: Callable[[], Result]) -> Result:
    """Return what `compute` does; raise MemoryError, in one sentence, with what was taken free again, if it ran out."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Here, not above: the functions that the error's traceback leads to hold tensors.
    raise out_of_memory_error(device)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether this is one of NumPy's and torch's ways of running out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def out_of_memory_error(device: torch.device) -> MemoryError:
    """Return what to raise where memory ran out on a device."""
    choice = "" if device.type == "cpu" else ", or choose the device 'cpu'"
    return OutOfMemoryError(f"Memory ran out during the fit; crop the volume or ask for fewer Gaussians{choice}.")
