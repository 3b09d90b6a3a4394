"""The shell commands that recover a volume: ``gsvolume reconstruct`` and ``gsvolume from-slices``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..reconstruction.settings import RecoverSettings
from .gaussians import (
    _FIGURES,
    _IMAGE,
    _MODEL,
    _bar,
    _check_outputs,
    _list,
    _one_volume,
    _Stop,
    _with_settings,
    _write_report,
    app,
)

if TYPE_CHECKING:
    from ..io.nifti import NiftiImage
    from ..reconstruction.reconstruct import Recovered, Recovery

_Out = Annotated[Path | None, typer.Option(metavar="M", help="Write the Gaussians, .gsv or .safetensors.")]
_Reconstruction = Annotated[Path | None, typer.Option(metavar="R.nii.gz", help="Write the volume recovered.")]
_Voxels = Annotated[
    Path | None, typer.Option(metavar="V.nii.gz", help="Write the voxels that the Gaussians were fitted to.")
]
_Report = Annotated[Path | None, typer.Option(metavar="REP.json", help="Write figures and history.")]


@dataclass(frozen=True)
class _Outputs:
    """The files to write."""

    out: Path | None
    reconstruction: Path | None
    voxels: Path | None
    report: Path | None

    def checked(self, inputs: list[Path]) -> list[Path]:
        """Return those that are wanted; raise now if one could not be written."""
        return _check_outputs(
            inputs,
            out=(self.out, _MODEL), reconstruction=(self.reconstruction, _IMAGE), voxels=(self.voxels, _IMAGE),
            report=(self.report, _FIGURES),
        )  # fmt: skip


@app.command()
@_with_settings(RecoverSettings)
def reconstruct(
    projections: Annotated[
        Path, typer.Argument(metavar="P.nii.gz", help="The stack of projections, axes (u, v, view).")
    ],
    geometry: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Its geometry; P.json if not given.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="IN.nii.gz", help="Recover at this image's voxels, and compare with it (PSNR, SSIM)."),
    ] = None,
    i0: Annotated[
        float | None, typer.Option(help="The stack holds raw intensities, of so many counts without a volume.")
    ] = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Recover a volume, as Gaussians, from few X-ray projections.

    Ctrl-C ends it and keeps what it has reached: the files are written. A second one aborts.
    """
    asked = RecoverSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    files = outputs.checked([p for p in (projections, geometry, like) if p is not None])
    from ..reconstruction.problem import Problem, grid_of_scan
    from ..tomography.projections import attenuation, read_projections

    stack = read_projections(projections, geometry)
    image = None if like is None else _read(like)
    images = stack.images if i0 is None else attenuation(stack.images, i0)
    grid = grid_of_scan(stack.scan) if image is None else image.grid
    problem = Problem(grid, (images, stack.scan), truth=None if image is None else image.data)
    _finish(problem.recovery(asked), image, outputs, files, quiet)


@app.command()
@_with_settings(RecoverSettings)
def from_slices(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume whose slices are known.")],
    keep_every: Annotated[
        int, typer.Option(min=1, help="Only every so many-th slice is known; the others are compared with.")
    ] = 1,
    axis: Annotated[Literal["z", "y", "x"], typer.Option(help="Along which the slices are stacked.")] = "z",
    thickness: Annotated[float, typer.Option(min=0, help="Of the slices, full width at half maximum, mm.")] = 0.0,
    also: Annotated[
        list[Path] | None,
        typer.Option(metavar="STACK.nii.gz", help="Another stack of the same volume, of any orientation; repeatable."),
    ] = None,
    also_thickness: Annotated[
        list[float] | None, typer.Option(min=0, help="Of its slices, in the order of --also; 0 if none is given.")
    ] = None,
    projections: Annotated[
        Path | None, typer.Option(metavar="P.nii.gz", help="X-rays around the middle of the volume, as well.")
    ] = None,
    geometry: Annotated[
        Path | None, typer.Option(metavar="GEO.json", help="Of the projections; P.json if not given.")
    ] = None,
    out: _Out = None,
    reconstruction: _Reconstruction = None,
    voxels: _Voxels = None,
    report: _Report = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Recover a volume, as Gaussians, from some of its slices.

    With --keep-every 1 all slices are known, and the volume is recovered with as many slices as make its voxels as long
    along the axis as across.
    """
    asked = RecoverSettings(**settings)
    outputs = _Outputs(out, reconstruction, voxels, report)
    others = also or []
    thicknesses = also_thickness or [0.0] * len(others)
    if len(thicknesses) != len(others):
        raise ValueError(f"There are {len(others)} --also and {len(thicknesses)} --also-thickness; give as many.")
    if geometry is not None and projections is None:
        raise ValueError("--geometry is that of --projections; give both, or neither.")
    files = outputs.checked([p for p in (image, *others, projections, geometry) if p is not None])
    import numpy as np

    from ..reconstruction.problem import Problem, Stack, isotropic, longest_step
    from ..reconstruction.slice_metrics import cubic, missing_psnr
    from ..tomography.projections import read_projections

    source, along = _read(image), "zyx".index(axis)
    known = np.arange(source.data.shape[along]) % keep_every == 0
    stacks = [Stack(source.data, source.grid, along, keep_every, thickness)]
    for path, thick in zip(others, thicknesses, strict=True):
        other = _read(path)
        stacks.append(Stack(other.data, other.grid, longest_step(other.grid), thickness=thick))
    stack = None if projections is None else read_projections(projections, geometry)
    problem = Problem(
        isotropic(source.grid, along) if keep_every == 1 else source.grid,
        None if stack is None else (stack.images, stack.scan),
        stacks,
        truth=None if keep_every == 1 else source.data,
    )

    def missing(result: Recovered) -> dict[str, float]:
        if known.all():
            return {}
        return {
            "psnr_missing_db": missing_psnr(result.reconstruction, source.data, known, along),
            "psnr_missing_cubic_db": missing_psnr(cubic(source.data, known, along), source.data, known, along),
        }

    _finish(problem.recovery(asked), source, outputs, files, quiet, missing)


def _read(path: Path) -> NiftiImage:
    from ..io.nifti import read_nifti

    image = read_nifti(path)
    volume = _one_volume(image, path, None)
    if volume.ndim != 3:
        raise ValueError(f"{path} is an image of two axes; a volume is needed.")
    return image


def _finish(
    recovery: Recovery,
    source: NiftiImage | None,
    outputs: _Outputs,
    files: list[Path],
    quiet: bool,
    more: Callable[[Recovered], dict[str, float]] = lambda result: {},
) -> None:
    """Run a recovery behind a progress bar, write its files, and say what it reached."""
    from ..io.nifti import write_nifti

    with _Stop() as stop:
        result = _run(recovery, stop, quiet)
        figures = result.report() | (others := more(result))
        if outputs.out is not None:
            result.gaussians.save(outputs.out)
        same = source is not None and source.grid.shape == recovery.grid.shape
        for path, volume in ((outputs.reconstruction, result.reconstruction), (outputs.voxels, result.voxels)):
            if path is not None:
                write_nifti(path, volume, recovery.grid, like=source if same else None)
        if outputs.report is not None:
            _write_report(outputs.report, figures)
    if quiet:
        return
    print(result.message)
    against = "" if result.psnr_db is None else f"PSNR {result.psnr_db:.2f} dB, "
    print(f"{against}misfit {result.misfit:.3g}, {len(result.gaussians):,} Gaussians, {result.seconds:.1f} s")
    if others:
        print(
            f"Missing slices: {others['psnr_missing_db']:.2f} dB, "
            f"a cubic spline has {others['psnr_missing_cubic_db']:.2f} dB"
        )
    _list(files)


def _run(recovery: Recovery, stop: _Stop, quiet: bool) -> Recovered:
    with _bar(quiet) as show:
        for step in recovery.steps(stop):
            stop.begun = True
            now = step.now
            psnr = "" if now.psnr_db is None else f"{now.psnr_db:.2f} dB  "
            show(step.message, step.progress, f"{now.n_gaussians:,} Gaussians  {psnr}{now.seconds:.0f} s")
        return recovery.result(step)
