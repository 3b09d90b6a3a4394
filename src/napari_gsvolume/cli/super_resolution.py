"""The shell's commands about slices as matrices: ``gsvolume svd``, ``superresolve`` and ``train-sr``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal as file_size

from ..errors import InputError
from ..super_resolution.settings import SuperResolveSettings, TrainSRSettings
from .app import app
from .files import check_outputs, print_files, select_volume, write_report
from .options import IMAGE_SUFFIXES, REPORT_SUFFIXES, TimePoint, with_settings
from .progress import StopSignal, progress_bar

if TYPE_CHECKING:
    from ..explain.tracking.tracker import Tracker
    from ..super_resolution.training import SRTraining, TrainedSR

_BYTES_A_VOXEL = 20  # at the peak of a projection: five float32 volumes of the finer size
_SR_MODEL = (".safetensors",)


@app.command()
@with_settings(SuperResolveSettings)
def superresolve(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume or image, .nii or .nii.gz.")],
    out: Annotated[Path, typer.Option(metavar="HR.nii.gz", help="The finer one to write, float32.")],
    model: Annotated[
        Path | None, typer.Option(metavar="SR.safetensors", help="For the schemes a and b, as train-sr writes it.")
    ] = None,
    time_point: TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Make a volume finer, in its slices or between them, over the same extent of the world."""
    asked = SuperResolveSettings(**settings)
    if (model is None) != (asked.scheme == "spline"):
        raise InputError(
            "A spline needs no --model; leave it out, or choose --scheme a or b."
            if model is not None
            else f"--scheme {asked.scheme} needs a --model, which gsvolume train-sr makes."
        )
    check_outputs([image] if model is None else [image, model], out=(out, IMAGE_SUFFIXES))
    import numpy as np

    from ..io.nifti import read_nifti, write_nifti
    from ..memory import require
    from ..super_resolution.bspline import factors_of, spline
    from ..super_resolution.degradation import Degradation

    trained = None
    if model is not None:
        from ..super_resolution.model import SRModel
        from ..super_resolution.model import superresolve as by_model

        trained = SRModel.load(model)
        trained.check(asked)
    source = read_nifti(image)
    volume = select_volume(source, image, time_point)
    factors = factors_of(asked.factor, "zyx".index(asked.axis), asked.axes, volume.ndim)
    grid = source.grid.resampled(factors)
    shape = " x ".join(map(str, grid.shape))
    require(grid.size * _BYTES_A_VOXEL, f"Making {shape} voxels takes", "use a smaller --factor or a smaller volume")
    volume = volume.astype(np.float32)
    degradation = Degradation.of_low(volume.shape, factors, asked.degradation, asked.fwhm)
    if trained is None:
        finer = spline(volume, factors, onto=degradation if asked.project else None)
    else:
        with progress_bar(quiet) as show:
            finer = by_model(
                volume, trained, "zyx".index(asked.axis), asked.axes, project=asked.project, ensemble=asked.ensemble,
                tell=lambda part: show("Making slices finer", part, ""),
            )  # fmt: skip
    write_nifti(out, finer, grid, like=source)
    if quiet:
        return
    misfit = float(np.abs(degradation.degrade(finer) - volume).max()) / max(float(np.abs(volume).max()), 1e-30)
    print(f"Degraded again ({asked.degradation}) it differs from the input by {misfit:.1e} of the largest intensity.")
    print(f"{out}: {shape} voxels, {file_size(out.stat().st_size)}")


@app.command()
@with_settings(TrainSRSettings)
def train_sr(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IN.nii.gz|FOLDER [MORE...]", help="Volumes to learn from, or folders of .nii(.gz)."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="SR.safetensors", help="The model to write.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Write figures and history.")] = None,
    track: Annotated[
        Path | None,
        typer.Option(metavar="T.csv", help="Follow the network's layers; write how their components change."),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the model each time it is judged, for gsvolume track.")
    ] = None,
    time_point: TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Train a super-resolution on the slices of volumes: they are degraded, and what they lack is learnt.

    Ctrl-C ends it and keeps the best model so far: the files are written. A second one aborts.
    """
    asked = TrainSRSettings(**settings)
    images = _in_folders(images)
    files = check_outputs(images, out=(out, _SR_MODEL), report=(report, REPORT_SUFFIXES), track=(track, (".csv",)))
    from ..io.nifti import read_nifti
    from ..super_resolution.data import checked_volume
    from ..super_resolution.training import SRTraining

    volumes, sizes = [], []
    for path in images:
        source = read_nifti(path)
        volume = select_volume(source, path, time_point if source.data.ndim > 3 else None)
        if volume.ndim != 3:
            raise InputError(f"{path} is an image of two axes; a model is trained on volumes.")
        try:
            volumes.append(checked_volume(volume))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        sizes.append(source.grid.voxel_size.tolist())
    training = SRTraining(volumes, sizes, **asked.model_dump())
    tracker = None
    if track is not None:
        from ..explain.tracking.tracker import Tracker

        tracker = Tracker(training.scheme, None, [held.low for held in training.planes.held_out])
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
    with StopSignal() as stop:
        result = _trained(training, stop, quiet, tracker, checkpoints)
        if out is not None:
            result.model.save(out)
        if track is not None and tracker is not None:
            tracker.to_csv(track)
        if report is not None:
            write_report(report, result.report())
    if quiet:
        return
    print(f"{result.message} {result.history[-1].iteration} iterations, {result.seconds:.1f} s")
    print("PSNR of the slices held out, dB:")
    for name, psnr in result.table.items():
        print(f"  {name}: {psnr:.2f}")
    for finding in [] if tracker is None else tracker.findings():
        print(finding)
    print_files(files)


def _in_folders(paths: list[Path]) -> list[Path]:
    """Return files as they are, and the images in folders, sorted by name, in their place."""
    images: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(
                each for each in path.iterdir() if each.name.lower().endswith(IMAGE_SUFFIXES) and each.is_file()
            )
            if not found:
                raise InputError(f"{path} holds no .nii or .nii.gz; name files, or another folder.")
        images += found
    return images


def _trained(
    training: SRTraining, stop: StopSignal, quiet: bool, tracker: Tracker | None, checkpoints: Path | None
) -> TrainedSR:
    from ..super_resolution.model import SRModel

    steps, written = training.steps(stop), 0
    if tracker is not None:
        from ..explain.tracking.checkpoints import track_training_steps

        steps = track_training_steps(steps, tracker)  # type: ignore[arg-type]
    with progress_bar(quiet) as show:
        for step in steps:
            stop.begun = True
            show(step.message, step.progress, f"{step.best_db:.2f} dB  {step.seconds:.0f} s")
            if checkpoints is not None and len(step.history) > written:
                written, last = len(step.history), step.history[-1]
                now = SRModel(training.scheme, {"psnr_db": {"model": last.psnr_db}, "iterations": last.iteration})
                now.save(checkpoints / f"iteration-{last.iteration}.safetensors")
        return training.result(step)
