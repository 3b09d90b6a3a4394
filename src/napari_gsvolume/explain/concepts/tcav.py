"""Testing with concept activation vectors (TCAV): dependence of an output on a concept, against random concepts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import InputError
from ...progress import Budget, Step, finish
from ...types import Float64Array
from ..decomposition.activations import activations
from ..decomposition.components import Components
from ..decomposition.streaming_svd import EXACT_FEATURES
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Inputs
from ..models.hooks import check_direction
from .cav import Concept, Examples, Fit, concept_vector, fit_random_direction, select_examples, sensitivities


@dataclass(frozen=True, eq=False)
class TCAV:
    """Result of the test of a concept at one layer.

    Attributes
    ----------
    concept : Concept
    score : float
        Fraction of the inputs whose output increases along the concept: 0.5 without dependence, 0 and 1 for a constant
        sign.
    sensitivity : float
        Mean derivative of the output along the concept, for a unit shift of all positions.
    random_scores, random_sensitivities : ndarray, (randoms,)
        Scores and sensitivities of random concepts.
    p, p_sensitivity : float
        Two-sided p-values: fraction of the random concepts, with the concept counted, whose score is as far from 0.5,
        or whose sensitivity is as far from 0.
    p_corrected : float
        `p` with Holm's correction for all layers that are tested together.
    alpha : float
        Level of significance.
    cosines : ndarray, (k,), or None
        Cosines of the concept with the components of the layer.
    inputs : int
        Number of inputs.
    """

    concept: Concept
    score: float
    sensitivity: float
    random_scores: Float64Array = field(repr=False)
    random_sensitivities: Float64Array = field(repr=False)
    p: float
    p_sensitivity: float
    p_corrected: float
    alpha: float
    cosines: Float64Array | None
    inputs: int

    @property
    def is_significant(self) -> bool:
        """True if the score is further from 0.5 than those of random concepts, corrected for all layers."""
        return self.p_corrected <= self.alpha

    @property
    def summary(self) -> str:
        """Result in one sentence."""
        low, high = np.percentile(self.random_scores, (2.5, 97.5))
        verdict = "SIGNIFICANT" if self.is_significant else "NOT significant: random concepts are as far from 0.5"
        return (
            f"{self.concept.layer or 'The layer'}: TCAV score {self.score:.2f}, random concepts {low:.2f} to "
            f"{high:.2f}, p = {self.p_corrected:.3f} (Holm), {verdict}; AUC of the concept {self.concept.auc.mean:.2f}."
        )


@dataclass(frozen=True, eq=False)
class TCAVStep(Step):
    """Step of `tcav_steps`, after each random concept.

    Attributes
    ----------
    layers : int
        Number of layers that are finished.
    """

    layers: int = 0

    @property
    def has_result(self) -> bool:
        """True once the test of a layer is finished."""
        return self.layers > 0


def tcav(
    model: Model,
    inputs: Inputs,
    layers: Sequence[str],
    examples: Examples,
    target: Callable[[Any], Tensor],
    **options: Any,
) -> dict[str, TCAV]:
    """Test if an output depends on a concept, at each of several layers [1]_.

    Random concepts are made like the concept, from the examples without it, with labels permuted among whole inputs.
    The null hypothesis is that the output depends on the concept as it does on directions in which such inputs differ
    anyway. Where the output increases along nearly any direction for all inputs (a linear head), random scores are 0 or
    1 too, and no score can be significant; `p_sensitivity` still tests the derivative. A significant result may be
    caused by confounders of the concept in the examples (scanner, position), and the derivative is for infinitesimal
    shifts: see `Edit`.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
    inputs : Tensor, tuple, dict, or list of these
        Inputs whose outputs are tested; not the examples.
    layers : sequence of str
    examples : Examples
        Examples with and without the concept.
    target : callable
        As in `sensitivities`.
    randoms : int
        Number of random concepts.
    fit : {"logistic", "difference"}
        As in `concept_vector`.
    alpha : float
        Level of the test, after Holm's correction for the layers [2]_.
    decompositions : dict of str to Components, optional
        Components of the layers, for the cosines.
    max_samples : int
        Largest number of positions of the examples in each layer, drawn uniformly.
    features_axis, seed
        As in `activations`.
    budget : Budget, optional
        Stop request: the layers that are finished are returned.

    Returns
    -------
    dict of str to TCAV
        By layer.

    Raises
    ------
    InputError
        As in `concept_vector` and `sensitivities`; or if there are too few random concepts for a p below `alpha`.

    References
    ----------
    .. [1] B. Kim et al., "Interpretability beyond feature attribution: quantitative testing with concept activation
       vectors (TCAV)", ICML 2018.
    .. [2] S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
       1979.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    >>> examples = explain.Examples.of_patches(torch.rand(8, 1, 8, 8) + 1, torch.rand(8, 1, 8, 8))
    >>> images = torch.rand(6, 1, 8, 8)
    >>> tests = explain.tcav(network, images, ["0"], examples, lambda y: y[:, 0], randoms=19, fit="difference")
    >>> tests["0"].random_scores.shape
    (19,)
    """
    return finish(tcav_steps(model, inputs, layers, examples, target, **options))


def tcav_steps(
    model: Model,
    inputs: Inputs,
    layers: Sequence[str],
    examples: Examples,
    target: Callable[[Any], Tensor],
    *,
    randoms: int = 100,
    fit: Fit = "logistic",
    alpha: float = 0.05,
    decompositions: Mapping[str, Components] | None = None,
    max_samples: int = 5000,
    features_axis: int | None = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> Generator[TCAVStep, None, dict[str, TCAV]]:
    """Test a concept as a long run, with a step after each random concept; see `tcav`."""
    explained, stop = ExplainedModel.of(model), (budget or Budget()).stop
    least = int(np.ceil(len(layers) / alpha)) - 1
    if randoms < least:
        raise InputError(
            f"With {randoms} random concepts and {len(layers)} layers no score can be significant at {alpha:g}; use "
            f"{least} or more."
        )
    if any(iter(explained.batches(given)) is given for given in (inputs, examples.inputs)):
        raise InputError("Inputs and examples are needed several times; give lists of them.")
    shared: dict[str, Any] = {"features_axis": features_axis, "seed": seed}

    def steps() -> Generator[TCAVStep, None, dict[str, TCAV]]:
        samples = activations(explained, examples.inputs, layers, EXACT_FEATURES, max_samples=max_samples, **shared)
        found: dict[str, TCAV] = {}
        for number, layer in enumerate(samples):
            gradients = sensitivities(explained, inputs, layer, target, **shared)
            concept = concept_vector(samples[layer], examples.labels, fit=fit, seed=seed)
            check_direction(gradients.shape[1], len(concept.direction), layer)
            X, y, groups = select_examples(samples[layer], examples.labels)
            rng = np.random.default_rng([seed, number])
            along = np.empty((randoms, len(gradients)))
            for k in range(randoms):
                along[k] = gradients @ fit_random_direction(X, y, groups, fit, rng)
                fraction = (number + (k + 1) / randoms) / len(samples)
                yield TCAVStep(fraction, f"Random concepts of {layer}", number)
                if stop():
                    return _corrected(found, len(samples))
            cosines = None
            if decompositions is not None and layer in decompositions:
                check_direction(decompositions[layer].features, len(concept.direction), layer)
                cosines = decompositions[layer].concepts.T @ concept.direction
            found[layer] = evaluate_tcav(concept, gradients @ concept.direction, along, alpha, cosines)
        return _corrected(found, len(samples))

    return steps()


def _corrected(found: Mapping[str, TCAV], layers: int) -> dict[str, TCAV]:
    """Return tests with Holm's correction for all layers; those that a stop left untested count as p = 1."""
    p_values = holm_correction([one.p for one in found.values()] + [1.0] * (layers - len(found)))
    return {name: replace(one, p_corrected=float(p)) for (name, one), p in zip(found.items(), p_values, strict=False)}


def evaluate_tcav(
    concept: Concept,
    along: Float64Array,
    along_random: Float64Array,
    alpha: float = 0.05,
    cosines: Float64Array | None = None,
) -> TCAV:
    """Compare derivatives along a concept, (inputs,), with those along random concepts, (randoms, inputs)."""
    score, scores = float(_score(along)), _score(along_random)
    sensitivity, sensitivities = float(along.mean()), along_random.mean(1)
    p, p_sensitivity = (
        float((1 + (np.abs(random) >= np.abs(own) - 1e-12).sum()) / (1 + len(random)))
        for own, random in ((score - 0.5, scores - 0.5), (sensitivity, sensitivities))
    )
    return TCAV(concept, score, sensitivity, scores, sensitivities, p, p_sensitivity, p, alpha, cosines, len(along))


def holm_correction(p_values: Sequence[float]) -> Float64Array:
    """Return p-values with Holm's correction for multiple tests, in the order given.

    References
    ----------
    .. [1] S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
       1979.

    Examples
    --------
    >>> from napari_gsvolume.explain.concepts.tcav import holm_correction
    >>> holm_correction([0.01, 0.04]).tolist()
    [0.02, 0.04]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def _score(along: Float64Array) -> Any:
    """Return the fraction of positive derivatives along the last axis; derivatives of 0 count half."""
    return ((along > 0) + 0.5 * (along == 0)).mean(-1)
