"""Explanation of a model on images: decompositions, concept maps and findings in one long run."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..progress import Budget, Step, finish, rescaled
from ..settings import validated
from ..svd.decomposition import effective_rank, stable_rank
from .concepts.concept_maps import concept_map_steps
from .concepts.grids import ConceptMaps
from .decomposition.activations import activation_steps
from .decomposition.attention import Attention, attention
from .decomposition.components import Components
from .decomposition.jacobian import jacobian
from .decomposition.metrics import participation_ratio
from .findings.attention_heads import find_similar_heads
from .findings.finding import Finding, Thresholds
from .findings.layer_detectors import find_collapse, find_dead_units, find_redundant_units
from .findings.probe_inputs import ProbeInputs, unit_covariance
from .models.explained_model import ExplainedModel, Model
from .models.inputs import Images, Place, Volume, as_volumes, prepare_images
from .settings import ExplainSettings

_ATTENTION_INPUTS = 16  # largest number of inputs for attention
_TOLERANCE, _PRODUCTS = 1e-3, 500  # of Jacobians: enough for figures; `missed` bounds the error
_COMPARED_INPUTS = 4  # largest number of inputs for the comparison of heads
_SAMPLES_PER_INPUT = 64  # smallest number for findings
_SAMPLES = 8192
LAYER_METRICS = ("features", "samples", "effective_rank", "stable_rank", "participation_ratio", "complete", "energy")


@dataclass(frozen=True, eq=False)
class InputJacobian:
    """Jacobian of a model at one input.

    Attributes
    ----------
    place : Place
        Location of the input; ``decomposition.column(i)`` is a tensor (1, channels, *place.extent).
    layer : str
        Layer that is differentiated; "" for the output.
    decomposition : Components
    """

    place: Place
    layer: str
    decomposition: Components


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of a model on images.

    Attributes
    ----------
    model : ExplainedModel
    images : Images
    settings : ExplainSettings
    layers : dict of str to Components
        Activations by layer.
    jacobians : tuple of InputJacobian
    attention : Attention, or None
    attended : tuple of Place
        Inputs of `attention`.
    maps : tuple of ConceptMaps
        Maps of the first ``settings.maps`` concepts, by layer and volume.
    findings : tuple of Finding
    notes : tuple of str
        Parts that were left out, and why.
    seconds : float
    """

    model: ExplainedModel
    images: Images
    settings: ExplainSettings
    layers: dict[str, Components] = field(default_factory=dict)
    jacobians: tuple[InputJacobian, ...] = ()
    attention: Attention | None = None
    attended: tuple[Place, ...] = ()
    maps: tuple[ConceptMaps, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        """True if nothing has been decomposed."""
        return not (self.layers or self.jacobians or self.attention)


@dataclass(frozen=True, eq=False)
class ExplainStep(Step):
    """Step of an explanation.

    Attributes
    ----------
    decomposed : int
        Number of layers and Jacobians that are decomposed.
    """

    decomposed: int = 0

    @property
    def has_result(self) -> bool:
        """True once something is decomposed."""
        return self.decomposed > 0


def explain(
    model: Model, images: Sequence[Volume | ArrayLike], settings: ExplainSettings | None = None, **options: Any
) -> Explanation:
    """Explain a model on images by the singular value decomposition of its activations, Jacobian and attention.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
        A network, or the result of `load_model`.
    images : sequence of Volume or array_like, (Z, Y, X) or (Y, X)
        Images that the model is run on.
    settings : ExplainSettings, optional
        Settings; or give them as keywords, as in ``explain(model, images, k=4)``.

    Returns
    -------
    Explanation

    Raises
    ------
    InputError
        If the model cannot be called with inputs made of the images, there is no such layer, the model has none of the
        requested parts, or returns values that are not finite.

    See Also
    --------
    explain_steps : The same as a long run.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU())
    >>> volume = np.random.default_rng(0).normal(size=(4, 8, 8))
    >>> found = explain.explain(network, [volume], k=2, maps=1)
    >>> found.layers["0"].concepts.shape, found.maps[0].values.shape
    ((4, 2), (1, 4, 8, 8))
    """
    return finish(explain_steps(model, images, validated(ExplainSettings, **options) if settings is None else settings))


def explain_steps(
    model: Model,
    images: Sequence[Volume | ArrayLike],
    settings: ExplainSettings | None = None,
    *,
    budget: Budget | None = None,
) -> Generator[Step, None, Explanation]:
    """Explain a model as a long run: decompositions, findings and concept maps; see `explain`.

    A run that is stopped returns the parts that are finished.
    """
    explained, s, limits = ExplainedModel.of(model), settings or ExplainSettings(), budget or Budget()
    return _Run(explained, as_volumes(images), s, limits).steps()


def layer_metrics(decomposition: Components) -> dict[str, float]:
    """Return the metrics of a layer by the names in `LAYER_METRICS`.

    Ranks use all known values; ``complete`` is True if these are all. ``energy`` is that of the requested modes.
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
    """Return mean and standard deviation of the coordinates of the samples of each input, (inputs, k); NaN without."""
    d = decomposition
    assert d.places is not None
    owners, coordinates = d.places.input, d.scores * d.values
    known = owners >= 0
    count = np.bincount(owners[known], minlength=inputs).astype(float)[:, None]
    count[count == 0] = np.nan
    means, squares = np.zeros((inputs, d.k)), np.zeros((inputs, d.k))
    np.add.at(means, owners[known], coordinates[known])
    means /= count
    np.add.at(squares, owners[known], np.square(coordinates[known] - np.nan_to_num(means)[owners[known]]))
    return means, np.sqrt(squares / count)


class _Run:
    """One explanation, while it is made."""

    def __init__(
        self, explained: ExplainedModel, volumes: list[Volume], settings: ExplainSettings, budget: Budget
    ) -> None:
        self.explained, self.volumes, self.s, self.budget = explained, volumes, settings, budget
        self.names = explained.match(settings.layers)
        self.layers: dict[str, Components] = {}
        self.jacobians: list[InputJacobian] = []
        self.attention: Attention | None = None
        self.attended: list[Place] = []
        self.maps: tuple[ConceptMaps, ...] = ()
        self.findings: list[Finding] = []
        self.notes: list[str] = []

    def steps(self) -> Generator[Step, None, Explanation]:
        began, s = time.perf_counter(), self.s
        yield self._step(0.0, "Preparing the inputs")
        self.images = prepare_images(self.explained, self.volumes, s)
        kinds = ["activations", "jacobian", "attention"] if s.what == "all" else [s.what]
        parts = {"activations": self._activations, "jacobian": self._jacobians, "attention": self._attention}
        end = 0.6 if s.maps and "activations" in kinds else 1.0
        for number, kind in enumerate(kinds):
            if not self.budget.stop():
                share = end / len(kinds)
                yield from rescaled(parts[kind](), number * share, (number + 1) * share)
        if end < 1 and self.layers and not self.budget.stop():
            steps = concept_map_steps(self.explained, self.images, self.layers, s.maps, seed=s.seed, budget=self.budget)
            self.maps = yield from rescaled(steps, end, 1.0)
        if self.budget.stop():
            self.notes.append("Stopped before it was finished.")
        self.notes += [f"The layer {name} is 0 for all of these images." for name, d in self.layers.items() if not d.k]
        yield self._step(1.0, "Done")
        return Explanation(
            self.explained,
            self.images,
            s,
            self.layers,
            tuple(self.jacobians),
            self.attention,
            tuple(self.attended),
            self.maps,
            tuple(self.findings),
            tuple(self.notes),
            time.perf_counter() - began,
        )

    def _step(self, fraction: float, message: str) -> ExplainStep:
        return ExplainStep(fraction, message, len(self.layers) + len(self.jacobians) + (self.attention is not None))

    def _activations(self) -> Generator[Step, None, None]:
        s = self.s
        steps = activation_steps(
            self.explained,
            self.images,
            self.names,
            s.k,
            centre=s.centre,
            max_samples=s.max_samples,
            seed=s.seed,
            budget=self.budget,
        )
        self.layers = yield from rescaled(steps, 0.0, 0.7)
        if self.budget.stop():
            return
        yield self._step(0.7, "Checking for dead, redundant and collapsed units")
        samples = max(_SAMPLES, _SAMPLES_PER_INPUT * len(self.images.places))
        probe, thresholds = ProbeInputs(self.images), Thresholds()
        found = probe.decompose(self.explained, list(self.layers), max_samples=samples, seed=s.seed)
        for name, d in found.items():
            collapsed = find_collapse(name, d.spectrum, d.features, thresholds, total=d.total)
            self.findings += collapsed
            units = None if collapsed else unit_covariance(d)  # the units of a collapsed layer are all redundant
            if units is not None:
                self.findings += find_dead_units(name, np.sqrt(np.clip(np.diag(units), 0, None)), thresholds)
                self.findings += find_redundant_units(name, units, thresholds)
        yield self._step(1.0, "Checked the layers")

    def _jacobians(self) -> Generator[Step, None, None]:
        """Decompose the Jacobian at the middle input of each volume, of the output or of the requested layers."""
        volumes = sorted({place.volume for place in self.images.places})
        layers: list[str | None] = [None] if self.names is None else list(self.names)
        total = len(volumes) * len(layers)
        yield self._step(0.0, "Decomposing the Jacobian")
        for volume in volumes:
            place = self.images.middle(volume, self.s.patch)
            if not self.explained.accepts(self.images.input(place)):  # networks with a fixed input size
                place = self.images.middle(volume)
            for layer in layers:
                if self.budget.stop():
                    return
                d = jacobian(
                    self.explained,
                    self.images.input(place),
                    self.s.k,
                    layer=layer,
                    seed=self.s.seed,
                    tolerance=_TOLERANCE,
                    products=_PRODUCTS,
                )
                self.jacobians.append(InputJacobian(place, layer or "", d))
                yield self._step(len(self.jacobians) / total, "Decomposing the Jacobian")

    def _attention(self) -> Generator[Step, None, None]:
        s = self.s
        yield self._step(0.0, "Decomposing the attention maps")
        places = self.images.subset(_ATTENTION_INPUTS)
        try:
            self.attention = attention(self.explained, self.images.at(places), s.k, layers=self.names, seed=s.seed)
        except ValueError as error:
            if s.what != "all":
                raise
            self.notes.append(f"Attention is left out: {error}")
            return
        self.attended = places
        few = self.images.at(places[:: math.ceil(len(places) / _COMPARED_INPUTS)])
        self.findings += find_similar_heads(self.explained, few, self.names, Thresholds(), seed=s.seed)
        yield self._step(1.0, "Decomposed the attention maps")
