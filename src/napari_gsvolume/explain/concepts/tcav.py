"""Whether an output depends on a concept, tested against random concepts.

B. Kim et al., "Interpretability beyond feature attribution: quantitative testing with concept activation vectors
(TCAV)", ICML 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import InputError
from ...types import Float64Array
from ..decomposition.activations import activations
from ..decomposition.components import Components
from ..decomposition.streaming_svd import EXACT
from ..models.forward import Inputs, iterate_batches
from ..models.hooks import check_direction
from .cav import Concept, Examples, Fit, concept_vector, fit_random_direction, select_examples, sensitivities


@dataclass(frozen=True, eq=False)
class TCAV:
    """Whether an output depends on a concept, at one layer.

    Attributes
    ----------
    concept : Concept
    score : float
        Part of the inputs whose output rises along the concept: 0.5 for no dependence, 0 and 1 for a constant one.
    sensitivity : float
        Mean derivative of the output along the concept, for a unit move at all positions.
    random_scores, random_sensitivities : ndarray, (randoms,)
        The same of random concepts.
    p, p_sensitivity : float
        Two-sided: part of the random concepts, itself counted, whose score is as far from 0.5, or whose sensitivity is
        as far from 0.
    p_corrected : float
        `p` after Holm's correction for all layers tested together.
    alpha : float
    cosines : ndarray, (k,), or None
        Of the concept with each component of the layer.
    inputs : int
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
    def significant(self) -> bool:
        """Whether the score is further from 0.5 than those of random concepts, corrected for the layers tested."""
        return self.p_corrected <= self.alpha

    @property
    def said(self) -> str:
        """One sentence."""
        low, high = np.percentile(self.random_scores, (2.5, 97.5))
        verdict = "SIGNIFICANT" if self.significant else "NOT significant: as far from 0.5 as random concepts are"
        return (
            f"{self.concept.layer or 'The layer'}: TCAV score {self.score:.2f}, random concepts {low:.2f} to "
            f"{high:.2f}, p = {self.p_corrected:.3f} (Holm), {verdict}; concept told apart with AUC "
            f"{self.concept.auc.mean:.2f}."
        )


@dataclass(frozen=True, eq=False)
class TCAVStep:
    """How far a test is.

    Attributes
    ----------
    progress : float
        0 to 1.
    message : str
    result : dict of str to TCAV, or None
        By layer; with the last step.
    """

    progress: float
    message: str
    result: dict[str, TCAV] | None = field(default=None, repr=False)


def tcav(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    examples: Examples,
    of: Callable[[Any], Tensor],
    **more: Any,
) -> dict[str, TCAV]:
    """Test whether an output depends on a concept, at each of several layers.

    A random concept is made as the concept is, of the examples that are without it, by labels dealt out at random, to
    inputs as wholes (see `labelled.permuted`): of random images, as Kim et al. have it. So what the test says is that
    the output depends on this direction otherwise than on those in which such inputs differ anyway. Where it rises
    along nearly any direction for all inputs alike (a linear head), random scores are 0 or 1 too, and no score can be
    significant; then `p_sensitivity` still tells. What is significant may be what goes along with the concept in the
    examples (the scanner, the position), and the derivative is for small moves: see `Edit`.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, dict, or list of these
        Whose output is asked about; not the examples.
    layers : sequence of str
    examples : Examples
    of : callable
        As of `sensitivities`.
    randoms : int
        How many random concepts.
    fit : {"logistic", "difference"}
        As of `concept_vector`.
    alpha : float
        Level of the test, after Holm's correction for the layers.
    decompositions : dict of str to Components, optional
        Of the layers, for the cosines.
    max_samples : int
        Positions of the examples that are used, of each layer, drawn evenly.
    features_axis, seed
        As of `activations`.

    Returns
    -------
    dict of str to TCAV
        By layer.

    Raises
    ------
    ValueError
        As of `concept_vector` and `sensitivities`; or if there are too few random concepts for a p below `alpha`.
    """
    for step in tcav_steps(model, inputs, layers, examples, of, **more):
        last = step
    assert last.result is not None
    return last.result


def tcav_steps(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    examples: Examples,
    of: Callable[[Any], Tensor],
    *,
    randoms: int = 100,
    fit: Fit = "logistic",
    alpha: float = 0.05,
    decompositions: Mapping[str, Components] | None = None,
    max_samples: int = 5000,
    features_axis: int | None = None,
    seed: int = 0,
) -> Iterator[TCAVStep]:
    """Yield a step after each random concept of `tcav`; the last one has the result."""
    least = int(np.ceil(len(layers) / alpha)) - 1
    if randoms < least:
        raise InputError(
            f"With {randoms} random concepts and {len(layers)} layers no score can be significant at {alpha:g}; take "
            f"{least} or more."
        )
    if iter(iterate_batches(inputs)) is inputs or iter(iterate_batches(examples.inputs)) is examples.inputs:
        raise InputError("Inputs and examples are needed several times; give lists of them.")
    shared: dict[str, Any] = {"features_axis": features_axis, "seed": seed}
    taken = activations(model, examples.inputs, layers, EXACT, max_samples=max_samples, **shared)
    found: dict[str, TCAV] = {}
    for number, layer in enumerate(taken):
        gradients = sensitivities(model, inputs, layer, of, **shared)
        concept = concept_vector(taken[layer], examples.labels, fit=fit, seed=seed)
        check_direction(gradients.shape[1], len(concept.direction), layer)
        X, y, groups = select_examples(taken[layer], examples.labels)
        rng = np.random.default_rng([seed, number])
        along = np.empty((randoms, len(gradients)))
        for k in range(randoms):
            along[k] = gradients @ fit_random_direction(X, y, groups, fit, rng)
            yield TCAVStep((number + (k + 1) / randoms) / len(taken), f"Random concepts of {layer}")
        cosines = None
        if decompositions is not None and layer in decompositions:
            check_direction(decompositions[layer].features, len(concept.direction), layer)
            cosines = decompositions[layer].concepts.T @ concept.direction
        found[layer] = evaluate_tcav(concept, gradients @ concept.direction, along, alpha, cosines)
    corrected = holm_correction([one.p for one in found.values()])
    results = {
        name: replace(one, p_corrected=float(p)) for (name, one), p in zip(found.items(), corrected, strict=True)
    }
    yield TCAVStep(1.0, "Done", results)


def evaluate_tcav(
    concept: Concept,
    along: Float64Array,
    along_random: Float64Array,
    alpha: float = 0.05,
    cosines: Float64Array | None = None,
) -> TCAV:
    """Return the test of derivatives along a concept, (inputs,), against those along random ones, (randoms, inputs)."""
    score, scores = float(_score(along)), _score(along_random)
    sensitivity, sensitivities = float(along.mean()), along_random.mean(1)
    p, p_sensitivity = (
        float((1 + (np.abs(random) >= np.abs(own) - 1e-12).sum()) / (1 + len(random)))
        for own, random in ((score - 0.5, scores - 0.5), (sensitivity, sensitivities))
    )
    return TCAV(
        concept, score, sensitivity, scores, sensitivities, p, p_sensitivity, p, alpha, cosines, len(along)
    )  # fmt: skip


def holm_correction(p_values: Sequence[float]) -> Float64Array:
    """Return p-values corrected for being several (S. Holm, Scand. J. Statist. 6, 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def _score(along: Float64Array) -> Any:
    """Return the part of the inputs, along the last axis, whose derivative is positive; of 0 a half counts."""
    return ((along > 0) + 0.5 * (along == 0)).mean(-1)
