"""What can be said of the GPU kernels without a GPU: they are right in numba's simulator, and they compile."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
import torch
from torch import Tensor

from helpers.kernels import SIGMAS, gaussians, noise

OLDEST = (7, 5)
"""The compute capability of the oldest GPUs that CUDA 13 compiles for; newer ones take code for it."""


def test_kernels_in_the_simulator() -> None:
    """Run test_kernels_cuda.py where numba simulates a GPU, which is decided when it is imported."""
    tests = Path(__file__).with_name("test_kernels_cuda.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.splitlines()[-1]
    assert "passed" in summary, run.stdout


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, tuple[object, ...]]]:
    """Return the kernels that all functions launch, with the types of their arguments; they are not run."""
    pytest.importorskip("numba_cuda")
    from napari_gsvolume.kernels import cuda

    launched = {}

    def launch(kernel: object, blocks: object, threads: int, *arguments: object) -> None:
        types = tuple(numba.typeof(a.numpy() if isinstance(a, Tensor) else a) for a in arguments)
        launched[kernel.py_func.__name__, types] = kernel

    monkeypatch.setattr(cuda, "_launch", launch)
    for shape in ((12, 20), (5, 6, 20)):
        means, factors, coefficients = gaussians(shape, SIGMAS["round"], 4)
        cuda.splat(means, factors, coefficients, shape, 3.3)
        cuda.gather(means, factors, noise(shape), 3.3)
        for values in (coefficients[:, 0], torch.arange(4)):
            cuda.splat_flat(means, factors, values, shape, 3.3)
        cuda.gather_flat(means, factors, noise(shape), 3.3)
    return [(kernel, types) for (_, types), kernel in launched.items()]


def test_kernels_compile(launches: list[tuple[object, tuple[object, ...]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator runs them as Python; here their types are inferred, and code for a GPU is made."""
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    if not nvvm.is_available():
        pytest.skip("numba-cuda finds no compiler (the package nvidia-nvvm)")
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=OLDEST))
    assert {kernel.py_func.__name__ for kernel, _ in launches} == {
        "complete_squares",
        "count_tiles",
        "list_tiles",
        "splat",
        "gather",
        "splat_flat",
        "gather_flat",
    }
    for kernel, types in launches:
        name, fast = kernel.py_func.__name__, bool(kernel.targetoptions.get("fastmath"))
        ptx, _ = cuda.compile_ptx(kernel.py_func, types, cc=OLDEST, fastmath=fast)
        assert ".entry" in ptx
        # A thread's numbers stay in registers; an array that the compiler cannot take apart would lie in memory.
        assert ".local" not in ptx, name
        if name in ("splat", "gather"):  # the exponential of the hardware, in float32
            assert "ex2.approx" in ptx, name
            assert "ex2.approx.ftz.f64" not in ptx
