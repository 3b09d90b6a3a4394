"""How fast the kernels are, how good a fit gets in which time, and how much memory it takes.

    python benchmarks/fit.py --kernels
    python benchmarks/fit.py CT.nii.gz MRI.nii.gz --gaussians 2000 --time-limit 60
    python benchmarks/fit.py --phantom --memory --out result.png

Prints tables, draws the plot and writes every number to a JSON file beside it. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from napari_gsvolume import __version__, fit_steps
from napari_gsvolume.io.nifti import read_nifti
from napari_gsvolume.kernels import gather, n_monomials, prepare, splat
from napari_gsvolume.kernels.constants import SUPPORT
from napari_gsvolume.phantoms import anatomical_phantom

SIGMAS = (1.5, 2.5, 5.0)
EVALUATIONS = 5e7  # a kernel call of some 0.1 s
GRID = 128
SOLVERS = ("gauss-newton", "adam", "sgd")
MEMORY_SIZE, MEMORY_GAUSSIANS = 256, 20_000

Json = dict[str, Any]
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="NIfTI volumes to fit with every solver")
    parser.add_argument("--phantom", action="store_true", help="fit the package's anatomical phantom too")
    parser.add_argument("--kernels", action="store_true", help="measure the kernels")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of a large fit")
    parser.add_argument("--size", type=int, default=128, help="crop volumes to so many voxels an axis (%(default)s)")
    parser.add_argument("--gaussians", type=int, default=2000, help="(%(default)s)")
    parser.add_argument("--time-limit", type=float, default=60, help="seconds a fit (%(default)s)")
    parser.add_argument("--iterations", type=int, default=3, help="of the fit whose memory is measured (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-fit.png"), help="the plot (%(default)s)")
    options = parser.parse_args()
    if not (options.paths or options.phantom or options.memory):
        options.kernels = True

    numbers: Json = {
        "version": __version__,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": numba.get_num_threads()},
    }
    torch.set_num_threads(numba.get_num_threads())
    prepare(torch.device("cpu"))
    if options.kernels:
        numbers["kernels"] = kernels()
    volumes = {path.name: read(path, options.size) for path in options.paths}
    if options.phantom:
        volumes["phantom"] = anatomical_phantom(options.size)[0]
    if volumes:
        numbers["fits"] = {name: fits(name, volume, options) for name, volume in volumes.items()}
    if options.memory:
        numbers["memory"] = memory(options.iterations)
    if "kernels" in numbers or "fits" in numbers:
        plot(numbers, options.out)
        console.print(f"Wrote {options.out}")
    written = options.out.with_suffix(".json")
    written.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    console.print(f"Wrote {written}")


def read(path: Path, size: int) -> NDArray[np.float32]:
    """Return the middle of a volume, at most `size` voxels an axis, clipped to its [0.5, 99.5] percentiles."""
    image = read_nifti(path)
    volume = (image.data if image.time_step is None else image.data[0]).astype(np.float32)
    volume = np.clip(volume, *np.nanpercentile(volume, (0.5, 99.5)))
    starts = [max(0, (n - size) // 2) for n in volume.shape]
    return np.ascontiguousarray(volume[tuple(slice(s, s + size) for s in starts)])


def kernels() -> Json:
    """Measure evaluations a second: voxels inside the supports of Gaussians, over the time of one call."""
    n = 2048
    square = torch.rand(n, n)
    flops = 2 * n**3 / best_time(lambda: square @ square)
    table = Table("sigma", "kernel", "Gaussians", "10^9 evaluations/s", "of matmul", "time for 2N / N")
    rows = []
    for sigma in SIGMAS:
        each = 4 / 3 * math.pi * (SUPPORT * sigma) ** 3
        count = round(EVALUATIONS / each)
        timed = {"splat": [], "gather": []}
        for number in (count, 2 * count):
            means = torch.rand(number, 3) * (GRID - 1 - 2 * SUPPORT * sigma) + SUPPORT * sigma  # all fully inside
            factors = (torch.eye(3) / sigma).expand(number, 3, 3).contiguous()
            coefficients, grid = torch.rand(number, n_monomials(3)), torch.rand(GRID, GRID, GRID)
            timed["splat"].append(best_time(lambda: splat(means, factors, coefficients, (GRID,) * 3)))  # noqa: B023
            timed["gather"].append(best_time(lambda: gather(means, factors, grid)))  # noqa: B023
        for kernel, (once, twice) in timed.items():
            rate = count * each / once
            row = {"kernel": kernel, "sigma": sigma, "gaussians": count, "evaluations_per_second": rate}
            rows.append(
                {**row, "matmul_flops_per_evaluation": flops / rate, "time_ratio_of_twice_as_many": twice / once}
            )
            table.add_row(
                f"{sigma}", kernel, f"{count:,}", f"{rate / 1e9:.2f}", f"1/{flops / rate:.0f}", f"{twice / once:.2f}"
            )
    console.print(f"float32 matrix product: {flops / 1e9:.0f} Gflop/s on {torch.get_num_threads()} threads")
    console.print(table)
    return {"matmul_flops": flops, "calls": rows}


def best_time(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of some times: what else runs on the machine only ever adds to it."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def fits(name: str, volume: NDArray[np.float32], options: argparse.Namespace) -> Json:
    """Fit with every solver, the same number of Gaussians and time; return histories and who passed whom."""
    shape = " x ".join(map(str, volume.shape))
    table = Table("solver", "PSNR (dB)", "Gaussians", "seconds", "iterations", title=f"{name}, {shape}")
    solvers: Json = {}
    for solver in SOLVERS:
        steps = fit_steps(volume, solver=solver, gaussians=options.gaussians, time_limit=options.time_limit)
        step = deque(steps, maxlen=1)[0]  # the last one
        history = [[point.seconds, point.psnr_db, point.n_gaussians] for point in step.history]
        figures = {"psnr_db": step.psnr_db, "gaussians": step.n_gaussians, "seconds": step.seconds}
        solvers[solver] = {**figures, "iterations": step.iteration, "history": history}
        row = (f"{step.psnr_db:.2f}", f"{step.n_gaussians:,}", f"{step.seconds:.1f}", f"{step.iteration}")
        table.add_row(solver, *row)
    console.print(table)
    adam, newton = solvers["adam"], solvers["gauss-newton"]
    passed = next((seconds for seconds, psnr, _ in newton["history"] if psnr >= adam["psnr_db"]), None)
    ratio = None if passed is None else adam["seconds"] / passed
    console.print(
        "gauss-newton does not reach adam's final PSNR"
        if ratio is None
        else f"gauss-newton passes adam's final PSNR at {passed:.1f} s: {ratio:.1f} times as fast"
    )
    return {"shape": list(volume.shape), "solvers": solvers, "seconds_to_pass_adam": passed, "speedup": ratio}


def memory(iterations: int) -> Json:
    """Measure the peak resident memory of a large fit, in a process of its own."""
    child = f"""
import numpy as np, re
from pathlib import Path
from napari_gsvolume import fit_steps
volume = np.load("volume.npy")
def resident(what):  # VmHWM, not getrusage: that one starts at the parent's peak
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = resident("VmRSS")
for _ in fit_steps(volume, gaussians={MEMORY_GAUSSIANS}, rounds=2, iterations={iterations}):
    pass
print(before, resident("VmHWM"))
"""
    if sys.platform != "linux":
        raise SystemExit("--memory reads /proc and runs on Linux only.")
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "volume.npy", anatomical_phantom(MEMORY_SIZE)[0])
        answer = subprocess.run([sys.executable, "-c", child], cwd=folder, check=True, capture_output=True, text=True)
    before, peak = map(int, answer.stdout.split())
    each = (peak - before) / MEMORY_SIZE**3
    console.print(
        f"{MEMORY_SIZE}^3 voxels, {MEMORY_GAUSSIANS:,} Gaussians, {iterations} iterations: "
        f"peak {peak / 2**30:.2f} GiB, {before / 2**30:.2f} GiB before (volume, libraries): {each:.0f} bytes a voxel"
    )
    return {"peak_bytes": peak, "bytes_before": before, "bytes_per_voxel": each, "iterations": iterations}


def plot(numbers: Json, path: Path) -> None:
    """Draw the throughput of the kernels and, for each volume, PSNR over time."""
    volumes = numbers.get("fits", {})
    panels = len(volumes) + ("kernels" in numbers)
    if not panels:
        return
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    remaining = list(figure.subplots(1, panels, squeeze=False)[0])
    if "kernels" in numbers:
        axes = remaining.pop(0)
        for kernel in ("splat", "gather"):
            calls = [call for call in numbers["kernels"]["calls"] if call["kernel"] == kernel]
            sigmas, rates = [c["sigma"] for c in calls], [c["evaluations_per_second"] / 1e9 for c in calls]
            axes.plot(sigmas, rates, "o-", label=kernel)
        axes.set(title="Kernels", xlabel="sigma (voxels)", ylabel="10^9 evaluations / s", ylim=(0, None))
        axes.legend()
    for axes, (name, fitted) in zip(remaining, volumes.items(), strict=True):
        for solver, figures in fitted["solvers"].items():
            seconds, psnr, _ = zip(*figures["history"], strict=True)
            axes.plot(seconds, psnr, label=f"{solver}, {figures['psnr_db']:.1f} dB")
        axes.set(title=name, xlabel="seconds", ylabel="PSNR (dB)")
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
