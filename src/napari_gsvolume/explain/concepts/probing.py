"""Probes: whether an attribute can be read off a layer by a linear model, beyond chance (G. Alain & Y. Bengio 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ...errors import InputError
from ...types import Float64Array
from ..decomposition.activations import activation_steps
from ..decomposition.components import Components, SampleLocations
from ..decomposition.streaming_svd import EXACT
from ..models.forward import Inputs
from .cross_validation import Kind, Measure, cross_validate, fit_linear_directions
from .labels import How, labels_at, reconstruct_activations


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What a linear model reads off a layer.

    Attributes
    ----------
    layer : str
    kind : {"classes", "values"}
    measures : dict of str to Measure
        ``"auc"`` (of several classes the mean of each against the others) and ``"accuracy"``, or ``"r2"``.
    selectivity : float or None
        By how much the first measure is above that of a control task, where each position of the grid has a random
        label, the same in all inputs (J. Hewitt & P. Liang, "Designing and interpreting probes with control tasks",
        EMNLP 2019). Little says that the probe could learn anything from this layer. None where not asked for.
    direction : ndarray, (features, outputs)
        Unit columns: along which activations (or scores) change what is read fastest; fitted on all samples. One
        column, of two classes or values; else one a class.
    classes : tuple
        The labels; none of values.
    samples, groups : int
    """

    layer: str
    kind: Kind
    measures: dict[str, Measure]
    selectivity: float | None
    direction: Float64Array = field(repr=False)
    classes: tuple[Any, ...]
    samples: int
    groups: int

    @property
    def main(self) -> Measure:
        """The AUC, or R^2."""
        return next(iter(self.measures.values()))

    @property
    def said(self) -> str:
        """One sentence."""
        name, m = next(iter(self.measures)), self.main
        low, high = m.interval
        text = f"{self.layer or 'The layer'}: {name} {m.mean:.3f} ({low:.3f} to {high:.3f})"
        if len(m.chance) == 0:
            return f"{text}, not compared with chance."
        verdict = "above chance" if m.p <= 0.05 else "not above chance"
        return f"{text}, {verdict} ({np.mean(m.chance):.3f}, p = {m.p:.3f})."


def linear_probe(
    decomposition: Components,
    labels: ArrayLike | Sequence[ArrayLike],
    *,
    kind: Kind | None = None,
    how: How | None = None,
    of: Literal["activations", "scores"] = "activations",
    groups: ArrayLike | None = None,
    folds: int = 5,
    permutations: int = 100,
    control: bool = False,
    regularisation: float = 1.0,
    seed: int = 0,
) -> LinearProbe:
    """Try to read labels off the samples of a layer.

    Samples of one input are alike, so inputs are held out as wholes, and labels are permuted as wholes for chance. That
    an attribute can be read does not say that the network uses it (see `run_tcav` and `Edit`); that it cannot
    says so of linear models alone, and of as many samples.

    Parameters
    ----------
    decomposition : Components
        Of activations, with places: of all modes to probe the activations themselves.
    labels : array_like, (inputs,), or sequence of array_like
        See `labels_at`. Negative labels of classes, and values that are NaN, are left out.
    kind : {"classes", "values"}, optional
        By the labels when omitted: real numbers are values.
    how : {"majority", "nearest", "mean"}, optional
        See `labels_at`; the majority of classes and the mean of values when omitted.
    of : {"activations", "scores"}
        What is read from: A, as far as the modes make it up, or U.
    groups : array_like, (samples,), optional
        What is held out together instead of inputs; `block_groups` of one volume.
    folds : int
        At most as many as groups.
    permutations : int
        How often chance is tried.
    control : bool
        Whether to find the selectivity.
    regularisation : float
        Of weights of standardised features: the penalty of the ridge, the inverse of C of the logistic regression.
    seed : int

    Raises
    ------
    ValueError
        If labels do not fit, all are the same, or there are too few groups.
    """
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no places, so they have no labels.")
    kinds = {np.asarray(one).dtype.kind for one in labels}  # type: ignore[union-attr]
    if kind is None:
        kind = "values" if "f" in kinds else "classes"
    y = labels_at(places, labels, how or ("mean" if kind == "values" else "majority"))
    whose = places.input if groups is None else np.asarray(groups)
    if whose.shape != y.shape:
        raise InputError(f"There are {len(y)} samples, and groups of the shape {whose.shape}.")
    X = (
        reconstruct_activations(decomposition)
        if of == "activations"
        else np.asarray(decomposition.scores, dtype=np.float64)
    )
    if kind == "values":
        kept = np.isfinite(y.astype(np.float64))
    else:
        kept = y >= 0 if y.dtype.kind in "iuf" else np.ones(len(y), dtype=bool)
    X, y, whose = X[kept], y[kept], whose[kept]
    fitted = (kind, folds, regularisation, seed)
    measures = cross_validate(X, y, whose, *fitted, permutations=permutations)
    selectivity = None
    if control:
        name = next(iter(measures))
        random = cross_validate(X, _control(places, y, kept, seed), whose, *fitted)
        selectivity = measures[name].mean - random[name].mean
    return LinearProbe(
        decomposition.layer,
        kind,
        measures,
        selectivity,
        fit_linear_directions(X, y, kind, regularisation),
        tuple(np.unique(y).tolist()) if kind == "classes" else (),
        len(y),
        len(np.unique(whose)),
    )


def _control(places: SampleLocations, y: NDArray[Any], kept: NDArray[np.bool_], seed: int) -> NDArray[Any]:
    """Return a random label for each position of a grid, as frequent as the labels are."""
    shapes = np.unique(places.grids, axis=0, return_inverse=True)[1].reshape(-1)
    spots = np.column_stack([shapes[places.piece], places.position])[kept]
    which = np.unique(spots, axis=0, return_inverse=True)[1].reshape(-1)
    return np.asarray(np.random.default_rng(seed).choice(y, size=int(which.max()) + 1)[which])


def probe_steps(
    model: nn.Module,
    inputs: Inputs,
    labels: ArrayLike | Sequence[ArrayLike],
    layers: Sequence[str],
    *,
    max_samples: int | None = 5000,
    features_axis: int | Mapping[str, int] | None = None,
    seed: int = 0,
    **more: Any,
) -> Iterator[LinearProbe]:
    """Yield a `linear_probe` of each of several layers; of at most so many positions each, drawn evenly.

    The p-values are of each layer by itself: of many layers some are below 0.05 by chance.
    """
    taken = {"max_samples": max_samples, "seed": seed, "features_axis": features_axis}
    for step in activation_steps(model, inputs, layers, EXACT, **taken):  # type: ignore[arg-type]
        result = step.result
    assert result is not None
    for one in result.values():
        yield linear_probe(one, labels, seed=seed, **more)
