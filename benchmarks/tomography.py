"""Reconstruction from few projections: Gaussians, filtered back-projection, FDK, SIRT, SART and total variation.

    python benchmarks/tomography.py CT.nii.gz --views 25 50 75 --photons 0 1e5 --time-limit 300
    python benchmarks/tomography.py CT.nii.gz --beam cone --views 50 --methods fdk sirt gaussians --offset 20

All methods get the same projections and the same quality measure (PSNR over all voxels, range max - min). The weight of
total variation is tuned on the true volume, which favours it. Prints a table and writes it as JSON. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import map_coordinates
from skimage.restoration import denoise_tv_chambolle
from skimage.transform import iradon, iradon_sart

from napari_gsvolume.io.nifti import read_nifti
from napari_gsvolume.reconstruction import reconstruct
from napari_gsvolume.reconstruction.measurements import ProjectionMeasurements
from napari_gsvolume.reconstruction.plug_and_play import negative_gradient
from napari_gsvolume.tomography.noise import add_noise
from napari_gsvolume.tomography.presets import spread_angles
from napari_gsvolume.tomography.projections import project
from napari_gsvolume.tomography.scan import Scan, circular_scan

METHODS = ("fbp", "fdk", "sirt", "sart", "tv", "gaussians")
OF_ONE_BEAM = {"fbp": "parallel", "sart": "parallel", "fdk": "cone"}
TV_WEIGHTS = 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03
SIRT_STEPS = 200
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a NIfTI volume")
    parser.add_argument("--size", type=int, default=128, help="number of voxels per axis after cropping (%(default)s)")
    parser.add_argument("--slices", type=int, help="number of slices after cropping, for a quick test")
    parser.add_argument("--views", type=int, nargs="+", default=[25, 50, 75])
    parser.add_argument("--photons", type=float, nargs="+", default=[0.0], help="photons per pixel; 0 for no noise")
    parser.add_argument("--beam", choices=("parallel", "cone"), default="parallel")
    parser.add_argument("--offset", type=float, default=0.0, help="detector offset along the rows, mm")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--time-limit", type=float, default=300, help="time limit of the Gaussians, s (%(default)s)")
    parser.add_argument("--gaussians", type=int)
    parser.add_argument("--tv-iterations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmark-tomography.json"))
    options = parser.parse_args()
    truth = cropped(np.asarray(read_nifti(options.path).data, np.float32), options)
    rows: list[dict[str, Any]] = []
    for views in options.views:
        for photons in options.photons:
            rows.append({"views": views, "photons": photons} | measured(truth, views, photons, options))
            show(rows, options)
            options.out.write_text(json.dumps({"shape": truth.shape, "rows": rows}, indent=1))


def cropped(volume: NDArray[np.float32], options: argparse.Namespace) -> NDArray[np.float32]:
    """Return the middle of the volume, clipped to its 0.5 and 99.5 percentiles and scaled to [0, 1]."""
    wanted = (options.slices or options.size, options.size, options.size)
    sizes = [min(n, w) for n, w in zip(volume.shape, wanted, strict=True)]
    sizes[1:] = [n - 1 + n % 2 for n in sizes[1:]]  # odd: scikit-image turns slices around the middle of a pixel
    starts = [(n - s) // 2 for n, s in zip(volume.shape, sizes, strict=True)]
    middle = tuple(slice(start, start + s) for start, s in zip(starts, sizes, strict=True))
    low, high = np.percentile(volume[middle], [0.5, 99.5])
    return ((np.clip(volume[middle], low, high) - low) / (high - low)).astype(np.float32)


def measured(truth: NDArray[np.float32], views: int, photons: float, options: argparse.Namespace) -> dict[str, Any]:
    """Return PSNR and seconds of every method."""
    degrees = spread_angles(views, 180 if options.beam == "parallel" else 360)
    pixels = None
    if options.beam == "parallel":
        pixels = 2 * math.ceil(math.hypot(*truth.shape[1:]) / 2) + 1, len(truth)
    scan = circular_scan(truth.shape, 1.0, degrees, options.beam, pixels=pixels, offset=(options.offset, 0))
    images = project(truth, scan).images
    if photons:
        images = add_noise(images, photons)
    methods: dict[str, Callable[[], NDArray[np.float32]]] = {
        "fbp": lambda: by_slice(
            images, lambda sinogram: iradon(sinogram, angles(scan), circle=False, output_size=sinogram.shape[0])
        ),
        "sart": lambda: by_slice(images, lambda sinogram: sart(sinogram, angles(scan))),
        "fdk": lambda: fdk(images, scan),
        "sirt": lambda: sirt(images, scan),
        "tv": lambda: best_tv(images, scan, truth, options.tv_iterations),
        "gaussians": lambda: gaussians(images, scan, truth, options),
    }
    results: dict[str, Any] = {}
    for name in options.methods:
        if OF_ONE_BEAM.get(name, options.beam) != options.beam:
            continue
        began = time.perf_counter()
        volume = methods[name]()
        results[name] = {"psnr_db": psnr(volume, truth), "seconds": time.perf_counter() - began}
        console.print(f"{views} views, {photons:g} photons: {name} {results[name]['psnr_db']:.2f} dB")
    return results


def psnr(volume: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    if volume.shape != truth.shape:  # scikit-image's slices are squares around the detector's width
        starts = [(a - b) // 2 for a, b in zip(volume.shape, truth.shape, strict=True)]
        volume = volume[tuple(slice(s, s + n) for s, n in zip(starts, truth.shape, strict=True))]
    return -10 * math.log10(float(np.square(volume - truth, dtype=np.float64).mean()) / float(np.ptp(truth)) ** 2)


def angles(scan: Scan) -> NDArray[np.float64]:
    """Return the views' angles as scikit-image counts them: its y runs down."""
    return -np.degrees(np.arctan2(scan.u[:, 1], scan.u[:, 2]))


def by_slice(images: NDArray[np.float32], method: Callable[[NDArray[np.float32]], Any]) -> NDArray[np.float32]:
    """Return slices reconstructed one by one from sinograms (U, K)."""
    return np.stack([method(images[:, j].T.astype(np.float64)) for j in range(images.shape[1])]).astype(np.float32)


def sart(sinogram: NDArray[np.float32], degrees: NDArray[np.float64], sweeps: int = 10) -> Any:
    image = None
    for _ in range(sweeps):
        image = iradon_sart(sinogram, degrees, image=image, clip=(0, np.inf))
    return image


def fdk(images: NDArray[np.float32], scan: Scan) -> NDArray[np.float32]:
    """Return the volume of a full circle of cones (Feldkamp, Davis and Kress 1984), nowhere negative."""
    (nu, nv), (du, dv) = scan.pixels, (np.linalg.norm(axis[0]) for axis in (scan.u, scan.v))
    to_axis, rays = float(np.linalg.norm(scan.sources[0])), scan.centres - scan.sources
    to_detector = float(np.linalg.norm(np.cross(scan.u[0], scan.v[0]) @ rays[0]) / (du * dv))
    across = (np.arange(nu) - (nu - 1) / 2) * du + rays[0] @ scan.u[0] / du  # mm from the middle ray
    up = (np.arange(nv) - (nv - 1) / 2) * dv + rays[0] @ scan.v[0] / dv
    cosine = to_detector / np.sqrt(to_detector**2 + across**2 + up[:, None] ** 2)
    step = du * to_axis / to_detector  # of pixels, as seen at the axis
    n = np.fft.fftfreq(2 * nu, 1 / (2 * nu)).round()
    ramp = np.where(n % 2 == 1, -1 / (np.pi * np.where(n == 0, 1, n)) ** 2, 0) / step
    ramp[0] = 1 / (4 * step)
    filtered = np.fft.irfft(np.fft.rfft(images * cosine, 2 * nu) * np.fft.rfft(ramp), 2 * nu)[..., :nu]
    middle = [(size - 1) / 2 for size in scan.shape]
    points = (np.indices(scan.shape).reshape(3, -1).T - middle) * scan.voxel_size  # (ZYX, 3)
    volume = np.zeros(len(points))
    for image, source, frame in zip(filtered, scan.sources, scan.frames, strict=True):
        i, j, depth = np.linalg.solve(frame, (points - source).T)
        at = np.stack([j / depth + (nv - 1) / 2, i / depth + (nu - 1) / 2])
        volume += map_coordinates(image, at, order=1) * (to_axis / (depth * to_detector)) ** 2
    return np.maximum(volume * np.pi / len(images), 0).reshape(scan.shape).astype(np.float32)


def sirt(images: NDArray[np.float32], scan: Scan, steps: int = SIRT_STEPS) -> NDArray[np.float32]:
    """Return the simultaneous iterative reconstruction (Gilbert 1972), nowhere negative."""
    data = ProjectionMeasurements(images, scan, variance=0.0)
    rays = data.forward(torch.ones(scan.shape)).clamp_min(1e-3)
    voxels = data.adjoint(torch.ones_like(rays)).clamp_min(1e-3)
    x = torch.zeros(scan.shape)
    for _ in range(steps):
        x = (x + data.adjoint((data.values - data.forward(x)) / rays) / voxels).clamp_min(0)
    return x.numpy()


def best_tv(
    images: NDArray[np.float32], scan: Scan, truth: NDArray[np.float32], iterations: int
) -> NDArray[np.float32]:
    """Return FISTA (Beck and Teboulle 2009) with total variation, with the weight of the highest PSNR."""
    best = None
    for weight in TV_WEIGHTS:
        volume = fista_tv(images, scan, weight, iterations)
        if best is not None and psnr(volume, truth) < psnr(best, truth):
            break  # larger weights are worse
        best = volume
        console.print(f"total variation, weight {weight}: {psnr(volume, truth):.2f} dB")
    assert best is not None
    return best


def fista_tv(images: NDArray[np.float32], scan: Scan, weight: float, iterations: int) -> NDArray[np.float32]:
    data = ProjectionMeasurements(images, scan, variance=0.0)
    data.precision = torch.tensor(1.0)
    probe = torch.rand(scan.shape, generator=torch.Generator().manual_seed(0))
    largest = 1.0
    for _ in range(15):
        probe = data.adjoint(data.forward(probe / probe.norm()))
        largest = float(probe.norm())
    x = y = torch.zeros(scan.shape)
    t = 1.0
    for _ in range(iterations):
        step = (y + negative_gradient([data], y) / largest).clamp_min(0)
        new = torch.from_numpy(denoise_tv_chambolle(step.numpy(), weight=weight, max_num_iter=10).astype(np.float32))
        new, faster = new.clamp_min(0), (1 + math.sqrt(1 + 4 * t * t)) / 2
        y = new + (t - 1) / faster * (new - x)
        x, t = new, faster
    return x.numpy()


def gaussians(
    images: NDArray[np.float32], scan: Scan, truth: NDArray[np.float32], options: argparse.Namespace
) -> NDArray[np.float32]:
    result = reconstruct(images, scan=scan, gaussians=options.gaussians, time_limit=options.time_limit)
    console.print(f"{len(result.gaussians):,} Gaussians, data fidelity {result.data_fidelity:.2f}")
    return result.reconstruction


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    table = Table("views", "photons", *options.methods)
    for row in rows:
        cells = [f"{row[m]['psnr_db']:.2f} ({row[m]['seconds']:.0f} s)" if m in row else "" for m in options.methods]
        table.add_row(str(row["views"]), f"{row['photons']:g}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
