"""Super-resolution models trained on the low-resolution volume itself, compared with B-spline baselines.

    python benchmarks/super_resolution.py T1.nii.gz CT.nii.gz --schemes singular-vectors residual --time-limit 600
    python benchmarks/super_resolution.py THIN.nii.gz --upsample-axes through-plane --factor 3 --schemes residual

A volume is the ground truth. It is degraded in the slices along an axis or, through-plane, along that axis itself. The
models are trained on the degraded volume only, and super-resolve it. PSNR and SSIM over all voxels of the ground truth,
data range max - min. Prints a table and writes it as JSON. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity

from napari_gsvolume.io.nifti import read_nifti
from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.super_resolution.bspline import upsample_bspline, upsampling_factors
from napari_gsvolume.super_resolution.degradation import Degradation
from napari_gsvolume.super_resolution.training import train_superresolution
from napari_gsvolume.super_resolution.upsampling import superresolve

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="NIfTI volumes")
    parser.add_argument(
        "--schemes", nargs="*", choices=("singular-vectors", "residual"), default=["singular-vectors", "residual"]
    )
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--slice-axis", choices=tuple("zyx"), default="z")
    parser.add_argument("--upsample-axes", choices=("in-plane", "through-plane"), default="in-plane")
    parser.add_argument("--degradation", choices=("block-mean", "bicubic", "psf"), default="block-mean")
    parser.add_argument("--time-limit", type=float, help="seconds of training (default: 600, without iterations)")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--out", type=Path, default=Path("benchmark-super-resolution.json"))
    options = parser.parse_args()
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in ("factor", "degradation", "time_limit", "iterations")
    }
    if options.time_limit is None and options.iterations is None:
        settings["time_limit"] = 600.0
    settings |= {name: _value(text) for name, text in (one.split("=", 1) for one in options.set)}
    rows: list[dict[str, Any]] = []
    for path in options.paths:
        for row in measure(path, options.slice_axis, options.upsample_axes, options.schemes, settings):
            rows.append({"volume": path.name} | row)
            console.print(" ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()))
    table = Table("volume", "method", "PSNR (dB)", "SSIM", "deviation", "training", "application")
    for row in rows:
        seconds = [f"{row[k]:.0f} s" if k in row else "" for k in ("training_s", "applying_s")]
        table.add_row(
            row["volume"],
            row["method"],
            f"{row['psnr_db']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['deviation']:.0e}",
            *seconds,
        )
    console.print(table)
    options.out.write_text(
        json.dumps({"settings": settings, "upsample_axes": options.upsample_axes, "rows": rows}, indent=1)
    )


def measure(path: Path, axis: str, axes: str, schemes: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    image = read_nifti(path)
    along = "zyx".index(axis)
    factors = upsampling_factors(settings["factor"], along, axes)
    truth = image.data.astype(np.float32)
    low_shape = [int(n // f) for n, f in zip(truth.shape, factors, strict=True)]
    truth = truth[tuple(slice(round(n * f)) for n, f in zip(low_shape, factors, strict=True))]
    degradation = Degradation.of_low(low_shape, factors, settings["degradation"])
    low = degradation.degrade(truth)
    voxel = [float(s * f) for s, f in zip(image.grid.voxel_size, factors, strict=True)]

    def row(method: str, upsampled: NDArray[np.float32], **more: Any) -> dict[str, Any]:
        span = float(np.ptp(truth))
        deviation = float(np.abs(degradation.degrade(upsampled) - low).max() / np.abs(low).max())
        ssim = float(structural_similarity(truth, upsampled, data_range=span))
        return {
            "method": method,
            "psnr_db": psnr_between(truth, upsampled, span),
            "ssim": ssim,
            "deviation": deviation,
        } | more

    rows = [row("cubic B-spline", upsample_bspline(low, factors))]
    rows.append(row("B-spline + projection", upsample_bspline(low, factors, onto=degradation)))
    for scheme in schemes:
        result = train_superresolution([low], [voxel], scheme=scheme, slice_axis=axis, **settings)
        console.print(result.message, result.history[-1].iteration, "iterations;", result.table)
        upsampled = superresolve(low, result.model, slice_axis=axis, upsample_axes=axes)
        held = {"validation": result.table, "iterations": result.history[-1].iteration}
        rows.append(
            row(f"scheme {scheme}", upsampled.volume, training_s=result.seconds, applying_s=upsampled.seconds, **held)
        )
    return rows


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
