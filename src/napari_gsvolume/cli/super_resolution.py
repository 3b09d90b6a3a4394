"""The shell's commands about slices as matrices: ``gsvolume svd``, ``superresolve`` and ``train-sr``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal as file_size

from ..super_resolution.settings import Axis, Of, SuperResolveSettings
from ..super_resolution.training_settings import TrainSRSettings
from .gaussians import (
    _FIGURES,
    _IMAGE,
    _bar,
    _check_outputs,
    _Json,
    _list,
    _one_volume,
    _Stop,
    _with_settings,
    _write_report,
    app,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..explain.tracking.tracker import Tracker
    from ..super_resolution.training import SRTraining, TrainedSR

_TimePoint = Annotated[int | None, typer.Option(help="Which volume of a 4D image, from 0.")]
_LISTED = 10  # singular values in the printed list
_BYTES_A_VOXEL = 20  # at the peak of a projection: five float32 volumes of the finer size
_SR_MODEL = (".safetensors",)


@app.command()
def svd(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume or image, .nii or .nii.gz.")],
    axis: Annotated[Axis, typer.Option(help="Along which the slices are stacked.")] = "z",
    of: Annotated[
        Of, typer.Option(help="One slice, all of them, or the matrix whose rows are the slices (an unfolding).")
    ] = "slice",
    slice_: Annotated[
        int | None, typer.Option("--slice", metavar="K", help="Which, from 0; the middle one else.")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="What the best image of this rank has.")] = None,
    time_point: _TimePoint = None,
    json_: _Json = False,
) -> None:
    """Print singular values, their energy and ranks, and the optimal threshold against noise."""
    if slice_ is not None and of != "slice":
        raise ValueError(f"--slice {slice_} is for --of slice; leave one of them out.")
    import numpy as np

    from ..io.nifti import read_nifti
    from ..svd import decomposition

    volume = _one_volume(read_nifti(image), image, time_point)
    if volume.ndim == 2:
        if axis != "z":
            raise ValueError(f"{image} is an image of two axes, one slice along z; --axis {axis} has no meaning.")
        volume = volume[None]
    along = "zyx".index(axis)
    count = volume.shape[along]
    if of == "slices":
        slices = []
        with _bar(json_) as show:
            for values in decomposition.each_spectrum(volume, along):
                slices.append(values)
                show("Decomposing", len(slices) / count, f"{len(slices)} of {count}")
        facts = _facts_of_slices(np.stack(slices), volume, along, rank)
    else:
        k = count // 2 if slice_ is None else slice_
        if not 0 <= k < count:
            raise ValueError(f"--slice {slice_}: there are the slices 0 to {count - 1} along {axis}.")
        matrix = volume.take(k, along) if of == "slice" else decomposition.unfolding(volume, along)
        facts = ({"slice": k} if of == "slice" else {}) | _facts_of_matrix(matrix, rank)
    facts = {"of": of, "axis": axis} | facts
    if json_:
        print(json.dumps(facts, allow_nan=False))
    else:
        _tell(facts)


@app.command()
@_with_settings(SuperResolveSettings)
def superresolve(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume or image, .nii or .nii.gz.")],
    out: Annotated[Path, typer.Option(metavar="HR.nii.gz", help="The finer one to write, float32.")],
    model: Annotated[
        Path | None, typer.Option(metavar="SR.safetensors", help="For the schemes a and b, as train-sr writes it.")
    ] = None,
    time_point: _TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Make a volume finer, in its slices or between them, over the same extent of the world."""
    asked = SuperResolveSettings(**settings)
    if (model is None) != (asked.scheme == "spline"):
        raise ValueError(
            "A spline needs no --model; leave it out, or choose --scheme a or b."
            if model is not None
            else f"--scheme {asked.scheme} needs a --model, which gsvolume train-sr makes."
        )
    _check_outputs([image] if model is None else [image, model], out=(out, _IMAGE))
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
    volume = _one_volume(source, image, time_point)
    factors = factors_of(asked.factor, "zyx".index(asked.axis), asked.axes, volume.ndim)
    grid = source.grid.resampled(factors)
    shape = " x ".join(map(str, grid.shape))
    require(grid.size * _BYTES_A_VOXEL, f"Making {shape} voxels takes", "use a smaller --factor or a smaller volume")
    volume = volume.astype(np.float32)
    degradation = Degradation.of_low(volume.shape, factors, asked.degradation, asked.fwhm)
    if trained is None:
        finer = spline(volume, factors, onto=degradation if asked.project else None)
    else:
        with _bar(quiet) as show:
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
@_with_settings(TrainSRSettings)
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
    time_point: _TimePoint = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    **settings: Any,
) -> None:
    """Train a super-resolution on the slices of volumes: they are degraded, and what they lack is learnt.

    Ctrl-C ends it and keeps the best model so far: the files are written. A second one aborts.
    """
    asked = TrainSRSettings(**settings)
    images = _in_folders(images)
    files = _check_outputs(images, out=(out, _SR_MODEL), report=(report, _FIGURES), track=(track, (".csv",)))
    from ..io.nifti import read_nifti
    from ..super_resolution.data import checked_volume
    from ..super_resolution.training import SRTraining

    volumes, sizes = [], []
    for path in images:
        source = read_nifti(path)
        volume = _one_volume(source, path, time_point if source.data.ndim > 3 else None)
        if volume.ndim != 3:
            raise ValueError(f"{path} is an image of two axes; a model is trained on volumes.")
        try:
            volumes.append(checked_volume(volume))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        sizes.append(source.grid.voxel_size.tolist())
    training = SRTraining(volumes, sizes, **asked.model_dump())
    tracker = None
    if track is not None:
        from ..explain.tracking.tracker import Tracker

        tracker = Tracker(training.scheme, None, [held.low for held in training.planes.held_out])
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
    with _Stop() as stop:
        result = _trained(training, stop, quiet, tracker, checkpoints)
        if out is not None:
            result.model.save(out)
        if track is not None and tracker is not None:
            tracker.to_csv(track)
        if report is not None:
            _write_report(report, result.report())
    if quiet:
        return
    print(f"{result.message} {result.history[-1].iteration} iterations, {result.seconds:.1f} s")
    print("PSNR of the slices held out, dB:")
    for name, psnr in result.table.items():
        print(f"  {name}: {psnr:.2f}")
    for finding in [] if tracker is None else tracker.findings():
        print(finding)
    _list(files)


def _in_folders(paths: list[Path]) -> list[Path]:
    """Return files as they are, and the images in folders, sorted by name, in their place."""
    images: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(each for each in path.iterdir() if each.name.lower().endswith(_IMAGE) and each.is_file())
            if not found:
                raise ValueError(f"{path} holds no .nii or .nii.gz; name files, or another folder.")
        images += found
    return images


def _trained(
    training: SRTraining, stop: _Stop, quiet: bool, tracker: Tracker | None, checkpoints: Path | None
) -> TrainedSR:
    from ..super_resolution.model import SRModel

    steps, written = training.steps(stop), 0
    if tracker is not None:
        from ..explain.tracking.checkpoints import tracked

        steps = tracked(steps, tracker)
    with _bar(quiet) as show:
        for step in steps:
            stop.begun = True
            show(step.message, step.progress, f"{step.best_db:.2f} dB  {step.seconds:.0f} s")
            if checkpoints is not None and len(step.history) > written:
                written, last = len(step.history), step.history[-1]
                now = SRModel(training.scheme, {"psnr_db": {"model": last.psnr_db}, "iterations": last.iteration})
                now.save(checkpoints / f"iteration-{last.iteration}.safetensors")
        return training.result(step)


def _facts_of_matrix(matrix: NDArray[Any], rank: int | None) -> dict[str, Any]:
    import numpy as np

    from ..svd import decomposition

    array = decomposition.checked_slice(matrix)
    values = np.linalg.svd(array, compute_uv=False)
    energy, ceiling = (
        decomposition.cumulative_energy(values),
        decomposition.best_psnr_db(values, array.shape, float(np.ptp(array))),
    )
    threshold = float(decomposition.optimal_threshold(values, array.shape))
    facts: dict[str, Any] = {
        "shape": list(array.shape),
        "values": values.tolist(),
        "energy": energy.tolist(),
        "effective_rank": float(decomposition.effective_rank(values)),
        "stable_rank": float(decomposition.stable_rank(values)),
        "threshold": threshold,
        "rank_above_threshold": int((values > threshold).sum()),
        "best_psnr_db": ceiling.tolist(),
    }
    if rank is not None:
        _check_rank(rank, len(values))
        facts["at_rank"] = {"rank": rank, "energy": float(energy[rank - 1]), "best_psnr_db": float(ceiling[rank - 1])}
    return facts


def _facts_of_slices(values: NDArray[Any], volume: NDArray[Any], along: int, rank: int | None) -> dict[str, Any]:
    from ..svd import decomposition

    shape = [n for k, n in enumerate(volume.shape) if k != along]
    thresholds = decomposition.optimal_threshold(values, (shape[0], shape[1]))
    facts: dict[str, Any] = {
        "shape": shape,
        "count": len(values),
        "values": values.tolist(),
        "effective_rank": decomposition.effective_rank(values).tolist(),
        "stable_rank": decomposition.stable_rank(values).tolist(),
        "threshold": thresholds.tolist(),
        "rank_above_threshold": (values > thresholds[:, None]).sum(1).tolist(),
    }
    if rank is not None:
        _check_rank(rank, values.shape[1])
        facts["at_rank"] = {"rank": rank, "energy": decomposition.cumulative_energy(values)[:, rank - 1].tolist()}
    return facts


def _check_rank(rank: int, largest: int) -> None:
    if not 1 <= rank <= largest:
        raise ValueError(f"--rank {rank}: the rank is 1 to {largest} here.")


def _tell(facts: dict[str, Any]) -> None:
    """Print the figures of one matrix; of many, the median slice and the extremes."""
    shape = " x ".join(map(str, facts["shape"]))
    if "count" in facts:
        print(f"{facts['count']} slices along {facts['axis']}, {shape}: median (least to most)")
        figures = {name: facts[name] for name in ("effective_rank", "stable_rank", "threshold", "rank_above_threshold")}
        if "at_rank" in facts:
            figures[f"energy of rank {facts['at_rank']['rank']}"] = facts["at_rank"]["energy"]
        for name, numbers in figures.items():
            ordered = sorted(numbers)
            low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
            print(f"{name.replace('_', ' ')}: {middle:.5g} ({low:.5g} to {high:.5g})")
        return
    which = f"Slice {facts['slice']} along" if "slice" in facts else "Unfolding along"
    print(f"{which} {facts['axis']}, {shape}")
    values, energy = facts["values"], facts["energy"]
    print(f"singular values: {', '.join(f'{s:.5g}' for s in values[:_LISTED])}{' ...' * (len(values) > _LISTED)}")
    ranks = ", ".join(f"{100 * part:g} % in {1 + _first(energy, part)}" for part in (0.9, 0.99, 0.999))
    print(f"energy: {ranks} of {len(values)} modes")
    print(f"effective rank: {facts['effective_rank']:.2f}")
    print(f"stable rank: {facts['stable_rank']:.2f}")
    print(f"threshold (Gavish-Donoho): {facts['threshold']:.5g}, {facts['rank_above_threshold']} modes above it")
    if "at_rank" in facts:
        at = facts["at_rank"]
        print(f"rank {at['rank']}: {100 * at['energy']:.4g} % of the energy, PSNR at most {at['best_psnr_db']:.2f} dB")


def _first(energy: list[float], part: float) -> int:
    return next(k for k, reached in enumerate([*energy, math.inf]) if reached >= part)
