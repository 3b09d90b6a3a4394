"""Super-resolution trained on a volume of low resolution itself, beside what costs nothing.

    python benchmarks/super_resolution.py T1.nii.gz CT.nii.gz --schemes a b --time-limit 600
    python benchmarks/super_resolution.py THIN.nii.gz --axes through-plane --factor 3 --schemes b

A volume is taken for the truth and degraded, in the slices along an axis or, through-plane, along that axis itself.
What is left is all that the schemes get: they learn from it, and make it finer again. PSNR and SSIM over all voxels of
the truth, data range max - min. Prints a table and writes it as JSON. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
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
from napari_gsvolume.super_resolution.model import superresolve
from napari_gsvolume.super_resolution.training import train_sr

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="NIfTI volumes")
    parser.add_argument("--schemes", nargs="*", choices=("a", "b"), default=["singular-vectors", "residual"])
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--axis", choices=tuple("zyx"), default="z")
    parser.add_argument("--upsample-axes", choices=("in-plane", "through-plane"), default="in-plane")
    parser.add_argument("--degradation", choices=("block-mean", "bicubic", "psf"), default="block-mean")
    parser.add_argument("--time-limit", type=float, help="seconds of training (600 if no iterations are given)")
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
        for row in measured(path, options.axis, options.axes, options.schemes, settings):
            rows.append({"volume": path.name} | row)
            console.print(" ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()))
    table = Table("volume", "method", "PSNR (dB)", "SSIM", "misfit", "training", "making finer")
    for row in rows:
        seconds = [f"{row[k]:.0f} s" if k in row else "" for k in ("training_s", "applying_s")]
        table.add_row(
            row["volume"],
            row["method"],
            f"{row['psnr_db']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['misfit']:.0e}",
            *seconds,
        )
    console.print(table)
    options.out.write_text(json.dumps({"settings": settings, "axes": options.axes, "rows": rows}, indent=1))


def measured(path: Path, axis: str, axes: str, schemes: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    image = read_nifti(path)
    along = "zyx".index(axis)
    factors = upsampling_factors(settings["factor"], along, axes)
    truth = image.data.astype(np.float32)
    low_shape = [int(n // f) for n, f in zip(truth.shape, factors, strict=True)]
    truth = truth[tuple(slice(round(n * f)) for n, f in zip(low_shape, factors, strict=True))]
    degradation = Degradation.of_low(low_shape, factors, settings["degradation"])
    low = degradation.degrade(truth)
    voxel = [float(s * f) for s, f in zip(image.grid.voxel_size, factors, strict=True)]

    def row(method: str, finer: NDArray[np.float32], **more: Any) -> dict[str, Any]:
        span = float(np.ptp(truth))
        misfit = float(np.abs(degradation.degrade(finer) - low).max() / np.abs(low).max())
        ssim = float(structural_similarity(truth, finer, data_range=span))
        return {"method": method, "psnr_db": psnr_between(truth, finer, span), "ssim": ssim, "misfit": misfit} | more

    rows = [row("cubic B-spline", upsample_bspline(low, factors))]
    rows.append(row("B-spline + projection", upsample_bspline(low, factors, onto=degradation)))
    for scheme in schemes:
        result = train_sr([low], [voxel], scheme=scheme, axis=axis, **settings)
        console.print(result.message, result.history[-1].iteration, "iterations;", result.table)
        began = time.perf_counter()
        finer = superresolve(low, result.model, along, axes)
        seconds = time.perf_counter() - began
        held = {"held_out": result.table, "iterations": result.history[-1].iteration}
        rows.append(row(f"scheme {scheme}", finer, training_s=result.seconds, applying_s=seconds, **held))
    return rows


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
