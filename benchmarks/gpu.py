"""What a GPU brings: the kernels, and a whole fit, on each device, beside plain torch and the hardware's ceilings.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sizes 64 --gaussians 1000 --devices cpu --out small.json
    python benchmarks/gpu.py --sizes --fit CT.nii.gz --fit-size 256 --fit-gaussians 20000

Prints Markdown tables and writes every number to a JSON file. Nothing else should run meanwhile. Without a GPU it says
so and measures the CPU alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numba
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from fit import Json, read
from napari_gsvolume import __version__, fit_steps
from napari_gsvolume.devices import gpu_problem
from napari_gsvolume.kernels import gather, gather_flat, n_monomials, prepare, reference, splat
from napari_gsvolume.kernels.constants import SUPPORT
from napari_gsvolume.phantoms import anatomical_phantom

OPERATIONS = {"splat": 16, "gather": 15}
"""Float32 operations for a voxel inside a support, as the inner loops of the GPU kernels have them; exp is two."""
DENSE_PAIRS = {"cpu": 2e6, "cuda": 4e9}
"""Pairs of Gaussian and voxel that the dense sums are timed on, a share of all; the time is scaled up."""
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Pairs that plain torch holds at a time; some 30 floats each."""
CHECKED = {"splat": 400, "gather": 100}
"""Voxels, or Gaussians, whose values are compared with float64."""


class Scene(NamedTuple):
    """What the kernels are given, and the pairs of Gaussian and voxel inside its support."""

    means: Tensor
    factors: Tensor
    coefficients: Tensor
    grid: Tensor
    pairs: float

    def to(self, device: str) -> Scene:
        """Return the same on a device."""
        return Scene(*(t.to(device) for t in self[:4]), self.pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256], help="voxels an axis (%(default)s)")
    parser.add_argument(
        "--gaussians", type=int, nargs="*", default=[1000, 6000, 50_000], help="one a size (%(default)s)"
    )
    parser.add_argument("--sigma", type=float, default=2.0, help="their mean radius in voxels (%(default)s)")
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"], help="cpu, cuda, cuda:1 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="calls a median is of (%(default)s)")
    parser.add_argument("--fit", metavar="VOLUME", help="fit a NIfTI volume, or 'phantom', on each device too")
    parser.add_argument("--fit-size", type=int, default=256, help="resample it to so many voxels an axis (%(default)s)")
    parser.add_argument("--fit-gaussians", type=int, default=20_000, help="(%(default)s)")
    parser.add_argument("--fit-iterations", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-gpu.json"), help="(%(default)s)")
    options = parser.parse_args()
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(numba.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = False
    problem = gpu_problem()
    if problem:
        print(f"No GPU is measured: {problem}\n")
        options.devices = [device for device in options.devices if not device.startswith("cuda")]

    numbers: Json = {"version": __version__, "torch": torch.__version__, "devices": {}, "kernels": [], "fits": {}}
    for device in options.devices:
        prepare(torch.device(device))
        numbers["devices"][device] = ceilings(device)
    for size, count in zip(options.sizes, options.gaussians if options.sizes else [], strict=True):
        numbers["kernels"] += kernels(size, count, numbers["devices"], options)
    if options.fit:
        numbers["fits"] = fits(options)
    options.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {options.out}")


def ceilings(device: str) -> Json:
    """Measure what the hardware reaches: a float32 matrix product, and a copy, both large."""
    on_gpu = device != "cpu"
    n, n_floats = (8192, 1 << 28) if on_gpu else (2048, 1 << 25)
    square, floats = torch.rand(n, n, device=device), torch.rand(n_floats, device=device)
    copy = torch.empty_like(floats)
    flops = 2 * n**3 / median(times(lambda: square @ square, device, 10))
    bandwidth = 2 * 4 * n_floats / median(times(lambda: copy.copy_(floats), device, 10))
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    what = name if on_gpu else f"{name}, {torch.get_num_threads()} threads"
    print(
        f"{device} ({what}): {flops / 1e9:,.0f} Gflop/s in a float32 product, {bandwidth / 1e9:,.0f} GB/s in a copy\n"
    )
    return {"name": what, "flops": flops, "bandwidth": bandwidth}


def times(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Return the seconds of each of some calls after two that are not counted; by the GPU's own clock on a GPU."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(repeats):
        if device == "cpu":
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
            continue
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
    return seconds


def scene(size: int, count: int, sigma: float) -> Scene:
    """Return Gaussians anywhere in the grid, of random shapes about three times as long as thick, and noise."""
    random = torch.Generator().manual_seed(0)
    scales = sigma * torch.exp(0.4 * torch.randn(count, 3, generator=random))
    scales *= sigma / scales.mean()
    rotations, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=random))
    means = torch.rand(count, 3, generator=random) * (size - 1)
    factors = (rotations / scales[:, None]).contiguous()
    coefficients = torch.randn(count, n_monomials(3), generator=random)
    coefficients[:, 1:4] /= sigma
    coefficients[:, 4:] /= sigma**2
    pairs = float(gather_flat(means, factors, torch.ones(size, size, size), SUPPORT).double().sum())
    return Scene(means, factors, coefficients, torch.randn(size, size, size, generator=random), pairs)


def kernels(size: int, count: int, devices: Json, options: argparse.Namespace) -> list[Json]:
    """Measure splat and gather, ours and of plain torch, on all devices; print the table."""
    given = scene(size, count, options.sigma)
    n_bytes = 4 * (size**3 + count * (3 + 9 + n_monomials(3)))  # each number read or written once
    exact = {
        "splat": dense_splat(*(t.double() for t in given[:3]), some_voxels(size, CHECKED["splat"]).double()),
        "gather": box_gather(*(t[: CHECKED["gather"]].double() for t in given[:2]), given.grid.double()),
    }
    print(f"**{size}^3 voxels, {count:,} Gaussians, mean sigma {options.sigma:g}: {given.pairs:.3g} pairs**\n")
    print("| device | | kernel | ms | lists, ms | 10^9 pairs/s | error | of the product | of the copy |")
    print("| --- " * 9 + "|")
    rows = []
    for device, ceiling in devices.items():
        for way in ways(given.to(device), device):
            repeats = options.repeats if way.name == "ours" else 3
            seconds = median(times(way.call, device, repeats)) / way.share
            lists = None if way.afresh is None else median(times(way.afresh, device, repeats)) - seconds
            got, want = way.values(way.call()).cpu().double(), exact[way.kernel]
            n = min(len(got), len(want))
            error = float((got[:n] - want[:n]).norm() / want[:n].norm())
            arithmetic = given.pairs * OPERATIONS[way.kernel] / seconds / ceiling["flops"]
            bandwidth = n_bytes / seconds / ceiling["bandwidth"]
            rows.append(
                {
                    "size": size,
                    "gaussians": count,
                    "sigma": options.sigma,
                    "pairs": given.pairs,
                    "bytes": n_bytes,
                    "device": device,
                    "way": way.name,
                    "kernel": way.kernel,
                    "seconds": seconds,
                    "list_seconds": lists,
                    "measured_share": way.share,
                    "relative_error": error,
                    "compared": n,
                    "share_of_arithmetic": arithmetic,
                    "share_of_bandwidth": bandwidth,
                }
            )
            print(
                f"| {device} | {way.name} | {way.kernel} | {1000 * seconds:,.3g} | "
                f"{'' if lists is None else f'{1000 * lists:,.3g}'} | {given.pairs / seconds / 1e9:,.3g} | "
                f"{error:.1e} | {arithmetic:.2%} | {bandwidth:.2%} |"
            )
    print()
    return rows


class Way(NamedTuple):
    """One way to compute a kernel."""

    name: str
    kernel: str
    call: Callable[[], Tensor]
    share: float = 1.0
    """Of the whole that the call does."""
    values: Callable[[Tensor], Tensor] = lambda result: result
    """From what the call returns to what is compared."""
    afresh: Callable[[], Tensor] | None = None
    """The call with Gaussians that it has not seen, where it remembers them."""


def ways(of: Scene, device: str) -> Iterator[Way]:
    """Yield the ways to compute splat and gather; the first is ours."""
    means, factors, coefficients, grid, _ = of
    size, n, dense = len(grid), len(means), DENSE_PAIRS[device.partition(":")[0]]
    shape = (size,) * 3
    points = some_voxels(size, max(CHECKED["splat"], int(dense / n))).to(device)
    few = max(1, min(n, int(dense / size**3)))
    checked = tuple(points[: CHECKED["splat"]].long().T)

    def afresh() -> Tensor:
        return splat(means.clone(), factors, coefficients, shape)

    yield Way(
        "ours",
        "splat",
        lambda: splat(means, factors, coefficients, shape),
        1.0,
        lambda volume: volume[checked],
        None if device == "cpu" else afresh,
    )
    yield Way("ours", "gather", lambda: gather(means, factors, grid))
    yield Way(
        "torch, boxes",
        "splat",
        lambda: box_splat(means, factors, coefficients, shape),
        1.0,
        lambda volume: volume[checked],
    )
    yield Way("torch, boxes", "gather", lambda: box_gather(means, factors, grid))
    dense_share = len(points) / size**3
    yield Way("torch, dense", "splat", lambda: dense_splat(means, factors, coefficients, points), dense_share)
    yield Way("torch, dense", "gather", lambda: dense_gather(means[:few], factors[:few], grid), few / n)


def some_voxels(size: int, count: int) -> Tensor:
    """Return voxels at random; of more of them these are the first."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, size, (count, 3))).float()


def dense_splat(means: Tensor, factors: Tensor, coefficients: Tensor, points: Tensor) -> Tensor:
    """Return the sums at some points over all Gaussians, however far."""
    sums = []
    for some in points.split(max(1, CHUNK[means.device.type] // len(means))):
        d, e = reference.basis(some, means, factors)
        sums.append((e * (reference.monomials(d) * coefficients).sum(-1)).sum(-1))
    return torch.cat(sums)


def dense_gather(means: Tensor, factors: Tensor, grid: Tensor) -> Tensor:
    """Return the moments of some Gaussians over all voxels, however far."""
    points = reference.grid_points(grid.shape).to(grid)
    n = max(1, CHUNK[means.device.type] // len(means))
    moments = means.new_zeros(len(means), n_monomials(3))
    for some, values in zip(points.split(n), grid.flatten().split(n), strict=True):
        d, e = reference.basis(some, means, factors)
        moments += ((values[:, None] * e)[..., None] * reference.monomials(d)).sum(0)
    return moments


def box_splat(means: Tensor, factors: Tensor, coefficients: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the sums at all voxels, those in each Gaussian's support added to."""
    out = means.new_zeros(math.prod(shape))
    for i, place, terms in boxes(means, factors, shape):
        out.index_add_(0, place, (terms * coefficients[i]).sum(-1))
    return out.reshape(shape)


def box_gather(means: Tensor, factors: Tensor, grid: Tensor) -> Tensor:
    """Return the moments, of the voxels in each Gaussian's support."""
    moments = means.new_zeros(len(means), n_monomials(3))
    for i, place, terms in boxes(means, factors, tuple(grid.shape)):
        moments.index_add_(0, i, terms * grid.flatten()[place, None])
    return moments


def boxes(means: Tensor, factors: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pairs of Gaussian and voxel inside its support, found in its box: which, where, and e times monomials."""
    variances = torch.linalg.inv(factors @ factors.mT).diagonal(dim1=1, dim2=2)
    reach = (SUPPORT * variances.sqrt() + 0.5).ceil().long().cpu()
    order = (2 * reach + 1).prod(1).argsort(descending=True)  # boxes of about one size together
    reach, start, last = reach[order], 0, torch.tensor(shape, device=means.device) - 1
    while start < len(means):
        end = start + max(1, CHUNK[means.device.type] // int((2 * reach[start] + 1).prod()))
        some = order[start:end].to(means.device)
        widest = reach[start:end].amax(0).tolist()
        offsets = torch.stack(torch.meshgrid(*(torch.arange(-r, r + 1) for r in widest), indexing="ij"), -1)
        voxels = means[some].round().long()[:, None] + offsets.reshape(-1, 3).to(means.device)
        d = voxels - means[some][:, None]
        q = (d @ factors[some]).square().sum(-1)
        which, inside = ((q < SUPPORT**2) & ((voxels >= 0) & (voxels <= last)).all(-1)).nonzero(as_tuple=True)
        z, y, x = voxels[which, inside].unbind(-1)
        terms = torch.exp(-q[which, inside] / 2)[:, None] * reference.monomials(d[which, inside])
        yield some[which], (z * shape[1] + y) * shape[2] + x, terms
        start = end


def fits(options: argparse.Namespace) -> Json:
    """Fit one volume on each device; print when each reaches the PSNR that all of them reach, and the memory."""
    size = options.fit_size
    found: Json = {}
    volume = volume_to_fit(options.fit, size)
    settings = {"gaussians": options.fit_gaussians, "iterations": options.fit_iterations, "seed": 0}
    for device in options.devices:
        deque(fit_steps(anatomical_phantom(32)[0], gaussians=50, iterations=3, device=device), maxlen=0)  # kernels
        before = memory(device)
        step = deque(fit_steps(volume, device=device, **settings), maxlen=1)[0]
        history = [[point.seconds, point.psnr_db, point.n_gaussians] for point in step.history]
        found[device] = {"psnr_db": step.psnr_db, "gaussians": step.n_gaussians, "seconds": step.seconds}
        del step
        gc.collect()
        found[device] |= {"history": history, "memory_before": before, "memory_after": memory(device)}
    common = min(figures["psnr_db"] for figures in found.values())
    print(f"**{options.fit}, {size}^3 voxels, {options.fit_gaussians:,} Gaussians, {common:.2f} dB**\n")
    print("| device | s to that PSNR | PSNR at the end | s | memory before and after, MiB | on the GPU, most |")
    print("| --- " * 6 + "|")
    for device, figures in found.items():
        passed = next(seconds for seconds, psnr, _ in figures["history"] if psnr >= common)
        figures["seconds_to_common_psnr"] = passed
        before, after = figures["memory_before"], figures["memory_after"]
        on_gpu = f"{before['gpu']}, {after['gpu']} | {after['gpu_most']}" if device != "cpu" else " | "
        print(
            f"| {device} | {passed:.1f} | {figures['psnr_db']:.2f} | {figures['seconds']:.1f} | "
            f"{before['process']}, {after['process']}; {on_gpu} |"
        )
    if "cpu" in found:
        for device in found.keys() - {"cpu"}:
            ratio = found["cpu"]["seconds_to_common_psnr"] / found[device]["seconds_to_common_psnr"]
            print(f"\n{device} gets there {ratio:.1f} times as fast as the CPU's {torch.get_num_threads()} threads.")
    print()
    return {"volume": options.fit, "size": size, "settings": settings, "common_psnr_db": common, "devices": found}


def volume_to_fit(name: str, size: int) -> NDArray[np.float32]:
    """Return the phantom, or the whole of a volume, clipped as for the other benchmarks, with that many voxels."""
    if name == "phantom":
        return anatomical_phantom(size)[0]
    volume = torch.from_numpy(read(Path(name), 1 << 30))[None, None]
    resampled: NDArray[np.float32] = torch.nn.functional.interpolate(volume, (size,) * 3, mode="trilinear")[
        0, 0
    ].numpy()
    return resampled


def memory(device: str) -> dict[str, int]:
    """Return MiB: of the process, of torch's tensors on the GPU, and the most these have been."""
    taken = {"process": psutil.Process().memory_info().rss >> 20}
    if device != "cpu":
        taken |= {
            "gpu": torch.cuda.memory_allocated(device) >> 20,
            "gpu_most": torch.cuda.max_memory_allocated(device) >> 20,
        }
    return taken


if __name__ == "__main__":
    main()
