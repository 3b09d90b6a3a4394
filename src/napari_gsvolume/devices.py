"""Which devices the kernels can run on, and why not on a GPU."""

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
        "cpu", "cuda", "cuda:1" (the second GPU, and so on), or "auto": a GPU where one can be used, else the CPU.

    Raises
    ------
    ValueError
        If a GPU is wanted and cannot be used; the sentence says why, and what to do.
    """
    if wanted == "cpu":
        return "cpu"
    problem = gpu_problem()
    if wanted == "auto":
        return "cpu" if problem else "cuda:0"
    if problem:
        raise InputError(unusable(wanted, problem))
    index, count = int(wanted.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise InputError(f"There is no device {wanted!r}; the GPUs here are {', '.join(list(devices())[2:])}.")
    return f"cuda:{index}"


def unused_gpu_note() -> str | None:
    """Return in one sentence why a GPU that is there is not used; None where it is, or there is none."""
    problem = gpu_problem()
    if problem is None or torch.version.cuda is None or not torch.cuda.device_count():
        return None
    return f"There is a GPU, but the CPU computes: {problem}"


def unusable(device: str, problem: str) -> str:
    """Return the sentence for a GPU that is wanted and has this problem."""
    return f"The device {device!r} cannot be used: {problem.rstrip('.')}; or choose the device 'cpu'."


def devices() -> dict[str, str]:
    """Return the devices that can be chosen here, with what to call each to the user."""
    named = {"auto": "auto (GPU if any)", "cpu": "cpu"}
    if gpu_problem() is None:
        named |= {f"cuda:{i}": f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())}
    return named


@cache
def gpu_problem() -> str | None:
    """Return in one sentence why no GPU can be used; None where one can. Found out once, it takes a second."""
    for look in (_of_torch, _of_numba):
        if problem := look():
            return problem
    return None


def gsplat_problem() -> str | None:
    """Return in one sentence why gsplat's rasteriser cannot be used; None where it can. It is not imported for that."""
    if importlib.util.find_spec("gsplat") is None:
        return 'gsplat is not installed; install "napari-gsvolume[gsplat]" (docs/gpu.md).'
    problem = gpu_problem()
    return None if problem is None else f"gsplat needs a GPU: {problem}"


def _of_torch() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA; install a build with CUDA (docs/gpu.md)."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it as well
            torch.zeros(1, device="cuda").add_(1)
    except (RuntimeError, AssertionError) as error:  # no driver or one too old, no GPU or one this build is not for
        return f"PyTorch finds no GPU that it can use ({first_sentence(error)}); docs/gpu.md says what to do."
    return None


def _of_numba() -> str | None:
    if importlib.util.find_spec("numba_cuda") is None:
        return 'the kernels need the package numba-cuda; install "napari-gsvolume[cuda]" (docs/gpu.md).'
    from numba import cuda
    from numba.cuda.cudadrv import driver, nvvm, runtime

    if error := cuda.cuda_error():
        return f"numba-cuda finds no driver that it can use ({first_sentence(error)}); docs/gpu.md says what to do."
    if not nvvm.is_available():
        return 'numba-cuda finds no compiler; install "napari-gsvolume[cuda]" (docs/gpu.md).'
    # Kernels are compiled here: by a toolkit of a newer major version than its own no driver takes them.
    of_driver, of_toolkit = (version() for version in (driver.driver.get_version, runtime.runtime.get_version))
    if of_driver[0] < of_toolkit[0]:
        return (
            f"its driver is for CUDA {of_driver[0]}.{of_driver[1]} and numba-cuda compiles for CUDA {of_toolkit[0]}; "
            f"update the driver, or install numba-cuda[cu{of_driver[0]}]."
        )
    return None


def first_sentence(error: object) -> str:
    """Return the first sentence of an error's text, without its full stop."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.partition(". ")[0].rstrip(".:")
