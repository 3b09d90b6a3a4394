"""Concept activation vectors: directions in the activations of a layer that discriminate a concept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import sklearn
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ...errors import InputError
from ...types import Float64Array, IntArray
from ..decomposition.components import Components
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Inputs
from .cross_validation import Measure, cross_validate
from .labels import labels_at, permute_labels, reconstruct_activations

Fit = Literal["logistic", "difference"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples with and without a concept.

    Attributes
    ----------
    inputs : Tensor, tuple, dict, or list of these
        Arguments of the model.
    labels : array_like, (inputs,), or sequence of array_like
        One value for each input (a patch), or an array painted on the grid of each input: 1 and above with the concept,
        0 without it, negative where undecided.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume.explain import Examples
    >>> Examples.of_patches(torch.ones(3, 1, 8, 8), torch.zeros(5, 1, 8, 8)).labels
    array([1, 1, 1, 0, 0, 0, 0, 0])
    """

    inputs: Inputs
    labels: ArrayLike | Sequence[ArrayLike]

    @classmethod
    def of_patches(cls, positives: Tensor, negatives: Tensor) -> Examples:
        """Return examples of patches (B, C, *extent) with the concept and without it."""
        return cls([positives, negatives], np.repeat([1, 0], [len(positives), len(negatives)]))


@dataclass(frozen=True, eq=False)
class Concept:
    """A concept activation vector.

    Attributes
    ----------
    direction : ndarray, (features,)
        Unit vector in the space of the activations, towards the concept.
    auc : Measure
        Held-out AUC of the classification of activations with and without the concept; near 0.5 if there is no such
        direction.
    layer : str
    fit : {"logistic", "difference"}
    """

    direction: Float64Array = field(repr=False)
    auc: Measure
    layer: str
    fit: Fit


def concept_vector(
    decomposition: Components, labels: ArrayLike | Sequence[ArrayLike], *, fit: Fit = "logistic", seed: int = 0
) -> Concept:
    """Return the concept activation vector of a concept in a layer [1]_.

    Painted labels belong to positions. Labels of inputs belong to the mean activation over the positions of each input,
    so patches should be filled by the concept that they show.

    Parameters
    ----------
    decomposition : Components
        Activations, with all modes and the locations of the samples.
    labels
        As in `Examples`.
    fit : {"logistic", "difference"}
        Normal of the plane of a logistic regression [1]_: the best discriminant, which for correlated features may
        point elsewhere than the change of the activations when the concept appears. Or the difference of the means,
        which is that change [2]_.
    seed : int

    Raises
    ------
    InputError
        If labels do not fit, or fewer than two inputs are with, or without, the concept.

    References
    ----------
    .. [1] B. Kim et al., "Interpretability beyond feature attribution: quantitative testing with concept activation
       vectors (TCAV)", ICML 2018.
    .. [2] F. Pahde et al., "Navigating neural space: revisiting concept activation vectors to overcome directional
       divergence", ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Conv2d(1, 2, 1)
    >>> patches = torch.rand(12, 1, 4, 4) + torch.tensor([0.0, 3.0]).repeat(6).view(12, 1, 1, 1)
    >>> components = explain.activations(network, patches, [""])[""]
    >>> explain.concept_vector(components, [0, 1] * 6).auc.mean
    1.0
    """
    X, y, groups = select_examples(decomposition, labels)
    auc = cross_validate(X, y, groups, "classes", seed=seed)["auc"]
    return Concept(fit_direction(X, y, fit), auc, decomposition.layer, fit)


def sensitivities(
    model: Model,
    inputs: Inputs,
    layer: str,
    target: Callable[[Any], Tensor],
    *,
    features_axis: int | None = None,
    seed: int = 0,
) -> Float64Array:
    """Return the gradient of a scalar target with respect to the features of a layer, (inputs, features).

    Gradients are summed over positions: times a direction they are the directional derivative for a shift of all
    positions along it.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
        It must treat the inputs of a batch independently.
    inputs : Tensor, tuple, dict, or iterable of these
    layer : str
    target : callable
        Maps the output of the model to one number per input, (B,): a logit, ``lambda y: y[:, 3]``; the mean of a region
        of an image, ``lambda y: y[:, 0, 8:16, 8:16].mean((1, 2))``.
    features_axis, seed
        As in `activations`.

    Raises
    ------
    InputError
        If `target` returns no such numbers, or does not depend on the layer; or the model cannot be called so.
    """
    rows = []
    explained = ExplainedModel.of(model)
    for number, batch in enumerate(explained.batches(inputs)):
        leaves: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []

        def insert_leaf(tensor: Tensor, view: Callable[[Tensor], Tensor], leaves: list[Any] = leaves) -> Tensor | None:
            if leaves:  # called again: the output of its first call goes through this one
                return None
            leaf = tensor.detach().requires_grad_()
            leaves.append((leaf, view))
            return leaf * 1  # a leaf must not be changed in place

        with (
            explained.evaluation(seed + number),
            torch.enable_grad(),
            explained.intercept(layer, insert_leaf, features_axis),
        ):
            given = target(explained.call(batch))
            if not leaves:
                raise InputError(f"The layer {layer!r} is never called by the model.")
            leaf, view = leaves[0]
            if not isinstance(given, Tensor) or given.ndim != 1:
                what = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise InputError(f"The target has one number per input, (B,); it returns {what}.")
            if not given.requires_grad:
                raise InputError(f"The target does not depend on the layer {layer!r}.")
            [gradient] = torch.autograd.grad(given.sum(), leaf)
            gradients = view(gradient)  # (pieces, *grid, features)
        if len(gradients) % len(given):
            raise InputError(f"The layer {layer!r} has {len(gradients)} outputs for {len(given)} inputs.")
        rows.append(gradients.reshape(len(given), -1, gradients.shape[-1]).sum(1).double().cpu().numpy())
    if not rows:
        raise InputError("There are no inputs to run the model with.")
    return np.concatenate(rows)


def fit_direction(X: Float64Array, y: IntArray, fit: Fit) -> Float64Array:
    """Return the unit direction (features,) from samples of class 0 to samples of class 1."""
    direction = X[y == 1].mean(0) - X[y == 0].mean(0)
    if fit == "logistic":
        # One scale for all features: the penalty is then the same in any basis of the activations.
        model = LogisticRegression(class_weight="balanced", max_iter=300)
        with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            warnings.simplefilter("ignore", ConvergenceWarning)  # of weights that hardly change any more
            direction = model.fit((X - X.mean(0)) / max(float(np.sqrt(X.var(0).mean())), 1e-300), y).coef_[0]
    return np.asarray(direction / max(float(np.linalg.norm(direction)), 1e-300))


def fit_random_direction(
    X: Float64Array, y: IntArray, groups: IntArray, fit: Fit, rng: np.random.Generator
) -> Float64Array:
    """Return the direction (features,) of a random concept: permuted labels of samples without the concept."""
    negatives = y == 0
    while True:
        labels = permute_labels(y, groups, rng)[negatives]
        if len(np.unique(labels)) == 2:
            return fit_direction(X[negatives], labels, fit)


def select_examples(
    decomposition: Components, labels: ArrayLike | Sequence[ArrayLike]
) -> tuple[Float64Array, IntArray, IntArray]:
    """Return activations (n, features), their classes, 1 with the concept, (n,), and their inputs (n,)."""
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no locations, so they have no labels.")
    y = labels_at(places, labels)
    X, owners = reconstruct_activations(decomposition), places.input
    if all(np.ndim(one) == 0 for one in labels):  # type: ignore[union-attr]
        inputs, first, count = np.unique(owners, return_index=True, return_counts=True)
        order = np.argsort(owners, kind="stable")
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        X, y, owners = np.add.reduceat(X[order], starts, axis=0) / count[:, None], y[first], inputs
    kept = y >= 0
    if (y[kept] == 0).sum() < 2 or not (y > 0).any():
        raise InputError("Examples with the concept (labels of 1 and more) and two or more without it (0) are needed.")
    return X[kept], (y[kept] > 0).astype(np.int64), owners[kept]
