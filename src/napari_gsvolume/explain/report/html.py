"""An explanation, or the tracking of a training, as one HTML page that needs nothing besides itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ..concepts.grids import ConceptMaps
from ..explanation import Explanation, layer_metrics
from ..findings.finding import Finding
from ..models.inputs import Images
from ..models.loading import ExplainedModel, layer_label
from ..tracking.tracker import Tracker
from . import figures
from .captions import CAPTIONS
from .tables import describe_location

_PATTERNS = 4  # modes of a Jacobian that are drawn
_DRAWN = 12  # layers whose evolution is drawn

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #59636e; --line: #d5dae0; --page: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa4ae; --line: #3a424a; --page: #16191d; --card: #1f2429; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: .75rem 0 1.25rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts th { font-weight: 500; color: var(--soft); vertical-align: top; }
ul.findings { padding: 0; list-style: none; }
ul.findings li { background: var(--card); border-left: 3px solid #b9782f; padding: .4rem .8rem; margin: .4rem 0; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #fff; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, li, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


@dataclass(frozen=True, eq=False)
class MapView:
    """A slice of concept maps, for the page.

    Attributes
    ----------
    layer, image : str
    picture : str
        HTML.
    """

    layer: str
    image: str
    picture: str


def draw_map_view(maps: ConceptMaps, images: Images) -> MapView:
    """Return the middle slice of maps as a picture."""
    place = images.middle(maps.volume)
    volume = images.volumes[maps.volume]
    data, values, layout = volume.data, maps.values, images.layout
    if data.ndim == 2:
        data, values = data[None], values[:, None]
    axis = 0 if layout.across is None else layout.across
    number = data.shape[0] // 2 if place.slice is None else place.slice
    finer = values.shape[1 + axis] // data.shape[axis]
    image = np.asarray(data.take(number, axis))
    shown = values.take(number * max(1, finer), 1 + axis)
    title = f"{maps.layer} in {volume.name}, slice {number}"
    return MapView(
        maps.layer, f"{volume.name}, slice {number} along {'zyx'[axis]}", figures.concepts(image, shown, title)
    )


def render_report(explanation: Explanation, views: Sequence[MapView] = (), files: Iterable[str] = ()) -> str:
    """Return an explanation as HTML.

    Parameters
    ----------
    explanation : Explanation
    views : sequence of MapView
        Of concept maps, as `draw_map_view` makes them.
    files : iterable of str
        Names of the files beside it.
    """
    e = explanation
    facts = _model(e.loaded) | _inputs(e.images) | _settings(e.settings) | {"Time": f"{e.seconds:.1f} s"}
    body = [_facts(facts), *(f"<p class=soft>{escape(note)}</p>" for note in e.notes), _findings(e.findings)]
    if e.layers:
        body += [
            "<h2>Layers</h2>", _layers(e), _soft(CAPTIONS["layers"]),
            _figure(figures.spectra(e.layers), CAPTIONS["spectra"]) if any(d.k for d in e.layers.values()) else "",
        ]  # fmt: skip
    if views:
        body += ["<h2>Concept maps</h2>", _soft(CAPTIONS["concepts"])]
        without = [layer_label(name) for name in e.layers if all(shown.layer != name for shown in views)]
        if without:
            body.append(_soft(f"No maps of {escape(', '.join(without))}: what they give has no place in the images."))
        for name in dict.fromkeys(shown.layer for shown in views):
            body.append(f"<h3><code>{escape(layer_label(name))}</code></h3>")
            body += [_figure(v.picture, escape(v.image)) for v in views if v.layer == name]
    if e.jacobians:
        body += ["<h2>Jacobian</h2>", _soft(CAPTIONS["jacobian"])]
        for of in e.jacobians:
            image, number, start = describe_location(e.images, of.place)
            d = of.decomposition
            pairs = [
                (float(d.values[k]), figures.plane(d.column(k)), figures.plane(d.column(k, "scores")))
                for k in range(min(_PATTERNS, d.k))
            ]
            extent = " x ".join(map(str, of.place.extent))
            at = "" if number is None else f", slice {number}"
            of_what = f"the layer {of.layer}" if of.layer else "the output"
            values = ", ".join(f"{s:.4g}" for s in d.values)
            said = (
                f"{image}{at}, {extent} voxels{f' from {start}' if start else ''}: derivative of {of_what}. Singular "
                f"values {values}; these {d.k} have {100 * d.energy[-1]:.3g} % of the sum of squares, and may be too "
                f"small by up to {np.sqrt(d.values[0] ** 2 + d.missed) - d.values[0]:.1g}."
            )
            picture = figures.patterns(figures.plane(e.images.shown(of.place)[None]), pairs, of_what)
            body.append(_figure(picture, escape(said)))
    if e.attention is not None:
        body += ["<h2>Attention</h2>", _soft(CAPTIONS["attention"])]
        body.append(_figure(figures.attention(e.attention, len(e.attended)), f"Of {len(e.attended)} inputs."))
        body.append(_heads(e))
    return _page(f"{e.loaded.name}, explained", [*body, _files(files)])


def render_tracking_report(
    tracker: Tracker,
    loaded: ExplainedModel,
    images: Images,
    settings: BaseModel,
    checkpoints: Sequence[Path],
    files: Iterable[str] = (),
) -> str:
    """Return what tracking the checkpoints of a training came to, as HTML."""
    layers = list(dict.fromkeys(r.layer for r in tracker.history))
    epochs = sorted({r.epoch for r in tracker.history})
    over = f"{len(epochs)}, epochs {epochs[0]:g} to {epochs[-1]:g}: {checkpoints[0].name} to {checkpoints[-1].name}"
    facts = {"Checkpoints": over} | _model(loaded) | _inputs(images)
    evolutions = {layer: tracker.evolution(layer) for layer in layers}
    body = [
        _facts(facts | _settings(settings)),
        _findings(tracker.findings()),
        "<h2>Layers over epochs</h2>",
        _evolved(evolutions),
        _figure(figures.ranks_over_epochs(evolutions), CAPTIONS["ranks"]),
        "<h2>Components</h2>",
        _soft(CAPTIONS["evolution"]),
    ]
    if len(layers) > _DRAWN:
        body.append(_soft(f"The {_DRAWN} layers whose components turned most are drawn; the table has all."))
        layers = sorted(layers, key=lambda name: _turned(evolutions[name]))[:_DRAWN]
        layers = [name for name in evolutions if name in layers]
    for name in layers:
        body += [
            f"<h3><code>{escape(layer_label(name))}</code></h3>",
            _figure(figures.evolution(name, evolutions[name]), ""),
        ]
    title = loaded.name if loaded.sr is None else f"{checkpoints[0].name} to {checkpoints[-1].name}"
    return _page(f"{title}, followed", [*body, _files(files)])


def _turned(of: Any) -> float:
    """Return the mean cosine of the first components with their first directions, at the last epoch."""
    cosines = np.abs(of.to_first[-1][:4])
    return float(np.nanmean(cosines)) if np.isfinite(cosines).any() else 1.0


def _model(loaded: ExplainedModel) -> dict[str, str]:
    facts = {"Model": loaded.name, "Kind": loaded.kind, "Class": type(loaded.model).__name__}
    if loaded.weights:
        facts["Weights"] = loaded.weights
    facts["Parameters"] = f"{loaded.parameters:,}"
    if loaded.settings is not None:
        s = loaded.settings
        facts["Trained as"] = (
            f"scheme {s.scheme}{f', {s.backbone}' if s.scheme == 'b' else ''}, factor {s.factor:g}, {s.axes}, "
            f"{s.degradation}"
        )
    return facts


def _inputs(images: Images) -> dict[str, str]:
    shapes = [f"{v.name} ({' x '.join(map(str, v.data.shape))})" for v in images.volumes]
    extents = sorted({place.extent for place in images.places})
    sides = ", ".join(" x ".join(map(str, extent)) for extent in extents)
    what = "volumes" if images.layout.across is None else f"slices along {'zyx'[images.layout.across]}"
    channels = len(images.volumes) if images.layout.one_each else len(images.layout.shifts)
    return {
        "Images": ", ".join(shapes),
        "Inputs": f"{len(images.places)} {what} of {sides} voxels, {channels} channel{'s' * (channels != 1)}",
    }


def _settings(settings: BaseModel) -> dict[str, str]:
    told = {name: value for name, value in settings.model_dump().items() if value not in (None, ())}
    said = (f"{name} {', '.join(value) if isinstance(value, tuple) else value}" for name, value in told.items())
    versions = (
        f"napari-gsvolume {version('napari-gsvolume')}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    return {"Settings": "; ".join(said), "Versions": versions}


def _layers(e: Explanation) -> str:
    heads = ("layer", "features", "samples", "effective rank", "stable rank", "participation ratio", "energy")
    rows = []
    for name, d in e.layers.items():
        f = layer_metrics(d)
        about = "" if f["complete"] else "≥ "
        ranks = [f"{about}{f[key]:.2f}" for key in ("effective_rank", "stable_rank", "participation_ratio")]
        energy = " ".join(f"{100 * part:.1f}" for part in d.energy[:3]) + (
            f" … {100 * d.energy[-1]:.1f} %" if d.k > 3 else " %"
        )
        rows.append([layer_label(name), f"{d.features:,}", f"{d.samples:,}", *ranks, energy if d.k else "-"])
    return _table(heads, rows)


def _evolved(evolutions: Mapping[str, Any]) -> str:
    heads = ("layer", "effective rank, first", "last", "stable rank, first", "last", "cosine of component 1 to first")
    rows = []
    for name, of in evolutions.items():
        ranks = [f"{x:.2f}" for r in (of.effective_ranks, of.stable_ranks) for x in (r[0], r[-1])]
        cosine = of.to_first[-1][0] if of.to_first.shape[1] else np.nan
        rows.append([layer_label(name), *ranks, "-" if np.isnan(cosine) else f"{cosine:.2f}"])
    return _table(heads, rows)


def _heads(e: Explanation) -> str:
    assert e.attention is not None
    rows = [
        [f"{layer}, head {head}", f"{entropy:.2f}", *(f"{part:.2f}" for part in parts[:3])]
        for (layer, head), entropy, parts in zip(
            e.attention.heads, e.attention.entropy, e.attention.modes.concepts, strict=True
        )
    ]
    heads = ("head", "entropy, nats", *(f"mode {k + 1}" for k in range(min(3, e.attention.modes.k))))
    return _table(heads, rows)


def _findings(found: Iterable[Finding]) -> str:
    items = "".join(f"<li>{escape(f.sentence)}</li>" for f in found)
    if not items:
        return "<h2>Findings</h2><p>No threshold was crossed.</p>"
    return f"<h2>Findings</h2><ul class=findings>{items}</ul>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table class=facts>{rows}</table>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _soft(html: str) -> str:
    return f"<p class=soft>{html}</p>"


def _files(files: Iterable[str]) -> str:
    names = list(files)
    if not names:
        return ""
    links = "".join(f"<li><a href='{escape(name, quote=True)}'>{escape(name)}</a></li>" for name in names)
    return f"<h2>Files beside this page</h2><ul>{links}</ul>"


def _page(title: str, body: Iterable[str]) -> str:
    return (
        f"<!doctype html>\n<html lang=en>\n<head><meta charset=utf-8><title>{escape(title)}</title>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{''.join(f'{part}{chr(10)}' for part in body)}</body>\n</html>\n"
    )
