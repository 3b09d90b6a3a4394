"""Linear probes: decoding of attributes from the activations of a layer, compared with chance."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...progress import Budget, Step, finish, rescaled
from ...types import Float64Array
from ..decomposition.activations import activation_steps
from ..decomposition.components import Components, SampleLocations
from ..decomposition.streaming_svd import EXACT_FEATURES
from ..models.explained_model import Model
from ..models.forward import Inputs
from .cross_validation import Kind, Measure, cross_validate, fit_linear_directions
from .labels import How, labels_at, reconstruct_activations


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Linear model that decodes labels from the activations of a layer.

    Attributes
    ----------
    layer : str
    kind : {"classes", "values"}
    measures : dict of str to Measure
        ``"auc"`` (mean of each class against the others for several classes) and ``"accuracy"``, or ``"r2"``.
    selectivity : float or None
        Difference of the first metric to that of a control task, where each position of the grid has a random label,
        the same in all inputs [1]_. A small value means that the probe could memorize anything. None if not requested.
    direction : ndarray, (features, outputs)
        Unit columns along which the prediction changes fastest, fitted on all samples: one column for two classes or
        values, otherwise one per class.
    classes : tuple
        Labels; empty for values.
    samples, groups : int
        Numbers of samples and of groups.

    References
    ----------
    .. [1] J. Hewitt & P. Liang, "Designing and interpreting probes with control tasks", EMNLP 2019.
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
        """AUC, or R^2."""
        return next(iter(self.measures.values()))

    @property
    def summary(self) -> str:
        """Result in one sentence."""
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
    """Decode labels from the samples of a layer by a cross-validated linear model [1]_.

    Samples of one input are correlated, so whole inputs are held out, and labels are permuted among whole inputs. That
    an attribute can be decoded does not imply that the network uses it (see `tcav` and `Edit`); that it cannot holds
    for linear models, and for this number of samples.

    Parameters
    ----------
    decomposition : Components
        Activations, with the locations of the samples; with all modes to probe the activations themselves.
    labels : array_like, (inputs,), or sequence of array_like
        As in `labels_at`. Samples with negative labels of classes, or with NaN, are left out.
    kind : {"classes", "values"}, optional
        Classification or regression; regression for real numbers, if omitted.
    how : {"majority", "nearest", "mean"}, optional
        As in `labels_at`; majority for classes and mean for values, if omitted.
    of : {"activations", "scores"}
        Features: A reconstructed from the modes, or U.
    groups : array_like, (samples,), optional
        Groups that are held out together, instead of inputs; `block_groups` for one volume.
    folds : int
        Number of folds, limited to the number of groups.
    permutations : int
        Number of permutations of the labels.
    control : bool
        Compute the selectivity.
    regularisation : float
        Penalty of the weights of standardized features: that of the ridge, the inverse of C of the logistic regression.
    seed : int

    Raises
    ------
    InputError
        If labels do not fit, all are equal, or there are too few groups.

    References
    ----------
    .. [1] G. Alain & Y. Bengio, "Understanding intermediate layers using linear classifier probes", arXiv 2016.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> images = torch.rand(12, 1, 4, 4) + torch.tensor([0.0, 3.0]).repeat(6).view(12, 1, 1, 1)
    >>> components = explain.activations(torch.nn.Conv2d(1, 2, 1), images, [""])[""]
    >>> probe = explain.linear_probe(components, [0, 1] * 6, permutations=0)
    >>> probe.main.mean, probe.classes
    (1.0, (0, 1))
    """
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no locations, so they have no labels.")
    kinds = {np.asarray(one).dtype.kind for one in labels}  # type: ignore[union-attr]
    if kind is None:
        kind = "values" if "f" in kinds else "classes"
    y = labels_at(places, labels, how or ("mean" if kind == "values" else "majority"))
    owners = places.input if groups is None else np.asarray(groups)
    if owners.shape != y.shape:
        raise InputError(f"There are {len(y)} samples, and groups of the shape {owners.shape}.")
    X = (
        reconstruct_activations(decomposition)
        if of == "activations"
        else np.asarray(decomposition.scores, dtype=np.float64)
    )
    if kind == "values":
        kept = np.isfinite(y.astype(np.float64))
    else:
        kept = y >= 0 if y.dtype.kind in "iuf" else np.ones(len(y), dtype=bool)
    X, y, owners = X[kept], y[kept], owners[kept]
    fitted = (kind, folds, regularisation, seed)
    measures = cross_validate(X, y, owners, *fitted, permutations=permutations)
    selectivity = None
    if control:
        name = next(iter(measures))
        random = cross_validate(X, _control(places, y, kept, seed), owners, *fitted)
        selectivity = measures[name].mean - random[name].mean
    return LinearProbe(
        decomposition.layer,
        kind,
        measures,
        selectivity,
        fit_linear_directions(X, y, kind, regularisation),
        tuple(np.unique(y).tolist()) if kind == "classes" else (),
        len(y),
        len(np.unique(owners)),
    )


def _control(places: SampleLocations, y: NDArray[Any], kept: NDArray[np.bool_], seed: int) -> NDArray[Any]:
    """Return a random label for each position of a grid, with the frequencies of the labels."""
    shapes = np.unique(places.grids, axis=0, return_inverse=True)[1].reshape(-1)
    spots = np.column_stack([shapes[places.piece], places.position])[kept]
    which = np.unique(spots, axis=0, return_inverse=True)[1].reshape(-1)
    return np.asarray(np.random.default_rng(seed).choice(y, size=int(which.max()) + 1)[which])


@dataclass(frozen=True, eq=False)
class ProbeStep(Step):
    """Step of `probe_steps`.

    Attributes
    ----------
    probes : dict of str to LinearProbe
        Probes that are finished, by layer.
    """

    probes: dict[str, LinearProbe] = field(default_factory=dict, repr=False)

    @property
    def has_result(self) -> bool:
        """True once a probe is finished."""
        return bool(self.probes)


def linear_probes(
    model: Model,
    inputs: Inputs,
    labels: ArrayLike | Sequence[ArrayLike],
    layers: Sequence[str],
    **options: Any,
) -> dict[str, LinearProbe]:
    """Probe several layers of a model; see `probe_steps` for the parameters, `linear_probe` for the result."""
    return finish(probe_steps(model, inputs, labels, layers, **options))


def probe_steps(
    model: Model,
    inputs: Inputs,
    labels: ArrayLike | Sequence[ArrayLike],
    layers: Sequence[str],
    *,
    max_samples: int | None = 5000,
    features_axis: int | Mapping[str, int] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    **options: Any,
) -> Generator[Step, None, dict[str, LinearProbe]]:
    """Probe several layers as a long run, with a step after each layer.

    The p-values are for each layer separately: of many layers some are below 0.05 by chance.

    Parameters
    ----------
    model, inputs, layers, features_axis, seed
        As in `activations`.
    labels, **options
        As in `linear_probe`.
    max_samples : int, optional
        Largest number of positions of each layer, drawn uniformly.
    budget : Budget, optional
        Stop request: the probes that are finished are returned.
    """
    limits = budget or Budget()
    samples = activation_steps(
        model,
        inputs,
        layers,
        EXACT_FEATURES,
        max_samples=max_samples,
        features_axis=features_axis,
        seed=seed,
        budget=limits,
    )

    def steps() -> Generator[Step, None, dict[str, LinearProbe]]:
        probes: dict[str, LinearProbe] = {}
        components = yield from rescaled(samples, 0.0, 0.3)
        for number, (layer, one) in enumerate(components.items(), 1):
            if limits.stop():
                break
            probes[layer] = linear_probe(one, labels, seed=seed, **options)
            yield ProbeStep(0.3 + 0.7 * number / len(components), f"Probed {layer}", dict(probes))
        return probes

    return steps()
