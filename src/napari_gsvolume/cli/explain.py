"""Commands about networks: ``gsvolume explain`` and ``gsvolume track``."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from ..errors import InputError
from ..explain.settings import ExplainSettings, TrackSettings
from ..progress import Budget
from .app import app
from .files import OutputFolder, select_volume
from .options import JsonOption, QuietOption, RepeatableOptions, TimePoint, with_settings
from .progress import StopSignal, run_steps
from .sections import EXPLAIN

if TYPE_CHECKING:
    from ..explain.explanation import Explanation
    from ..explain.models.inputs import Volume
    from ..io.nifti import NiftiImage

_SHOWN = 12  # layers in the printed table
_Out = Annotated[Path, typer.Option(metavar="DIR", help="Output folder (created if missing).")]
_Images = Annotated[
    list[Path], typer.Option(metavar="IN.nii.gz [MORE...]", help="Images that the network is run on, .nii or .nii.gz.")
]
_Layers = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME [MORE...]", help="Layers, or patterns such as 'body.*'; all with weights by default."),
]
_Weights = Annotated[
    Path | None, typer.Option(metavar="W.safetensors", help="Weights for a model factory: .safetensors or .pt.")
]


def _options(model: type[BaseModel]) -> Any:
    """Return the decorator that adds all settings except the repeatable layers."""
    return with_settings(model, **{name: f.default for name, f in model.model_fields.items() if name != "layers"})


@app.command(cls=RepeatableOptions, rich_help_panel=EXPLAIN)
@_options(ExplainSettings)
def explain(
    model: Annotated[
        str,
        typer.Option(
            metavar="SR.safetensors|package.module:function",
            help="Model of train-sr, or a model factory (callable that returns a torch.nn.Module).",
        ),
    ],
    images: _Images,
    out: _Out,
    weights: _Weights = None,
    layers: _Layers = None,
    time_point: TimePoint = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Explain a network by the SVD of its activations: a report, tables, and concept maps that overlay the images.

    Ctrl-C stops it and writes the parts that are finished; a second one aborts.
    """
    chosen = ExplainSettings(layers=tuple(layers or ()), **settings)
    folder = OutputFolder(out, [*images, *([weights] if weights else []), Path(model)])
    sources = _read_images(images, time_point)
    from ..explain.explanation import explain_steps
    from ..explain.models.loading import load_model
    from ..explain.report.html import draw_map_view, render_report
    from ..explain.report.tables import build_tables

    loaded, volumes = load_model(model, weights), _volumes(sources)
    with StopSignal() as stop:
        result = run_steps(explain_steps(loaded, volumes, chosen, budget=Budget(stop=stop)), stop, quiet or json_)
        if result.is_empty:
            print("Stopped before anything was decomposed; nothing is written.")
            return
        folder.make()
        views = []
        for maps in result.maps:
            name = f"concepts/{volumes[maps.volume].name}/{_file_name(maps.layer)}.nii.gz"
            folder.nifti(name, maps.values, maps.grid, like=list(sources.values())[maps.volume])
            views.append(draw_map_view(maps))
        for name, text in build_tables(result).items():
            folder.text(name, text)
        folder.text("settings.json", _as_json(_metadata(result)))
        folder.text("report.html", render_report(result, views, folder.written))
    if json_:
        print(json.dumps(_metadata(result), allow_nan=False))
    elif not quiet:
        _print_result(result, folder)


@app.command(cls=RepeatableOptions, rich_help_panel=EXPLAIN)
@_options(TrackSettings)
def track(
    checkpoints: Annotated[
        list[str],
        typer.Option(
            metavar="'run/*.safetensors'",
            help="Checkpoints of one training: files or a pattern, taken in natural order.",
        ),
    ],
    images: _Images,
    out: _Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:function",
            help="Model factory (callable that builds the network); not needed for super-resolution models.",
        ),
    ] = None,
    layers: _Layers = None,
    time_point: TimePoint = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Track a network through the checkpoints of its training: a report, and a table of its components by epoch.

    Ctrl-C stops it and writes the results of the checkpoints so far; a second one aborts.
    """
    chosen = TrackSettings(layers=tuple(layers or ()), **settings)
    paths = _expand(checkpoints)
    folder = OutputFolder(out, [*images, *paths])
    sources = _read_images(images, time_point)
    from ..explain.report.html import render_tracking_report
    from ..explain.report.tables import findings_table
    from ..explain.tracking.checkpoints import track_steps

    with StopSignal() as stop:
        steps = track_steps(paths, _volumes(sources), chosen, model=model, budget=Budget(stop=stop))
        result = run_steps(steps, stop, quiet or json_)
        folder.make()
        result.tracker.to_csv(folder.path("evolution.csv"))
        found = result.tracker.findings()
        folder.text("findings.csv", findings_table(found))
        folder.text("report.html", render_tracking_report(result, folder.written))
    history = result.tracker.history
    if json_:
        summary = {"epochs": sorted({r.epoch for r in history}), "findings": [f.sentence for f in found]}
        print(json.dumps(summary, allow_nan=False))
    elif not quiet:
        layer_count = len({r.layer for r in history})
        print(f"{len(result.checkpoints)} of {result.total} checkpoints, {layer_count} layers")
        folder.tell([f.sentence for f in found])


def _read_images(paths: Sequence[Path], time_point: int | None) -> dict[str, NiftiImage]:
    """Read one volume of each image, by unique names."""
    from dataclasses import replace

    from ..io.nifti import read_nifti

    sources: dict[str, NiftiImage] = {}
    for path in paths:
        source = read_nifti(path)
        data = select_volume(source, path, time_point if source.data.ndim > 3 else None)
        name = stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        while name in sources:
            name = f"{stem}-{len(sources) + 1}"
        sources[name] = replace(source, data=data, time_step=None, time_unit=None)
    return sources


def _volumes(sources: dict[str, NiftiImage]) -> list[Volume]:
    from ..explain.models.inputs import Volume

    return [Volume.of(name, source.data, source.grid) for name, source in sources.items()]


def _expand(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match patterns: quoted ones are not expanded by the shell."""
    paths: dict[Path, None] = {}
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
        if not found:
            raise InputError(f"--checkpoints {pattern}: there is no such file.")
        paths |= dict.fromkeys(map(Path, found))
    return list(paths)


def _file_name(layer: str) -> str:
    return re.sub(r"[^\w.-]", "_", layer) or "model"


def _metadata(result: Explanation) -> dict[str, Any]:
    """Return the summary of an explanation, ready for JSON."""
    from .. import __version__
    from ..explain.explanation import layer_metrics

    return {
        "model": result.model.name,
        "kind": result.model.kind,
        "weights": result.model.weights,
        "version": __version__,
        "settings": result.settings.model_dump(),
        "images": [volume.name for volume in result.images.volumes],
        "inputs": len(result.images.places),
        "layers": {name: layer_metrics(d) | {"values": d.values.tolist()} for name, d in result.layers.items()},
        "jacobians": [of.decomposition.values.tolist() for of in result.jacobians],
        "findings": [f.sentence for f in result.findings],
        "notes": list(result.notes),
        "seconds": result.seconds,
    }


def _as_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, indent=2, allow_nan=False) + "\n"


def _print_result(result: Explanation, folder: OutputFolder) -> None:
    from ..explain.explanation import layer_metrics
    from ..explain.models.outputs import layer_label

    print(f"{result.model.name}: {len(result.images.places)} inputs, {result.seconds:.1f} s")
    for name, d in list(result.layers.items())[:_SHOWN]:
        f = layer_metrics(d)
        print(f"  {layer_label(name)}: {d.features} features, effective rank {f['effective_rank']:.2f}")
    if len(result.layers) > _SHOWN:
        print(f"  ... {len(result.layers) - _SHOWN} more layers in layers.csv")
    for of in result.jacobians:
        print(f"  Jacobian: {', '.join(f'{s:.4g}' for s in of.decomposition.values)}")
    folder.tell([*result.notes, *(f.sentence for f in result.findings)])
