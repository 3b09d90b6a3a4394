"""Reports of explanations and of tracked trainings: one self-contained HTML page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jinja2
import numpy as np
import torch
from pydantic import BaseModel

from ..concepts.grids import ConceptMaps
from ..explanation import Explanation, layer_metrics
from ..models.explained_model import ExplainedModel
from ..models.inputs import Images
from ..models.outputs import layer_label
from ..tracking.checkpoints import Tracking
from ..tracking.records import Evolution
from . import figures
from .captions import CAPTIONS
from .figures import Picture
from .tables import describe_location

_PATTERNS = 4  # modes of a Jacobian that are drawn
_DRAWN = 12  # layers whose evolution is drawn


@dataclass(frozen=True, eq=False)
class MapView:
    """Slice of concept maps, for a report.

    Attributes
    ----------
    layer, image : str
    picture : Picture
    """

    layer: str
    image: str
    picture: Picture


@dataclass(frozen=True, eq=False)
class _Part:
    """Part of a section: heading, text, table, figures, and a figure with a trusted HTML caption."""

    heading: str = ""
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[tuple[Picture, str]] = ()
    explained: tuple[Picture, str] | None = None


@dataclass(frozen=True, eq=False)
class _Section:
    """Section of a page, with a trusted HTML caption."""

    title: str
    caption: str
    parts: Sequence[_Part]


def draw_map_view(maps: ConceptMaps) -> MapView:
    """Return the middle slice of concept maps as a picture."""
    images, layout = maps.images, maps.images.layout
    place, volume = images.middle(maps.volume), images.volumes[maps.volume]
    data, values = volume.data, maps.values
    if data.ndim == 2:
        data, values = data[None], values[:, None]
    axis = 0 if layout.across is None else layout.across
    number = data.shape[0] // 2 if place.slice is None else place.slice
    upsampling = values.shape[1 + axis] // data.shape[axis]
    image = np.asarray(data.take(number, axis))
    shown = values.take(number * max(1, upsampling), 1 + axis)
    title = f"{maps.layer} in {volume.name}, slice {number}"
    label = f"{volume.name}, slice {number} along {'zyx'[axis]}"
    return MapView(maps.layer, label, figures.concepts(image, shown, title))


def render_report(explanation: Explanation, views: Sequence[MapView] = (), files: Iterable[str] = ()) -> str:
    """Return the report of an explanation as HTML.

    Parameters
    ----------
    explanation : Explanation
    views : sequence of MapView
        Slices of concept maps; see `draw_map_view`.
    files : iterable of str
        Names of the files beside the report, for links.
    """
    e = explanation
    sections = []
    if e.layers:
        spectra = None
        if any(d.k for d in e.layers.values()):
            spectra = figures.spectra(e.layers), CAPTIONS["spectra"]
        sections.append(_Section("Layers", CAPTIONS["layers"], [_layer_table(e), _Part(explained=spectra)]))
    if views:
        sections.append(_Section("Concept maps", CAPTIONS["concepts"], _map_parts(e, views)))
    if e.jacobians:
        sections.append(_Section("Jacobian", CAPTIONS["jacobian"], _jacobian_parts(e)))
    if e.attention is not None:
        picture = figures.attention(e.attention, len(e.attended))
        caption = f"Mean over {len(e.attended)} inputs."
        sections.append(
            _Section("Attention", CAPTIONS["attention"], [_Part(figures=[(picture, caption)]), _head_table(e)])
        )
    return _render(
        title=f"{e.model.name}: explanation",
        metadata=_model(e.model) | _inputs(e.images) | _settings(e.settings) | {"Time": f"{e.seconds:.1f} s"},
        notes=e.notes,
        findings=e.findings,
        sections=sections,
        files=list(files),
    )


def render_tracking_report(tracking: Tracking, files: Iterable[str] = ()) -> str:
    """Return the report of a tracked training as HTML."""
    tracker, checkpoints = tracking.tracker, tracking.checkpoints
    layers = list(dict.fromkeys(r.layer for r in tracker.history))
    epochs = sorted({r.epoch for r in tracker.history})
    span = f"{len(epochs)}, epochs {epochs[0]:g} to {epochs[-1]:g}: {checkpoints[0].name} to {checkpoints[-1].name}"
    evolutions = {layer: tracker.evolution(layer) for layer in layers}
    ranks = figures.ranks_over_epochs(evolutions), CAPTIONS["ranks"]
    parts = []
    if len(layers) > _DRAWN:
        parts.append(_Part(text=f"Drawn are the {_DRAWN} layers with the largest rotation; the table has all layers."))
        layers = sorted(layers, key=lambda name: _similarity_to_first(evolutions[name]))[:_DRAWN]
        layers = [name for name in evolutions if name in layers]
    parts += [_Part(layer_label(name), figures=[(figures.evolution(name, evolutions[name]), "")]) for name in layers]
    model = tracking.model
    name = model.name if model.sr is None else f"{checkpoints[0].name} to {checkpoints[-1].name}"
    return _render(
        title=f"{name}: training",
        metadata={"Checkpoints": span} | _model(model) | _inputs(tracking.images) | _settings(tracking.settings),
        notes=(),
        findings=tracker.findings(),
        sections=[
            _Section("Layers over epochs", "", [_evolution_table(evolutions), _Part(explained=ranks)]),
            _Section("Components", CAPTIONS["evolution"], parts),
        ],
        files=list(files),
    )


def _render(**content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html.jinja").render(**content)


def _similarity_to_first(evolution: Evolution) -> float:
    """Return the mean |cosine| of the first components with their first directions, at the last epoch."""
    cosines = np.abs(evolution.to_first[-1][:4])
    return float(np.nanmean(cosines)) if np.isfinite(cosines).any() else 1.0


def _model(model: ExplainedModel) -> dict[str, str]:
    metadata = {"Model": model.name, "Kind": model.kind, "Class": type(model.model).__name__}
    if model.weights:
        metadata["Weights"] = model.weights
    metadata["Parameters"] = f"{model.parameters:,}"
    if model.settings is not None:
        s = model.settings
        metadata["Training"] = (
            f"scheme {s.scheme}{f', {s.backbone}' if s.scheme == 'residual' else ''}, factor {s.factor:g}, "
            f"{s.upsample_axes}, {s.degradation}"
        )
    return metadata


def _inputs(images: Images) -> dict[str, str]:
    shapes = [f"{v.name} ({' x '.join(map(str, v.data.shape))})" for v in images.volumes]
    extents = sorted({place.extent for place in images.places})
    sizes = ", ".join(" x ".join(map(str, extent)) for extent in extents)
    kind = "volumes" if images.layout.across is None else f"slices along {'zyx'[images.layout.across]}"
    channels = len(images.volumes) if images.layout.one_each else len(images.layout.shifts)
    return {
        "Images": ", ".join(shapes),
        "Inputs": f"{len(images.places)} {kind} of {sizes} voxels, {channels} channel{'s' * (channels != 1)}",
    }


def _settings(settings: BaseModel) -> dict[str, str]:
    given = {name: value for name, value in settings.model_dump().items() if value not in (None, ())}
    texts = (f"{name} {', '.join(value) if isinstance(value, tuple) else value}" for name, value in given.items())
    versions = (
        f"napari-gsvolume {version('napari-gsvolume')}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    return {"Settings": "; ".join(texts), "Versions": versions}


def _layer_table(e: Explanation) -> _Part:
    columns = ("Layer", "Features", "Samples", "Effective rank", "Stable rank", "Participation ratio", "Energy")
    rows = []
    for name, d in e.layers.items():
        f = layer_metrics(d)
        about = "" if f["complete"] else "≥ "
        ranks = [f"{about}{f[key]:.2f}" for key in ("effective_rank", "stable_rank", "participation_ratio")]
        energy = " ".join(f"{100 * part:.1f}" for part in d.energy[:3]) + (
            f" … {100 * d.energy[-1]:.1f} %" if d.k > 3 else " %"
        )
        rows.append([layer_label(name), f"{d.features:,}", f"{d.samples:,}", *ranks, energy if d.k else "-"])
    return _Part(columns=columns, rows=rows)


def _map_parts(e: Explanation, views: Sequence[MapView]) -> list[_Part]:
    parts = []
    without = [layer_label(name) for name in e.layers if all(view.layer != name for view in views)]
    if without:
        parts.append(_Part(text=f"No maps of {', '.join(without)}: their outputs have no location in the images."))
    for name in dict.fromkeys(view.layer for view in views):
        pictures = [(view.picture, view.image) for view in views if view.layer == name]
        parts.append(_Part(layer_label(name), figures=pictures))
    return parts


def _jacobian_parts(e: Explanation) -> list[_Part]:
    parts = []
    for jacobian in e.jacobians:
        image, number, start = describe_location(e.images, jacobian.place)
        d = jacobian.decomposition
        pairs = [
            (float(d.values[k]), figures.plane(d.column(k)), figures.plane(d.column(k, "scores")))
            for k in range(min(_PATTERNS, d.k))
        ]
        extent = " x ".join(map(str, jacobian.place.extent))
        position = "" if number is None else f", slice {number}"
        differentiated = f"the layer {jacobian.layer}" if jacobian.layer else "the output"
        values = ", ".join(f"{s:.4g}" for s in d.values)
        caption = (
            f"{image}{position}, {extent} voxels{f' from {start}' if start else ''}: derivative of {differentiated}. "
            f"Singular values {values}; these {d.k} hold {100 * d.energy[-1]:.3g} % of the sum of squares, with an "
            f"error of up to {np.sqrt(d.values[0] ** 2 + d.missed) - d.values[0]:.1g}."
        )
        shown = figures.plane(e.images.intensities(jacobian.place)[None])
        parts.append(_Part(figures=[(figures.patterns(shown, pairs, differentiated), caption)]))
    return parts


def _head_table(e: Explanation) -> _Part:
    assert e.attention is not None
    rows = [
        [f"{layer}, head {head}", f"{entropy:.2f}", *(f"{part:.2f}" for part in parts[:3])]
        for (layer, head), entropy, parts in zip(
            e.attention.heads, e.attention.entropy, e.attention.modes.concepts, strict=True
        )
    ]
    columns = ("Head", "Entropy, nats", *(f"Mode {k + 1}" for k in range(min(3, e.attention.modes.k))))
    return _Part(columns=columns, rows=rows)


def _evolution_table(evolutions: Mapping[str, Evolution]) -> _Part:
    columns = (
        "Layer",
        "Effective rank, first epoch",
        "Last",
        "Stable rank, first epoch",
        "Last",
        "Cosine of component 1 to the first epoch",
    )
    rows = []
    for name, evolution in evolutions.items():
        ranks = [f"{x:.2f}" for r in (evolution.effective_ranks, evolution.stable_ranks) for x in (r[0], r[-1])]
        cosine = evolution.to_first[-1][0] if evolution.to_first.shape[1] else np.nan
        rows.append([layer_label(name), *ranks, "-" if np.isnan(cosine) else f"{cosine:.2f}"])
    return _Part(columns=columns, rows=rows)
