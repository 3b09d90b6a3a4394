"""Compute devices, and why a GPU cannot be used."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch

from .errors import InputError


def available_device(wanted: str) -> str:
    """Return the torch device to compute on.

    Parameters
    ----------
    wanted : str
        Device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` for the second GPU, or ``"auto"`` (a GPU if one can be used,
        otherwise the CPU).

    Raises
    ------
    InputError
        If the GPU cannot be used; the message says why, and what to do.
    """
    if wanted == "cpu":
        return "cpu"
    problem = gpu_problem()
    if wanted == "auto":
        return "cpu" if problem else "cuda:0"
    if problem:
        raise InputError(unusable_message(wanted, problem))
    index, count = int(wanted.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise InputError(f"There is no device {wanted!r}; the GPUs here are {', '.join(list(devices())[2:])}.")
    return f"cuda:{index}"


def unused_gpu_note() -> str | None:
    """Return a sentence on why an existing GPU is not used; None if it is used, or if there is none."""
    problem = gpu_problem()
    if problem is None or torch.version.cuda is None or not torch.cuda.device_count():
        return None
    return f"There is a GPU, but the CPU computes: {problem}"


def unusable_message(device: str, problem: str) -> str:
    """Return the error message for a GPU with this problem."""
    return f"The device {device!r} cannot be used: {problem.rstrip('.')}; or choose the device 'cpu'."


def devices() -> dict[str, str]:
    """Return the available devices with their labels."""
    named = {"auto": "auto (GPU if any)", "cpu": "cpu"}
    if gpu_problem() is None:
        named |= {f"cuda:{i}": f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())}
    return named


@cache
def gpu_problem() -> str | None:
    """Return a sentence on why no GPU can be used; None if one can. The first call takes a second."""
    for check in (_torch_problem, _numba_problem):
        if problem := check():
            return problem
    return None


def gsplat_problem() -> str | None:
    """Return a sentence on why gsplat cannot be used; None if it can. It is not imported for this."""
    if importlib.util.find_spec("gsplat") is None:
        return 'gsplat is not installed; install "napari-gsvolume[gsplat]" (docs/gpu.md).'
    problem = gpu_problem()
    return None if problem is None else f"gsplat needs a GPU: {problem}"


def _torch_problem() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a build with CUDA (docs/gpu.md)."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error has the same text
            torch.zeros(1, device="cuda").add_(1)
    except (RuntimeError, AssertionError) as error:  # no driver or one too old, no GPU or one this build is not for
        return f"PyTorch finds no GPU that it can use ({first_sentence(error)}); docs/gpu.md says what to do."
    return None


def _numba_problem() -> str | None:
    if importlib.util.find_spec("numba_cuda") is None:
        return 'the kernels need the package numba-cuda; install "napari-gsvolume[cuda]" (docs/gpu.md).'
    from numba import cuda
    from numba.cuda.cudadrv import driver, nvvm, runtime

    if error := cuda.cuda_error():
        return f"numba-cuda finds no driver that it can use ({first_sentence(error)}); docs/gpu.md says what to do."
    if not nvvm.is_available():
        return 'numba-cuda finds no compiler; install "napari-gsvolume[cuda]" (docs/gpu.md).'
    # A driver does not run kernels that a toolkit of a newer major version has compiled.
    driver_version, toolkit_version = (
        version() for version in (driver.driver.get_version, runtime.runtime.get_version)
    )
    if driver_version[0] < toolkit_version[0]:
        return (
            f"its driver is for CUDA {driver_version[0]}.{driver_version[1]} and "
            f"numba-cuda compiles for CUDA {toolkit_version[0]}; "
            f"update the driver, or install numba-cuda[cu{driver_version[0]}]."
        )
    return None


def first_sentence(error: object) -> str:
    """Return the first sentence of an error's text, without its full stop."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.partition(". ")[0].rstrip(".:")
