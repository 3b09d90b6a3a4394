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

from . import pictures
from .findings import Finding
from .images import Images
from .maps import ConceptMaps
from .models import Loaded, named
from .reading import READ
from .run import Explanation, figures
from .tables import where
from .tracker import Tracker

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
class View:
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


def view(maps: ConceptMaps, images: Images) -> View:
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
    return View(
        maps.layer, f"{volume.name}, slice {number} along {'zyx'[axis]}", pictures.concepts(image, shown, title)
    )


def report(explanation: Explanation, views: Sequence[View] = (), files: Iterable[str] = ()) -> str:
    """Return an explanation as HTML.

    Parameters
    ----------
    explanation : Explanation
    views : sequence of View
        Of concept maps, as `view` makes them.
    files : iterable of str
        Names of the files beside it.
    """
    e = explanation
    facts = _model(e.loaded) | _inputs(e.images, e.loaded) | _settings(e.settings) | {"Time": f"{e.seconds:.1f} s"}
    body = [_facts(facts), *(f"<p class=soft>{escape(note)}</p>" for note in e.notes), _findings(e.findings)]
    if e.layers:
        body += [
            "<h2>Layers</h2>", _layers(e), _soft(READ["layers"]),
            _figure(pictures.spectra(e.layers), READ["spectra"]) if any(d.k for d in e.layers.values()) else "",
        ]  # fmt: skip
    if views:
        body += ["<h2>Concept maps</h2>", _soft(READ["concepts"])]
        without = [named(name) for name in e.layers if all(shown.layer != name for shown in views)]
        if without:
            body.append(_soft(f"No maps of {escape(', '.join(without))}: what they give has no place in the images."))
        for name in dict.fromkeys(shown.layer for shown in views):
            body.append(f"<h3><code>{escape(named(name))}</code></h3>")
            body += [_figure(v.picture, escape(v.image)) for v in views if v.layer == name]
    if e.jacobians:
        body += ["<h2>Jacobian</h2>", _soft(READ["jacobian"])]
        for of in e.jacobians:
            image, number, start = where(e.images, of.place)
            d = of.decomposition
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
