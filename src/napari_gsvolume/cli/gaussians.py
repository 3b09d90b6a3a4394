"""The shell command ``gsvolume``: what the Python interface does, one command for each call.

torch, numba and nibabel are imported by the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.filesize import decimal as file_size
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..fitting.settings import FitSettings, Study
from ..io.gaussians import EXPORTS, GAUSSIAN_FILES
from ..settings import one_sentence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..ablation import StudyStep
    from ..fitting import FitResult, FitStep
    from ..gaussians import GaussianVolume
    from ..io.nifti import NiftiImage

_EXIT_CODES = (
    "Exit codes: 0 for success, a fit stopped with Ctrl-C included; 2 for wrong options or files that cannot be used; "
    "1 for an unexpected failure (GSVOLUME_DEBUG=1 shows where); 130 for an abort."
)
_MODEL, _IMAGE, _FIGURES = GAUSSIAN_FILES, (".nii", ".nii.gz"), (".json",)
_BYTES_A_SAMPLE = 8  # 4 are measured (the float32); as many again keep the machine usable
# Typer carries a copy of click, or imports it when older; in both this class has no name in Typer's own interface.
_UsageError: Any = typer.BadParameter.__base__

_Command = TypeVar("_Command", bound=Callable[..., None])
_Model = Annotated[Path, typer.Argument(metavar="M", help="Gaussians, .gsv or .safetensors.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]

app = typer.Typer(
    help="Represent volumes as sums of weighted 3D Gaussians.",
    epilog=_EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process if none is given; return the exit code, say errors in one sentence."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        code = typer.main.get_command(app)(args=words, prog_name="gsvolume", standalone_mode=False) or 0
        sentence = "Aborted." if code == 130 else ""  # what Typer makes of KeyboardInterrupt
    except (_UsageError, ValueError, OSError, MemoryError) as error:
        code, sentence = 2, _sentence(error)
    except Exception as error:
        code, sentence = 1, f"Unexpected {type(error).__name__} (GSVOLUME_DEBUG=1 shows where): {_sentence(error)}"
    if sentence:
        _say(sentence)
    return int(code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from .. import __version__

        print(f"napari-gsvolume {__version__}")
        raise typer.Exit


def _with_settings(model: type[BaseModel] = FitSettings, **defaults: Any) -> Callable[[_Command], _Command]:
    """Replace a command's ``**settings`` by options: the named fields of a model with these defaults, or all."""

    def decorate(command: _Command) -> _Command:
        types = get_type_hints(model)  # without the bounds, which the model itself checks
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, field in model.model_fields.items():
            if name in defaults or not defaults:
                option = typer.Option(defaults.get(name, field.default), help=f"{field.description}.")
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(name, kind, default=option, annotation=types[name]))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


@app.command()
@_with_settings()
def fit(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume, .nii or .nii.gz.")],
    out: Annotated[
        Path | None, typer.Option(metavar="M", help="Write the Gaussians: .gsv small, .safetensors without loss.")
    ] = None,
    reconstruction: Annotated[Path | None, typer.Option(metavar="R.nii.gz", help="Write f at every voxel.")] = None,
    residual: Annotated[Path | None, typer.Option(metavar="D.nii.gz", help="Write input - reconstruction.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="REP.json", help="Write figures and history.")] = None,
    time_point: Annotated[int | None, typer.Option(help="Which volume of a 4D image to fit, from 0.")] = None,
    json_: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors, and what --json asks for, only.")] = False,
    **settings: Any,
) -> None:
    """Fit Gaussians to a volume.

    Ctrl-C ends the fit and keeps what it has reached: the files are written. A second one aborts.
    """
    FitSettings(**settings)  # what is wrong with options is said before anything slow begins
    images = {"reconstruction": (reconstruction, _IMAGE), "residual": (residual, _IMAGE)}
    outputs = _check_outputs([image], out=(out, _MODEL), report=(report, _FIGURES), **images)
    import numpy as np

    from ..fitting import fit_steps
    from ..gaussians import GaussianVolume
    from ..io.nifti import read_nifti, write_nifti

    source = read_nifti(image)
    volume = _one_volume(source, image, time_point)
    with _Stop() as stop:
        result = _run(fit_steps(volume, grid=source.grid, stop=stop, **settings), stop, quiet)
        if out is not None:
            result.gaussians.save(out)
            if out.suffix.lower() == ".gsv":  # what is reported, and reconstructed, is what the file holds
                result = result.of_file(GaussianVolume.load(out), volume)
        figures = result.report()
        if out is not None:
            figures |= _sizes(out, volume.size)
        if report is not None:
            _write_report(report, figures)
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
        _summarise(figures, outputs)


@app.command()
def sample(
    model: _Model,
    out: Annotated[Path, typer.Option(metavar="UP.nii.gz", help="The volume to write, float32.")],
    scale: Annotated[str, typer.Option(metavar="S|Z,Y,X", help="Factor on the voxels along each axis.")] = "1",
    like: Annotated[Path | None, typer.Option(metavar="OTHER.nii.gz", help="Sample at this image's voxels.")] = None,
) -> None:
    """Sample Gaussians at any resolution, or at the voxels of another image of the same world."""
    if like is not None and scale != "1":
        raise ValueError("Give --scale or --like, not both.")
    _check_outputs([model] if like is None else [model, like], out=(out, _IMAGE))
    from ..gaussians import GaussianVolume
    from ..io.nifti import read_nifti, write_nifti
    from ..memory import require

    gaussians = GaussianVolume.load(model)
    other = None if like is None else read_nifti(like)
    grid = other.grid if other is not None else gaussians.grid.resampled(_factors(scale, gaussians.ndim))
    if other is not None and not _same_units(grid.units, gaussians.grid.units):
        raise ValueError(
            f"{like} measures in {grid.units[0]}, the world of the Gaussians in {gaussians.grid.units[0]}."
        )
    shape = " x ".join(map(str, grid.shape))
    require(math.prod(grid.shape) * _BYTES_A_SAMPLE, f"Sampling {shape} voxels takes", "ask for fewer voxels")
    write_nifti(out, gaussians.sample(grid), grid, like=other)
    print(f"{out}: {shape} voxels, {file_size(out.stat().st_size)}")


@app.command()
@_with_settings(gaussians=1000, time_limit=20.0, iterations=None, solver="gauss-newton", seed=0, device="auto")
def ablate(
    image: Annotated[Path, typer.Argument(metavar="IN.nii.gz", help="The volume, .nii or .nii.gz.")],
    study: Annotated[Study, typer.Option(help="What to vary.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="STEM", help="Write STEM.csv, STEM.md and STEM.png; 'ablation-STUDY' if not given."),
    ] = None,
    time_point: Annotated[int | None, typer.Option(help="Which volume of a 4D image to fit, from 0.")] = None,
    **settings: Any,
) -> None:
    """Fit a volume in several ways and compare: one table (CSV, Markdown) and a plot.

    The settings, the time limit too, are those of each case. Ctrl-C ends the study and keeps what it has.
    """
    FitSettings(**settings)
    stem = out or Path(f"ablation-{study}")
    table, page, picture = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".csv", ".md", ".png"))
    files = _check_outputs([image], out=(table, (".csv",)), page=(page, (".md",)), plot=(picture, (".png",)))
    from .. import ablation
    from ..io.nifti import read_nifti

    source = read_nifti(image)
    volume = _one_volume(source, image, time_point)
    with _Stop() as stop:
        steps = ablation.study_steps(volume, study, grid=source.grid, stop=stop, **settings)
        outcomes = [at.outcome for at in _shown(steps, stop) if at.outcome is not None]
    if not outcomes:
        _say("Stopped before the first case was finished; nothing is written.")
        return
    table.write_text(ablation.as_csv(outcomes), encoding="utf-8")
    page.write_text(ablation.as_markdown(outcomes), encoding="utf-8")
    ablation.plot(outcomes, f"{image.name}: {study}").savefig(picture, dpi=120)
    print(ablation.as_markdown(outcomes))
    _list(files)


@app.command()
def convert(
    model: _Model,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Its ending says what to write: .gsv, .safetensors, or .ply.")
    ],
) -> None:
    """Write Gaussians to a file of another kind.

    .gsv is small and rounded; .safetensors without loss; .ply for viewers of 3D Gaussian splats, which show them by
    opacity and cannot subtract.
    """
    _check_outputs([model], out=(out, (*_MODEL, *EXPORTS)))
    from ..gaussians import GaussianVolume

    gaussians = GaussianVolume.load(model)
    gaussians.save(out)
    print(f"{out}: {len(gaussians):,} Gaussians, {file_size(out.stat().st_size)}")


@app.command()
def info(model: _Model, json_: _Json = False) -> None:
    """Say what a file of Gaussians holds."""
    from ..gaussians import GaussianVolume

    facts = _facts(GaussianVolume.load(model), model.stat().st_size)
    if json_:
        print(json.dumps(facts))
        return
    table = Table("", str(model), box=None, padding=(0, 2, 0, 0))
    for name, fact in facts.items():
        table.add_row(name.replace("_", " "), _readable(fact))
    Console().print(table)


@app.command()
@_with_settings(gaussians=2000, time_limit=30.0)
def demo(
    size: Annotated[int, typer.Option(help="Voxels along each axis of the generated volume.")] = 96,
    png: Annotated[Path | None, typer.Option(metavar="PATH", help="Save a picture.")] = None,
    window: Annotated[bool, typer.Option("--window/--no-window", help="Open napari where there is a display.")] = True,
    **settings: Any,
) -> None:
    """Fit Gaussians to a generated CT volume and show them in napari, or in gsvolume-demo.png without a display."""
    from ..plugin.demo import has_display, save_picture, show_in_napari

    window = window and has_display()
    picture = png if window or png is not None else Path("gsvolume-demo.png")
    pictures = _check_outputs([], png=(picture, (".png",)))
    from ..fitting import fit_steps
    from ..phantoms import anatomical_phantom

    volume, grid = anatomical_phantom(size)
    with _Stop() as stop:
        result = _run(fit_steps(volume, grid=grid, stop=stop, **settings), stop)
    for path in pictures:
        save_picture(path, volume, grid, result)
    _summarise(result.report(), pictures)
    if window:
        show_in_napari(volume, grid, result)


@app.command()
def devices() -> None:
    """List what can be computed on here, and say why not on a GPU."""
    from ..devices import devices as listed
    from ..devices import gpu_problem, gsplat_problem

    for name in listed().values():
        print(name)
    for what, problem in (("GPU", gpu_problem()), ("gsplat", gsplat_problem())):
        print(f"{what}: {problem or 'can be used.'}")


class _Stop:
    """The wish to stop: inside this context the first SIGINT or SIGTERM only notes it, the second one aborts."""

    noted = False
    begun = False  # before the first iteration there is nothing to keep

    def __call__(self) -> bool:
        return self.noted and self.begun

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True


def _run(steps: Iterator[FitStep], stop: _Stop, quiet: bool = False) -> FitResult:
    """Return the result of a fit, behind a progress bar where stderr is a terminal."""
    step = next(steps)
    for note in () if quiet else step.notes:
        _say(note)
    with _bar(quiet) as show:
        for step in steps:
            stop.begun = True
            show(step.message, step.progress, _reached(step))
        return step.result()


def _shown(steps: Iterator[StudyStep], stop: _Stop) -> Iterator[StudyStep]:
    """Pass a study's steps on, behind a progress bar where stderr is a terminal."""
    with _bar() as show:
        for at in steps:
            stop.begun |= at.step.iteration > 0
            show(f"{at.case} ({at.index + 1} of {at.count})", at.progress, _reached(at.step))
            yield at


@contextmanager
def _bar(quiet: bool = False) -> Iterator[Callable[[str, float, str], None]]:
    """Yield what moves a progress bar, drawn where stderr is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, figures="")

        def show(text: str, progress: float, figures: str) -> None:
            bar.update(task, description=text, completed=progress, figures=figures)

        yield show


def _reached(step: FitStep) -> str:
    return f"{step.n_gaussians:,} Gaussians  {step.psnr_db:.2f} dB  {step.seconds:.0f} s"


def _summarise(figures: dict[str, Any], files: list[Path]) -> None:
    ssim = "" if figures["ssim"] is None else f", SSIM {figures['ssim']:.4f}"
    print(figures["message"])
    where = "" if figures["device"] == "cpu" else f" on {figures['device']}"
    reached = f"PSNR {figures['psnr_db']:.2f} dB{ssim}, {figures['n_gaussians']:,} Gaussians"
    print(f"{reached}, {figures['seconds']:.1f} s{where}")
    _list(files)


def _write_report(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _list(files: list[Path]) -> None:
    """Print files that were written, and how large they are."""
    for path in files:
        print(f"{path}: {file_size(path.stat().st_size)}")


def _check_outputs(inputs: list[Path], **outputs: tuple[Path | None, tuple[str, ...]]) -> list[Path]:
    """Return the files to write; raise now, rather than after a long fit, if one could not be, or is an input."""
    files: list[Path] = []
    for option, (path, suffixes) in outputs.items():
        if path is None:
            continue
        if not path.name.lower().endswith(suffixes):
            raise ValueError(f"--{option} {path}: the name must end in {' or '.join(suffixes)}.")
        if path.is_dir() or path.resolve() in (other.resolve() for other in inputs + files):
            raise ValueError(f"--{option} {path}: the name is taken by a folder, an input or another output.")
        try:
            with tempfile.TemporaryFile(dir=path.parent):  # a folder's modes do not tell of read-only disks
                files.append(path)
        except OSError as error:
            raise OSError(f"--{option} {path}: its folder cannot be written to ({error.strerror}).") from error
    return files


def _sizes(path: Path, n_voxels: int) -> dict[str, float]:
    """Return how large a file is, and how many times smaller than the volume in float32."""
    size = path.stat().st_size
    return {"bytes": size, "ratio": 4 * n_voxels / size}


def _one_volume(image: NiftiImage, path: Path, time_point: int | None) -> Any:
    """Return the one volume of intensities."""
    if image.rgb:
        raise ValueError(f"{path} holds colours; one intensity a voxel is needed.")
    if image.data.ndim < 4:
        if time_point is not None:
            raise ValueError(f"{path} has no time axis; leave --time-point out.")
        return image.data
    last = len(image.data) - 1
    if time_point is None or not 0 <= time_point <= last:
        raise ValueError(f"{path} is 4D; choose one of its volumes with --time-point 0 to {last}.")
    return image.data[time_point]


def _facts(model: GaussianVolume, n_bytes: int) -> dict[str, Any]:
    """Return what `info` tells, ready for JSON."""
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


def _same_units(units: Sequence[str], others: Sequence[str]) -> bool:
    """Whether units are the same, however spelled; pixels go with anything."""
    from pint import Unit

    pairs = zip(units, others, strict=False)
    return all("pixel" in pair or Unit(pair[0]) == Unit(pair[1]) for pair in pairs)


def _factors(text: str, ndim: int) -> list[float]:
    try:
        factors = [float(number) for number in text.split(",")]
    except ValueError:
        factors = []
    if len(factors) not in (1, ndim):
        raise ValueError(f"--scale {text}: give one number, or {ndim} separated by commas.")
    return factors


def _sentence(error: Exception) -> str:
    """Return one line that says what is wrong."""
    if "GSVOLUME_DEBUG" in os.environ:
        traceback.print_exception(error)
    if isinstance(error, ValidationError):
        return one_sentence(error, lambda name: f"--{name.replace('_', '-')}")
    text = error.format_message() if isinstance(error, _UsageError) else str(error)
    return " ".join(text.split()) or f"{type(error).__name__}."


def _say(text: str) -> None:
    print(f"gsvolume: {text}", file=sys.stderr)


from . import explain, recover, super_resolution, tomography, views  # noqa: E402, F401, they register themselves on `app`
