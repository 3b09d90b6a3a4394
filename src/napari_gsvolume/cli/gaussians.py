"""Shell commands for Gaussians: fit, sample, convert, compare, inspect.

torch, numba and nibabel are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal as file_size
from rich.table import Table

from ..errors import InputError
from ..fitting.settings import FitSettings, Study
from ..io.gaussians import EXPORT_SUFFIXES, GAUSSIAN_SUFFIXES
from ..progress import Budget
from .app import app
from .files import check_outputs, file_sizes, print_files, print_summary, select_volume, write_report
from .options import (
    IMAGE_SUFFIXES,
    REPORT_SUFFIXES,
    GaussianFile,
    JsonOption,
    QuietOption,
    parse_factors,
    with_settings,
)
from .progress import StopSignal, print_message, run_steps
from .sections import GAUSSIANS, GETTING_STARTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..fitting import FitResult, FitStep
    from ..gaussians import GaussianVolume

_BYTES_PER_SAMPLE = 8  # 4 are measured (the float32); as many again keep the machine usable


@app.command(rich_help_panel=GAUSSIANS)
@with_settings()
def fit(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Volume, .nii or .nii.gz.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="M", help="Output file of the Gaussians: .gsv (small) or .safetensors (lossless)."),
    ] = None,
    reconstruction: Annotated[
        Path | None,
        typer.Option(
            metavar="R.nii.gz", help="Output file of the reconstruction (sum of the Gaussians at every voxel)."
        ),
    ] = None,
    residual: Annotated[
        Path | None, typer.Option(metavar="D.nii.gz", help="Output file of the residual (input - reconstruction).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="REP.json", help="Output file of the figures and the history.")
    ] = None,
    time_point: Annotated[int | None, typer.Option(help="Time point of a 4D image, from 0.")] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Fit Gaussians to a volume.

    The first Ctrl-C stops the fit, keeps the current Gaussians and writes the files; a second one aborts.
    """
    FitSettings(**settings)  # wrong options are reported before anything slow begins
    images = {"reconstruction": (reconstruction, IMAGE_SUFFIXES), "residual": (residual, IMAGE_SUFFIXES)}
    outputs = check_outputs([image], out=(out, GAUSSIAN_SUFFIXES), report=(report, REPORT_SUFFIXES), **images)
    import numpy as np

    from ..fitting import fit_steps
    from ..gaussians import GaussianVolume
    from ..io.nifti import read_nifti, write_nifti

    source = read_nifti(image)
    volume = select_volume(source, image, time_point)
    with StopSignal() as stop:
        steps = fit_steps(volume, grid=source.grid, budget=Budget(stop=stop), **settings)
        result = run_steps(_announced(steps, quiet), stop, quiet)
        if out is not None:
            result.gaussians.save(out)
            if out.suffix.lower() == ".gsv":  # report and reconstruction are those of the file
                result = result.with_gaussians(GaussianVolume.load(out), volume)
        figures = result.report()
        if out is not None:
            figures |= file_sizes(out, volume.size)
        if report is not None:
            write_report(report, figures)
        if reconstruction is not None:
            write_nifti(reconstruction, result.reconstruction, source.grid, like=source)
        if residual is not None:
            difference = np.empty_like(result.reconstruction)
            # In float64 inside, a buffer at a time: int32 and more do not fit float32.
            np.subtract(volume, result.reconstruction, out=difference, dtype=np.float64, casting="same_kind")
            write_nifti(residual, difference, source.grid, like=source)
    if json_:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        print_summary(figures, outputs)


@app.command(rich_help_panel=GAUSSIANS)
def sample(
    model: GaussianFile,
    out: Annotated[Path, typer.Option(metavar="UP.nii.gz", help="Output file of the sampled volume, float32.")],
    scale: Annotated[
        str, typer.Option(metavar="S|Z,Y,X", help="Factor on the number of voxels along each axis.")
    ] = "1",
    like: Annotated[
        Path | None, typer.Option(metavar="OTHER.nii.gz", help="Image with the voxels to sample at.")
    ] = None,
) -> None:
    """Sample Gaussians at any resolution, or at the voxels of another image of the same world."""
    if like is not None and scale != "1":
        raise InputError("Give --scale or --like, not both.")
    check_outputs([model] if like is None else [model, like], out=(out, IMAGE_SUFFIXES))
    from ..gaussians import GaussianVolume
    from ..io.nifti import read_nifti, write_nifti
    from ..memory import require_memory
    from ..units import are_same_units

    gaussians = GaussianVolume.load(model)
    other = None if like is None else read_nifti(like)
    grid = other.grid if other is not None else gaussians.grid.resampled(parse_factors(scale, gaussians.ndim))
    if other is not None and not are_same_units(grid.units, gaussians.grid.units):
        raise InputError(
            f"{like} measures in {grid.units[0]}, the world of the Gaussians in {gaussians.grid.units[0]}."
        )
    shape = " x ".join(map(str, grid.shape))
    require_memory(math.prod(grid.shape) * _BYTES_PER_SAMPLE, f"Sampling {shape} voxels takes", "ask for fewer voxels")
    write_nifti(out, gaussians.sample(grid), grid, like=other)
    print(f"{out}: {shape} voxels, {file_size(out.stat().st_size)}")


@app.command(rich_help_panel=GAUSSIANS)
@with_settings(gaussians=1000, time_limit=20.0, iterations=None, solver="gauss-newton", seed=0, device="auto")
def ablate(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Volume, .nii or .nii.gz.")],
    study: Annotated[Study, typer.Option(help="Setting to vary.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="STEM", help="Stem of the output files STEM.csv, STEM.md and STEM.png (default: ablation-STUDY)."
        ),
    ] = None,
    time_point: Annotated[int | None, typer.Option(help="Time point of a 4D image, from 0.")] = None,
    **settings: Any,
) -> None:
    """Fit a volume in several ways and compare: one table (CSV, Markdown) and a plot.

    All settings, such as the time limit, apply to each case. Ctrl-C ends the study and keeps the finished cases.
    """
    FitSettings(**settings)
    stem = out or Path(f"ablation-{study}")
    table, page, picture = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".csv", ".md", ".png"))
    files = check_outputs([image], out=(table, (".csv",)), page=(page, (".md",)), plot=(picture, (".png",)))
    from .. import ablation
    from ..io.nifti import read_nifti

    source = read_nifti(image)
    volume = select_volume(source, image, time_point)
    with StopSignal() as stop:
        steps = ablation.ablate_steps(volume, study, grid=source.grid, budget=Budget(stop=stop), **settings)
        results = run_steps(steps, stop)
    if not results:
        print_message("Stopped before the first case was finished; nothing is written.")
        return
    table.write_text(ablation.to_csv(results), encoding="utf-8")
    page.write_text(ablation.to_markdown(results), encoding="utf-8")
    ablation.plot(results, f"{image.name}: {study}").savefig(picture, dpi=120)
    print(ablation.to_markdown(results))
    print_files(files)


@app.command(rich_help_panel=GAUSSIANS)
def convert(
    model: GaussianFile,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Output file; its suffix decides the format: .gsv, .safetensors, or .ply."),
    ],
) -> None:
    """Convert a file of Gaussians to another format.

    .gsv is small and quantised, .safetensors is lossless, .ply is for viewers of 3D Gaussian splats: they blend by
    opacity, and cannot show negative Gaussians as such.
    """
    check_outputs([model], out=(out, (*GAUSSIAN_SUFFIXES, *EXPORT_SUFFIXES)))
    from ..gaussians import GaussianVolume

    gaussians = GaussianVolume.load(model)
    gaussians.save(out)
    print(f"{out}: {len(gaussians):,} Gaussians, {file_size(out.stat().st_size)}")


@app.command(rich_help_panel=GAUSSIANS)
def info(model: GaussianFile, json_: JsonOption = False) -> None:
    """Show the metadata of a file of Gaussians."""
    from ..gaussians import GaussianVolume

    facts = _facts(GaussianVolume.load(model), model.stat().st_size)
    if json_:
        print(json.dumps(facts))
        return
    table = Table("", str(model), box=None, padding=(0, 2, 0, 0))
    for name, fact in facts.items():
        table.add_row(name.replace("_", " "), _readable(fact))
    Console().print(table)


@app.command(rich_help_panel=GETTING_STARTED)
@with_settings(gaussians=2000, time_limit=30.0)
def demo(
    size: Annotated[int, typer.Option(help="Number of voxels along each axis of the synthetic volume.")] = 96,
    png: Annotated[Path | None, typer.Option(metavar="PATH", help="Output file of a picture.")] = None,
    window: Annotated[bool, typer.Option("--window/--no-window", help="Open napari if there is a display.")] = True,
    **settings: Any,
) -> None:
    """Fit Gaussians to a synthetic CT volume and show them in napari, or in gsvolume-demo.png without a display."""
    from ..plugin.demo import has_display, save_picture, show_in_napari

    window = window and has_display()
    picture = png if window or png is not None else Path("gsvolume-demo.png")
    pictures = check_outputs([], png=(picture, (".png",)))
    from ..fitting import fit_steps
    from ..phantoms import anatomical_phantom

    volume, grid = anatomical_phantom(size)
    with StopSignal() as stop:
        result = run_steps(_announced(fit_steps(volume, grid=grid, budget=Budget(stop=stop), **settings)), stop)
    for path in pictures:
        save_picture(path, volume, grid, result)
    print_summary(result.report(), pictures)
    if window:
        show_in_napari(volume, grid, result)


@app.command(rich_help_panel=GETTING_STARTED)
def devices() -> None:
    """List compute devices (and why a GPU cannot be used)."""
    from ..devices import devices as listed
    from ..devices import gpu_problem, gsplat_problem

    for name in listed().values():
        print(name)
    for what, problem in (("GPU", gpu_problem()), ("gsplat", gsplat_problem())):
        print(f"{what}: {problem or 'can be used.'}")


def _announced(steps: Generator[FitStep, None, FitResult], quiet: bool = False) -> Generator[FitStep, None, FitResult]:
    """Print the notes of a fit before its first step, and pass its steps on."""
    first = next(steps)
    for note in () if quiet else first.notes:
        print_message(note)
    yield first
    return (yield from steps)


def _facts(model: GaussianVolume, n_bytes: int) -> dict[str, Any]:
    """Return the output of `info`, ready for JSON."""
    import numpy as np

    def percentiles(W: NDArray[np.float64]) -> dict[str, float]:
        sigmas = 1 / np.linalg.svd(W, compute_uv=False)
        return {f"p{q}": float(np.percentile(sigmas, q)) for q in (0, 5, 50, 95, 100)} if len(W) else {}

    W, weights, grid = model.factors.double().numpy(), model.weights.numpy(), model.grid
    return {
        "n_gaussians": len(model),
        "shape": list(grid.shape),
        "voxel_size": grid.voxel_size.tolist(),
        "units": list(grid.units),
        "background": model.background,
        "weights": [float(weights.min()), float(weights.max())] if len(model) else [],
        "scales_voxels": percentiles(W),
        "scales_world": percentiles(np.linalg.solve(grid.affine[:-1, :-1].T, W)),  # y = W^T A^-1 d for d in the world
        "bytes": n_bytes,
        "bytes_per_gaussian": n_bytes / max(len(model), 1),
        "ratio": 4 * math.prod(grid.shape) / n_bytes,
        **model.metadata,
    }


def _readable(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_readable(value)}" for name, value in fact.items())
    if isinstance(fact, list):
        return ", ".join(_readable(value) for value in fact)
    return f"{fact:.5g}" if isinstance(fact, float) else "-" if fact is None else str(fact)
