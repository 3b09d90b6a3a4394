"""Splats and direct volume rendering: quality by number of Gaussians and SH degree, and rendering speed.

    python benchmarks/views.py CT.nii.gz --preset ct-soft-tissue --time-limit 120
    python benchmarks/views.py CT.nii.gz --only speed

"speed" renders the volume, resampled to 256^3, and 20,000 splats on its surfaces, with equal image size, in the same
run. "harmonics" trains with SH degrees 0 and 3, with and without shading; "count" with several numbers of Gaussians.
Quality is measured on held-out views. Prints tables and writes them as JSON. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import zoom

from napari_gsvolume.io.nifti import read_nifti
from napari_gsvolume.rendering.cameras import fibonacci_directions, orbit_cameras
from napari_gsvolume.rendering.scene import Scene
from napari_gsvolume.rendering.splats.initialization import initialize_splats
from napari_gsvolume.rendering.splats.training import train_splats
from napari_gsvolume.rendering.volume.transfer_functions import Preset, TransferFunction
from napari_gsvolume.units import voxel_size_mm

COUNTS = (2_500, 5_000, 10_000, 20_000, 40_000)
PARTS = ("speed", "harmonics", "count")
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="NIfTI volume")
    parser.add_argument("--preset", choices=get_args(Preset), default="ct-soft-tissue")
    parser.add_argument("--image-size", type=int, default=256, help="width and height of the views (%(default)s)")
    parser.add_argument("--views", type=int, default=64, help="number of training views (%(default)s)")
    parser.add_argument(
        "--gaussians", type=int, default=20_000, help="number of Gaussians of the harmonics table (%(default)s)"
    )
    parser.add_argument(
        "--time-limit", type=float, default=120, help="time limit of each training in seconds (%(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("benchmark-views.json"))
    options = parser.parse_args()
    image = read_nifti(options.path)
    volume = np.asarray(image.data, np.float32)
    scene = Scene(volume, voxel_size_mm(image.grid), TransferFunction.from_preset(options.preset, volume))
    parts: dict[str, Callable[[Scene, argparse.Namespace], list[dict[str, Any]]]] = {
        "speed": speed,
        "harmonics": harmonics,
        "count": count,
    }
    results = {}
    for name in options.only:
        results[name] = parts[name](scene, options)
        table = Table(*results[name][0], title=name)
        for row in results[name]:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
        options.out.write_text(json.dumps(results, indent=1))


def speed(scene: Scene, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the median rendering time per view in ms, of the volume at 256^3 and of 20,000 splats."""
    factors = [256 / n for n in np.shape(scene.volume)]
    resampled = replace(scene, volume=zoom(scene.volume, factors, order=1), voxel_size=scene.voxel_size / factors)
    cameras = orbit_cameras(fibonacci_directions(12), resampled.radius, (options.image_size, options.image_size))
    splats = initialize_splats(scene, 20_000, cameras, 3, np.random.default_rng(0))
    renderers: dict[str, Callable[[Any], Any]] = {
        "DVR of 256^3, shaded": lambda camera: list(replace(resampled, shading=True).reference_images(camera)),
        "DVR of 256^3": lambda camera: list(replace(resampled, shading=False).reference_images(camera)),
        "20,000 splats, degree 3": splats.render,
        "20,000 splats, degree 0": lambda camera: splats.render(camera, sh_degree=0),
    }
    rows = []
    for name, render in renderers.items():
        render(cameras[0])
        times = []
        for camera in cameras:
            began = time.perf_counter()
            render(camera)
            times.append(time.perf_counter() - began)
        rows.append({"case": name, "ms per view": 1000 * float(np.median(times))})
    return rows


def harmonics(scene: Scene, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the quality with SH degrees 0 and 3, with and without shading."""
    return [
        {"shading": shading, "degree": degree}
        | train(replace(scene, shading=shading), options, sh_degree=degree, gaussians=options.gaussians)
        for shading in (False, True)
        for degree in (0, 3)
    ]


def count(scene: Scene, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the quality with several numbers of Gaussians."""
    return [train(scene, options, gaussians=n) for n in COUNTS]


def train(scene: Scene, options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    result = train_splats(
        scene, views=options.views, image_size=options.image_size, time_limit=options.time_limit, **settings
    )
    row = {
        "Gaussians": len(result.splats),
        "PSNR (dB)": result.psnr_db,
        "SSIM": result.ssim,
        "views per second": result.fps,
    }
    console.print(settings, row)
    return row


if __name__ == "__main__":
    main()
