"""Results of an explanation as CSV tables, with all digits."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...svd.decomposition import cumulative_energy
from ..explanation import LAYER_METRICS, Explanation, input_statistics, layer_metrics
from ..findings.finding import Finding
from ..models.inputs import Images, Place

_FINDING = (
    "kind",
    "layer",
    "component",
    "epoch",
    "subject",
    "statistic",
    "threshold",
    "low",
    "high",
    "p_value",
    "sentence",
)


def build_tables(explanation: Explanation) -> dict[str, str]:
    """Return the tables of the parts of an explanation, by file name."""
    e = explanation
    made = {"findings.csv": findings_table(e.findings)}
    if e.layers:
        rows = ([name, *layer_metrics(d).values()] for name, d in e.layers.items())
        made["layers.csv"] = _csv(("layer", *LAYER_METRICS), rows)
        made["spectra.csv"] = _csv(("layer", "mode", "value", "energy"), _spectra(e))
        k = max(d.k for d in e.layers.values())
        columns = [f"concept_{mode}" for mode in range(k)]
        made["concepts.csv"] = _csv(("layer", "feature", *columns), _concepts(e, k))
        made["scores.csv"] = _csv(("layer", "image", "slice", "start", "mode", "mean", "deviation"), _scores(e))
    if e.jacobians:
        made["jacobian.csv"] = _csv(("image", "slice", "start", "layer", "mode", "value", "energy"), _jacobians(e))
    if e.attention is not None:
        modes = [f"mode_{mode}" for mode in range(e.attention.modes.k)]
        made["heads.csv"] = _csv(("layer", "head", "entropy", "nearest", "likeness", *modes), _heads(e))
    return made


def findings_table(found: Iterable[Finding]) -> str:
    """Return findings as a table."""
    rows = (
        [
            f.kind,
            f.layer,
            f.component,
            f.epoch,
            f.subject,
            f.statistic,
            f.threshold,
            *(f.interval or (None, None)),
            f.p_value,
            f.sentence,
        ]
        for f in found
    )
    return _csv(_FINDING, rows)


def describe_location(images: Images, place: Place) -> tuple[str, Any, str]:
    """Return the volume, the slice, and the first voxel of an input; "" for the first voxel of the slice."""
    whole = not any(place.start)
    return images.volumes[place.volume].name, place.slice, "" if whole else " ".join(map(str, place.start))


def _spectra(e: Explanation) -> Iterator[list[Any]]:
    for name, d in e.layers.items():
        known = float(np.square(d.spectrum).sum())
        energy = cumulative_energy(d.spectrum) * (known / d.total if d.total else 1.0)
        yield from (
            [name, mode, float(s), float(part)] for mode, (s, part) in enumerate(zip(d.spectrum, energy, strict=True))
        )


def _concepts(e: Explanation, k: int) -> Iterator[list[Any]]:
    for name, d in e.layers.items():
        for feature, row in enumerate(d.concepts.tolist()):
            yield [name, feature, *row, *[None] * (k - d.k)]


def _scores(e: Explanation) -> Iterator[list[Any]]:
    for name, d in e.layers.items():
        for place, means, deviations in zip(e.images.places, *input_statistics(d, len(e.images.places)), strict=True):
            for mode, (mean, deviation) in enumerate(zip(means.tolist(), deviations.tolist(), strict=True)):
                yield [name, *describe_location(e.images, place), mode, mean, deviation]


def _jacobians(e: Explanation) -> Iterator[list[Any]]:
    for of in e.jacobians:
        d = of.decomposition
        for mode, (value, energy) in enumerate(zip(d.values.tolist(), d.energy.tolist(), strict=True)):
            yield [*describe_location(e.images, of.place), of.layer, mode, value, energy]


def _heads(e: Explanation) -> Iterator[list[Any]]:
    assert e.attention is not None
    others = e.attention.similarity - 2 * np.eye(len(e.attention.heads))
    for number, (layer, head) in enumerate(e.attention.heads):
        nearest = int(others[number].argmax())
        alone = len(others) == 1
        name = None if alone else " ".join(map(str, e.attention.heads[nearest]))
        likeness = None if alone else float(others[number, nearest])
        modes = e.attention.modes.concepts[number].tolist()
        yield [layer, head, float(e.attention.entropy[number]), name, likeness, *modes]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            ["" if value is None or (isinstance(value, float) and math.isnan(value)) else value for value in row]
        )
    return text.getvalue()
