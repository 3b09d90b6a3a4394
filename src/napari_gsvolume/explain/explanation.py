"""A model explained by images: the steps, and what they come to. Shell and widget use the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..svd.decomposition import effective_rank, stable_rank
from .decomposition.activations import activation_steps
from .decomposition.attention import Attention, attention
from .decomposition.components import Components
from .decomposition.jacobian import jacobian
from .decomposition.metrics import participation_ratio
from .findings.attention_heads import find_similar_heads
from .findings.finding import Finding, Thresholds
from .findings.layer_detectors import find_collapse, find_dead_units, find_redundant_units
from .findings.probe_inputs import ProbeInputs, unit_covariance
from .models.inputs import Images, Place, Volume, prepare_images
from .models.loading import ExplainedModel, match_layers
from .settings import ExplainSettings

_ATTENDED = 16  # inputs whose attention is decomposed, at most
_TOLERANCE, _PRODUCTS = 1e-3, 500  # of Jacobians: for pictures; `missed` says what is open
_COMPARED = 4  # inputs by which heads are compared, at most
_SAMPLES_AN_INPUT = 64  # of those that findings are made of, at least
_SAMPLES = 8192
LAYER_FIGURES = ("features", "samples", "effective_rank", "stable_rank", "participation_ratio", "complete", "energy")


@dataclass(frozen=True, eq=False)
class InputJacobian:
    """The Jacobian of a model at one input.

    Attributes
    ----------
    place : Place
        Where that lies; ``decomposition.column(i)`` is a tensor (1, channels, *place.extent).
    layer : str
        What is differentiated; "" for the output.
    decomposition : Components
    """

    place: Place
    layer: str
    decomposition: Components


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model was found to compute on images.

    Attributes
    ----------
    loaded : ExplainedModel
    images : Images
    settings : ExplainSettings
    layers : dict of str to Components
        Of activations, by layer.
    jacobians : tuple of InputJacobian
    attention : Attention, or None
    attended : tuple of Place
        The inputs that `attention` is of.
    findings : tuple of Finding
    notes : tuple of str
        What was left out, and why.
    seconds : float
    """

    loaded: ExplainedModel
    images: Images
    settings: ExplainSettings
    layers: dict[str, Components] = field(default_factory=dict)
    jacobians: tuple[InputJacobian, ...] = ()
    attention: Attention | None = None
    attended: tuple[Place, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing has been decomposed."""
        return not (self.layers or self.jacobians or self.attention)


@dataclass(frozen=True, eq=False)
class ExplainStep:
    """How far an explanation is.

    Attributes
    ----------
    progress : float
        0 to 1.
    message : str
    result : Explanation, or None
        With the last step.
    """

    progress: float
    message: str
    result: Explanation | None = None


def explain(loaded: ExplainedModel, volumes: Sequence[Volume], settings: ExplainSettings | None = None) -> Explanation:
    """Explain a model by images; see `explain_steps`."""
    for step in explain_steps(loaded, volumes, settings):
        last = step
    assert last.result is not None
    return last.result


def explain_steps(
    loaded: ExplainedModel,
    volumes: Sequence[Volume],
    settings: ExplainSettings | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[ExplainStep]:
    """Yield the steps of explaining a model by images; the last one has the result.

    Parameters
    ----------
    loaded : ExplainedModel
    volumes : sequence of Volume
    settings : ExplainSettings, optional
    stop : callable
        Asked after each step: whether to end with what there is.

    Raises
    ------
    ValueError
        If the model cannot be called with what is made of the images, there is no such layer, nothing of what is asked
        for in the model, or what it gives is not finite.
    """
    s = settings or ExplainSettings()
    began = time.perf_counter()
    names = match_layers(loaded.model, s.layers)
    yield ExplainStep(0.0, "Looking at what the model takes")
    images = prepare_images(loaded, volumes, s)
    parts = _parts(s)
    layers: dict[str, Components] = {}
    jacobians: list[InputJacobian] = []
    heads: Attention | None = None
    attended: list[Place] = []
    findings: list[Finding] = []
    notes: list[str] = []
    for number, part in enumerate(parts):
        if stop():
            notes.append("Stopped before it was finished.")
            break
        share = 1 / len(parts)
        if part == "activations":
            for progress, message, reached in _activations(loaded, images, s, names, stop):
                yield ExplainStep((number + progress) * share, message)
                layers, findings = reached[0], list(reached[1])
        elif part == "jacobian":
            for progress, one in _jacobians(loaded, images, s, names, stop):
                jacobians += [] if one is None else [one]
                yield ExplainStep((number + progress) * share, "Multiplying by the Jacobian")
        else:
            yield ExplainStep(number * share, "Watching the heads")
            attended = images.some(_ATTENDED)
            try:
                inputs = images.of(attended)
                heads = attention(loaded.model, inputs, s.k, layers=names, seed=s.seed)
            except ValueError as error:
                if s.what != "all":
                    raise
                attended = []
                notes.append(f"Attention is left out: {error}")
            else:
                few = images.of(attended[:: math.ceil(len(attended) / _COMPARED)])
                findings += find_similar_heads(loaded.model, few, names, Thresholds(), seed=s.seed)
    notes += [f"The layer {name} gives 0 for all of these images." for name, d in layers.items() if not d.k]
    result = Explanation(
        loaded, images, s, layers, tuple(jacobians), heads, tuple(attended), tuple(findings), tuple(notes),
        time.perf_counter() - began,
    )  # fmt: skip
    yield ExplainStep(1.0, "Done", result)


def layer_metrics(decomposition: Components) -> dict[str, float]:
    """Return the figures of a layer by the names in `LAYER_FIGURES`.

    Ranks are of all values that are known; ``complete`` says whether these are all. ``energy`` is that of the modes
    that were asked for together.
    """
    d = decomposition
    return {
        "features": d.features,
        "samples": d.samples,
        "effective_rank": float(effective_rank(d.spectrum)) if d.k else 0.0,
        "stable_rank": float(stable_rank(d.spectrum)) if d.k else 0.0,
        "participation_ratio": float(participation_ratio(d.spectrum)) if d.k else 0.0,
        "complete": d.complete,
        "energy": float(d.energy[-1]) if d.k else 0.0,
    }


def input_statistics(decomposition: Components, inputs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the coordinates of each input's samples, (inputs, k); NaN where none is."""
    d = decomposition
    assert d.places is not None
    whose, coordinates = d.places.input, d.scores * d.values
    told = whose >= 0
    count = np.bincount(whose[told], minlength=inputs).astype(float)[:, None]
    count[count == 0] = np.nan
    means, squares = np.zeros((inputs, d.k)), np.zeros((inputs, d.k))
    np.add.at(means, whose[told], coordinates[told])
    means /= count
    np.add.at(squares, whose[told], np.square(coordinates[told] - np.nan_to_num(means)[whose[told]]))
    return means, np.sqrt(squares / count)


def _parts(s: ExplainSettings) -> list[str]:
    return ["activations", "jacobian", "attention"] if s.what == "all" else [s.what]


def _activations(
    loaded: ExplainedModel, images: Images, s: ExplainSettings, names: list[str] | None, stop: Callable[[], bool]
) -> Iterator[tuple[float, str, tuple[dict[str, Components], list[Finding]]]]:
    """Yield how far the decomposition of activations is, and what there is of it."""
    batches = len(images.batches)
    more = {"centre": s.centre, "max_samples": s.max_samples, "seed": s.seed}
    layers: dict[str, Components] = {}
    for step in activation_steps(loaded.model, images, names, s.k, **more):  # type: ignore[arg-type]
        layers = step.result or {}
        yield min(0.7, 0.7 * step.batch / batches), step.message, (layers, [])
    if stop():
        return
    yield 0.7, "Looking for what is wrong", (layers, [])
    samples = max(_SAMPLES, _SAMPLES_AN_INPUT * len(images.places))
    found: list[Finding] = []
    thresholds = Thresholds()
    for name, d in ProbeInputs(images).decomposed(loaded.model, list(layers), max_samples=samples, seed=s.seed).items():
        here = find_collapse(name, d.spectrum, d.features, thresholds, total=d.total)
        units = None if here else unit_covariance(d)  # of a layer that has collapsed, all units are alike
        if units is not None:
            here += find_dead_units(name, np.sqrt(np.clip(np.diag(units), 0, None)), thresholds)
            here += find_redundant_units(name, units, thresholds)
        found += here
    yield 1.0, "Looked at the layers", (layers, found)


def _jacobians(
    loaded: ExplainedModel, images: Images, s: ExplainSettings, names: list[str] | None, stop: Callable[[], bool]
) -> Iterator[tuple[float, InputJacobian | None]]:
    """Yield the Jacobians at the middle input of each volume, of the output, or of the layers that were asked for."""
    volumes = sorted({place.volume for place in images.places})
    layers: list[str | None] = [None] if names is None else list(names)
    total, done = len(volumes) * len(layers), 0
    yield 0.0, None
    for volume in volumes:
        place = images.middle(volume, s.patch)
        if not images.accepted(loaded.model, place):  # networks of one size
            place = images.middle(volume)
        for layer in layers:
            if stop():
                return
            d = jacobian(
                loaded.model,
                images.input(place),
                s.k,
                layer=layer,
                seed=s.seed,
                tolerance=_TOLERANCE,
                products=_PRODUCTS,
            )
            done += 1
            yield done / total, InputJacobian(place, layer or "", d)
