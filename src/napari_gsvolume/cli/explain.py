"""The shell's commands about networks: ``gsvolume explain`` and ``gsvolume track``."""

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
from .app import app
from .files import OutputFolder, select_volume
from .options import JsonOption, QuietOption, RepeatableOptions, with_settings
from .progress import StopSignal, progress_bar

if TYPE_CHECKING:
    from ..explain.explanation import Explanation
    from ..explain.models.inputs import Volume
    from ..io.nifti import NiftiImage

_SHOWN = 12  # layers in the printed table
_Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to; it is made.")]
_Images = Annotated[
    list[Path], typer.Option(metavar="IN.nii.gz [MORE...]", help="What the network is run on, .nii or .nii.gz.")
]
_Layers = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME [MORE...]", help="Layers, or patterns such as 'body.*'; all with weights if not given."),
]
_TimePoint = Annotated[int | None, typer.Option(help="Which volume of 4D images, from 0.")]
_Weights = Annotated[
    Path | None, typer.Option(metavar="W.safetensors", help="Of a function's model: .safetensors, or .pt of weights.")
]


def _options(model: type[BaseModel]) -> Any:
    """Return the decorator for all settings but layers, of which there may be several."""
    return with_settings(model, **{name: f.default for name, f in model.model_fields.items() if name != "layers"})


@app.command(cls=RepeatableOptions)
@_options(ExplainSettings)
def explain(
    model: Annotated[
        str,
        typer.Option(
            metavar="SR.safetensors|package.module:function",
            help="A super-resolution of train-sr, or a function that returns a torch.nn.Module.",
        ),
    ],
    images: _Images,
    out: _Out,
    weights: _Weights = None,
    layers: _Layers = None,
    time_point: _TimePoint = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Explain a network by the SVD of what it computes: a report, tables, and concept maps that overlay the images.

    Ctrl-C ends it and keeps what has been decomposed: the files are written. A second one aborts.
    """
    asked = ExplainSettings(layers=tuple(layers or ()), **settings)
    folder = OutputFolder(out, [*images, *([weights] if weights else []), Path(model)])
    sources = _read(images, time_point)
    from ..explain.concepts.concept_maps import concept_maps
    from ..explain.explanation import explain_steps
    from ..explain.models.loading import load_model
    from ..explain.report.html import draw_map_view, render_report
    from ..explain.report.tables import build_tables

    loaded = load_model(model, weights)
    volumes = _volumes(sources)
    with StopSignal() as stop:
        with progress_bar(quiet or json_) as show:
            for step in explain_steps(loaded, volumes, asked, stop):
                stop.begun = True
                show(step.message, 0.6 * step.progress, "")
            result = step.result
            assert result is not None
            if result.empty:
                print("Stopped before anything was decomposed; nothing is written.")
                return
            folder.make()
            views = []
            for at in concept_maps(loaded.model, result.images, result.layers, asked.maps, seed=asked.seed):
                for maps in at.maps:
                    name = f"concepts/{volumes[maps.volume].name}/{_file_name(maps.layer)}.nii.gz"
                    folder.nifti(name, maps.values, maps.grid, like=list(sources.values())[maps.volume])
                    views.append(draw_map_view(maps, result.images))
                show("Mapping concepts", 0.6 + 0.4 * at.done / at.total, "")
                if stop():
                    break
        for name, text in build_tables(result).items():
            folder.text(name, text)
        folder.text("settings.json", _as_json(_facts(result)))
        folder.text("report.html", render_report(result, views, folder.written))
    if json_:
        print(json.dumps(_facts(result), allow_nan=False))
    elif not quiet:
        _tell(result, folder)


@app.command(cls=RepeatableOptions)
@_options(TrackSettings)
def track(
    checkpoints: Annotated[
        list[str],
        typer.Option(
            metavar="'run/*.safetensors'", help="Of one training: files, or a pattern, in their natural order."
        ),
    ],
    images: _Images,
    out: _Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:function",
            help="What returns the network that the weights are of; not needed for checkpoints of super-resolutions.",
        ),
    ] = None,
    layers: _Layers = None,
    time_point: _TimePoint = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Follow a network through the checkpoints of its training: a report, and a table of its components by epoch.

    Ctrl-C ends it and keeps the checkpoints that are done: the files are written. A second one aborts.
    """
    asked = TrackSettings(layers=tuple(layers or ()), **settings)
    paths = _expanded(checkpoints)
    folder = OutputFolder(out, [*images, *paths])
    sources = _read(images, time_point)
    from ..explain.models.inputs import prepare_images
    from ..explain.models.loading import ExplainedModel, checkpoint_loader, load_model, match_layers
    from ..explain.report.html import render_tracking_report
    from ..explain.report.tables import findings_table
    from ..explain.tracking.checkpoints import natural_key, track_checkpoints

    paths = sorted(paths, key=natural_key)
    loaded = None if model is None else load_model(model)
    load = checkpoint_loader(loaded)
    first = load_model(paths[0]) if loaded is None else ExplainedModel(load(paths[0]), loaded.name, sr=loaded.sr)
    inputs = prepare_images(first, _volumes(sources), asked)
    names = match_layers(first.model, asked.layers)
    more = {"k": asked.k, "max_samples": max(asked.max_samples, 64 * len(inputs.places)), "seed": asked.seed}
    done = []
    with StopSignal() as stop:
        with progress_bar(quiet or json_) as show:
            for step in track_checkpoints(paths, load, names, inputs, **more):  # type: ignore[arg-type]
                stop.begun = True
                done.append(step.path)
                show(
                    f"{step.path.name} as epoch {step.epoch:g}", step.done / step.total, f"{step.done} of {step.total}"
                )
                if stop():
                    break
        tracker = step.tracker
        folder.make()
        tracker.to_csv(folder.path("evolution.csv"))
        found = tracker.findings()
        folder.text("findings.csv", findings_table(found))
        folder.text("report.html", render_tracking_report(tracker, first, inputs, asked, done, folder.written))
    if json_:
        facts = {"epochs": sorted({r.epoch for r in tracker.history}), "findings": [f.sentence for f in found]}
        print(json.dumps(facts, allow_nan=False))
    elif not quiet:
        print(f"{len(done)} of {len(paths)} checkpoints, {len({r.layer for r in tracker.history})} layers")
        folder.tell([f.sentence for f in found])


def _read(paths: Sequence[Path], time_point: int | None) -> dict[str, NiftiImage]:
    """Return images by their names, each made one volume."""
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


def _expanded(patterns: Sequence[str]) -> list[Path]:
    """Return the files that patterns stand for: a quoted one is not the shell's to expand."""
    paths: dict[Path, None] = {}
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
        if not found:
            raise InputError(f"--checkpoints {pattern}: there is no such file.")
        paths |= dict.fromkeys(map(Path, found))
    return list(paths)


def _file_name(layer: str) -> str:
    return re.sub(r"[^\w.-]", "_", layer) or "model"


def _facts(result: Explanation) -> dict[str, Any]:
    """Return what an explanation came to, ready for JSON."""
    from .. import __version__
    from ..explain.explanation import layer_metrics

    return {
        "model": result.loaded.name,
        "kind": result.loaded.kind,
        "weights": result.loaded.weights,
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


def _as_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def _tell(result: Explanation, folder: OutputFolder) -> None:
    from ..explain.explanation import layer_metrics
    from ..explain.models.loading import layer_label

    print(f"{result.loaded.name}: {len(result.images.places)} inputs, {result.seconds:.1f} s")
    for name, d in list(result.layers.items())[:_SHOWN]:
        f = layer_metrics(d)
        print(f"  {layer_label(name)}: {d.features} features, effective rank {f['effective_rank']:.2f}")
    if len(result.layers) > _SHOWN:
        print(f"  ... {len(result.layers) - _SHOWN} more layers in layers.csv")
    for of in result.jacobians:
        print(f"  Jacobian: {', '.join(f'{s:.4g}' for s in of.decomposition.values)}")
    folder.tell([*result.notes, *(f.sentence for f in result.findings)])
