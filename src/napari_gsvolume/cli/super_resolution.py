"""Commands of super-resolution: ``gsvolume superresolve`` and ``gsvolume train-sr``."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal as file_size

from ..errors import InputError
from ..progress import Budget, mapped
from ..super_resolution.settings import SuperResolveSettings, TrainSRSettings
from .app import app
from .files import check_outputs, print_files, select_volume, write_report
from .options import IMAGE_SUFFIXES, REPORT_SUFFIXES, ErrorsOnlyOption, TimePoint, with_settings
from .progress import StopSignal, run_steps
from .sections import SUPER_RESOLUTION

if TYPE_CHECKING:
    from ..super_resolution.training import SRTrainingStep, TrainedSR

_BYTES_PER_VOXEL = 20  # at the peak of a projection: five float32 volumes of the super-resolved size
_MODEL_SUFFIXES = (".safetensors",)


@app.command(rich_help_panel=SUPER_RESOLUTION)
@with_settings(SuperResolveSettings)
def superresolve(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="Volume or image to super-resolve, .nii(.gz).")],
    out: Annotated[Path, typer.Option(metavar="HR.nii.gz", help="Output: super-resolved volume, float32.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="SR.safetensors", help="Trained model, an output of train-sr, for the other schemes than spline."
        ),
    ] = None,
    time_point: TimePoint = None,
    quiet: ErrorsOnlyOption = False,
    **settings: Any,
) -> None:
    """Super-resolve a volume, in its slices or across them, over the same extent of the world."""
    s = SuperResolveSettings(**settings)
    if (model is None) != (s.scheme == "spline"):
        raise InputError(
            "A spline needs no --model; omit it, or choose --scheme singular-vectors or residual."
            if model is not None
            else f"--scheme {s.scheme} needs a --model, which gsvolume train-sr writes."
        )
    check_outputs([image] if model is None else [image, model], out=(out, IMAGE_SUFFIXES))
    from ..io.nifti import read_nifti, write_nifti
    from ..memory import require_memory
    from ..super_resolution.bspline import upsampling_factors
    from ..super_resolution.model import SRModel
    from ..super_resolution.upsampling import superresolve_steps

    trained = None
    if model is not None:
        trained = SRModel.load(model)
        trained.check(s)
    source = read_nifti(image)
    volume = select_volume(source, image, time_point)
    factors = upsampling_factors(s.factor, "zyx".index(s.slice_axis), s.upsample_axes, volume.ndim)
    grid = source.grid.resampled(factors)
    shape = " x ".join(map(str, grid.shape))
    needed = grid.size * _BYTES_PER_VOXEL
    require_memory(needed, f"A result of {shape} voxels takes", "use a smaller --factor or volume")
    # Ctrl-C aborts: there is no result before the end.
    result = run_steps(superresolve_steps(volume, trained, **s.model_dump()), StopSignal(), quiet)
    assert result is not None
    write_nifti(out, result.volume, grid, like=source)
    if quiet:
        return
    print(
        f"Data consistency ({s.degradation}): max deviation {result.deviation:.1e} of the degraded result from the "
        "input, relative to the largest intensity."
    )
    print(f"{out}: {shape} voxels, {file_size(out.stat().st_size)}")


@app.command(rich_help_panel=SUPER_RESOLUTION)
@with_settings(TrainSRSettings)
def train_sr(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IN.nii.gz|FOLDER [MORE...]", help="Training volumes, or folders of .nii(.gz) files."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="SR.safetensors", help="Output: trained model.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Output: figures and training history.")] = None,
    track: Annotated[
        Path | None,
        typer.Option(metavar="T.csv", help="Output: table of the components of each layer during training."),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save a checkpoint to this folder at every validation, for gsvolume track."),
    ] = None,
    time_point: TimePoint = None,
    quiet: ErrorsOnlyOption = False,
    **settings: Any,
) -> None:
    """Train a super-resolution model on slices that are degraded synthetically.

    Ctrl-C ends the training and keeps the best model so far: the files are written. A second Ctrl-C aborts. Also if an
    iteration fails, the best model so far is written.
    """
    s = TrainSRSettings(**settings)
    images = _expand_folders(images)
    files = check_outputs(
        images, out=(out, _MODEL_SUFFIXES), report=(report, REPORT_SUFFIXES), track=(track, (".csv",))
    )
    from ..super_resolution.training import TrainingFailedError, train_superresolution_steps

    volumes, voxel_sizes = _load_volumes(images, time_point)
    with StopSignal() as stop:
        steps = train_superresolution_steps(volumes, voxel_sizes, budget=Budget(stop=stop), **s.model_dump())
        tracker = None
        if track is not None:
            from ..explain.tracking.checkpoints import track_training_steps
            from ..explain.tracking.tracker import Tracker

            first = next(steps)
            tracker = Tracker(first.scheme, None, [validation.low for validation in first.validation_sets])
            steps = track_training_steps(steps, tracker)
        if checkpoints is not None:
            checkpoints.mkdir(parents=True, exist_ok=True)
            steps = _save_checkpoints(steps, checkpoints)
        failure = None
        try:
            result = run_steps(steps, stop, quiet)
        except TrainingFailedError as error:
            result, failure = error.result, error
        if out is not None:
            result.model.save(out)
        if track is not None and tracker is not None:
            tracker.to_csv(track)
        if report is not None:
            write_report(report, result.report())
    if failure is not None:
        raise failure
    if quiet:
        return
    print(f"{result.message} {result.history[-1].iteration} iterations, {result.seconds:.1f} s")
    print("PSNR of the validation set, dB:")
    for name, psnr in result.table.items():
        print(f"  {name}: {psnr:.2f}")
    for finding in [] if tracker is None else tracker.findings():
        print(finding)
    print_files(files)


def _expand_folders(paths: list[Path]) -> list[Path]:
    """Return the paths, with each folder replaced by its images, sorted by name."""
    images: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(
                each for each in path.iterdir() if each.name.lower().endswith(IMAGE_SUFFIXES) and each.is_file()
            )
            if not found:
                raise InputError(f"{path} contains no .nii or .nii.gz file; name files, or another folder.")
        images += found
    return images


def _load_volumes(images: list[Path], time_point: int | None) -> tuple[list[Any], list[list[float]]]:
    """Return the training volumes and their voxel sizes."""
    from ..io.nifti import read_nifti
    from ..super_resolution.data import check_training_volume

    volumes, voxel_sizes = [], []
    for path in images:
        source = read_nifti(path)
        volume = select_volume(source, path, time_point if source.data.ndim > 3 else None)
        if volume.ndim != 3:
            raise InputError(f"{path} is an image of two axes; training data are volumes.")
        try:
            volumes.append(check_training_volume(volume))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        voxel_sizes.append(source.grid.voxel_size.tolist())
    return volumes, voxel_sizes


def _save_checkpoints(
    steps: Generator[SRTrainingStep, None, TrainedSR], folder: Path
) -> Generator[SRTrainingStep, None, TrainedSR]:
    """Pass on the steps and the result of a training, and save the model at each validation."""
    from ..super_resolution.model import SRModel

    saved = 0

    def save(step: SRTrainingStep) -> SRTrainingStep:
        nonlocal saved
        if len(step.history) > saved:
            saved, point = len(step.history), step.history[-1]
            metrics = {"psnr_db": {"model": point.psnr_db}, "iterations": point.iteration}
            SRModel(step.scheme, metrics).save(folder / f"iteration-{point.iteration}.safetensors")
        return step

    return mapped(steps, save)
