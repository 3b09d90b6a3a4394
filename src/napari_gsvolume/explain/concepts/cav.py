"""Concept activation vectors: the directions in a layer's activations that tell a concept (Kim et al. 2018)."""

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
from torch import Tensor, nn

from ...errors import InputError
from ...types import Float64Array, IntArray
from ..decomposition.components import Components
from ..models.forward import Inputs, call_model, evaluation_mode, iterate_batches
from ..models.hooks import intercept_layer
from .cross_validation import Measure, cross_validate
from .labels import labels_at, permute_labels, reconstruct_activations

Fit = Literal["logistic", "difference"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Where a concept is, and where it is not.

    Attributes
    ----------
    inputs : Tensor, tuple, dict, or list of these
        What the model is called with.
    labels : array_like, (inputs,), or sequence of array_like
        One value for each input, a patch then, or for each an array painted on its grid, a Labels layer: 1 and above
        where the concept is, 0 where it is not, negative where that is left open.
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
        Unit, in the space of the layer's activations, towards the concept.
    auc : Measure
        How well activations with and without the concept are told apart, held out. Near 0.5 there is no such direction.
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
    """Return the direction in a layer's activations that tells a concept.

    Painted labels are those of positions. Labels of inputs are those of the mean activation over each input's
    positions, so patches should be filled by what they show.

    Parameters
    ----------
    decomposition : Components
        Of the activations, with all modes and places.
    labels
        As of `Examples`.
    fit : {"logistic", "difference"}
        The normal of a logistic regression's plane, as Kim et al. have it: what best tells the concept, which may point
        elsewhere than where activations go when the concept appears, where features are correlated. Or the difference
        of the means, which is the latter (F. Pahde et al., "Navigating neural space", ICLR 2025).
    seed : int

    Raises
    ------
    ValueError
        If labels do not fit, or the concept is in fewer than two inputs, or lacking in fewer.
    """
    X, y, groups = select_examples(decomposition, labels)
    auc = cross_validate(X, y, groups, "classes", seed=seed)["auc"]
    return Concept(fit_direction(X, y, fit), auc, decomposition.layer, fit)


def sensitivities(
    model: nn.Module,
    inputs: Inputs,
    layer: str,
    of: Callable[[Any], Tensor],
    *,
    features_axis: int | None = None,
    seed: int = 0,
) -> Float64Array:
    """Return the derivative of an output by a layer's features, moved alike at all positions, (inputs, features).

    Times a direction it is the directional derivative along it.

    Parameters
    ----------
    model : nn.Module
        It must treat the inputs of a batch by themselves.
    inputs : Tensor, tuple, dict, or iterable of these
    layer : str
    of : callable
        From what the model gives to one number an input, (B,): a logit, ``lambda y: y[:, 3]``; the mean of a region of
        an image, ``lambda y: y[:, 0, 8:16, 8:16].mean((1, 2))``.
    features_axis, seed
        As of `activations`.

    Raises
    ------
    ValueError
        If `of` gives other things, or does not depend on the layer; or the model cannot be called so.
    """
    rows = []
    for number, batch in enumerate(iterate_batches(inputs)):
        leaves: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []

        def see(tensor: Tensor, view: Callable[[Tensor], Tensor], leaves: list[Any] = leaves) -> Tensor | None:
            if leaves:  # called again: what its first call gave goes through this one
                return None
            leaf = tensor.detach().requires_grad_()
            leaves.append((leaf, view))
            return leaf * 1  # a leaf must not be changed in place

        with (
            evaluation_mode(model, seed + number),
            torch.enable_grad(),
            intercept_layer(model, layer, see, features_axis),
        ):
            given = of(call_model(model, batch))
            if not leaves:
                raise InputError(f"The layer {layer!r} is never called by the model.")
            leaf, view = leaves[0]
            if not isinstance(given, Tensor) or given.ndim != 1:
                what = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise InputError(f"One number an input is differentiated, (B,); `of` gives {what}.")
            if not given.requires_grad:
                raise InputError(f"What `of` gives does not depend on the layer {layer!r}.")
            [gradient] = torch.autograd.grad(given.sum(), leaf)
            moved = view(gradient)  # (pieces, *grid, features)
        if len(moved) % len(given):
            raise InputError(f"The layer {layer!r} gives {len(moved)} things for {len(given)} inputs.")
        rows.append(moved.reshape(len(given), -1, moved.shape[-1]).sum(1).double().cpu().numpy())
    if not rows:
        raise InputError("There are no inputs to run the model with.")
    return np.concatenate(rows)


def fit_direction(X: Float64Array, y: IntArray, fit: Fit) -> Float64Array:
    """Return the unit direction (features,) from samples of class 0 to those of class 1."""
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
    """Return the direction (features,) of a random concept: labels dealt out anew, to samples without the concept."""
    without = y == 0
    while True:
        labels = permute_labels(y, groups, rng)[without]
        if len(np.unique(labels)) == 2:
            return fit_direction(X[without], labels, fit)


def select_examples(
    decomposition: Components, labels: ArrayLike | Sequence[ArrayLike]
) -> tuple[Float64Array, IntArray, IntArray]:
    """Return activations (n, features), whether they are of the concept (n,), and their inputs (n,)."""
    places = decomposition.places
    if places is None:
        raise InputError("These samples have no places, so they have no labels.")
    y = labels_at(places, labels)
    X, whose = reconstruct_activations(decomposition), places.input
    if all(np.ndim(one) == 0 for one in labels):  # type: ignore[union-attr]
        inputs, first, count = np.unique(whose, return_index=True, return_counts=True)
        order = np.argsort(whose, kind="stable")
        starts = np.concatenate([[0], np.cumsum(count)[:-1]])
        X, y, whose = np.add.reduceat(X[order], starts, axis=0) / count[:, None], y[first], inputs
    kept = y >= 0
    if (y[kept] == 0).sum() < 2 or not (y > 0).any():
        raise InputError(
            "Examples are needed of the concept, labels of 1 and more, and two or more of what it is not, 0."
        )
    return X[kept], (y[kept] > 0).astype(np.int64), whose[kept]
