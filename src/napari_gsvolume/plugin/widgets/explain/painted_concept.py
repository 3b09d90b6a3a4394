"""Test of a concept that is painted on an image: its direction in a layer, and its effect on the output. No Qt here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ....errors import InputError
from ....explain.concepts.cav import Examples
from ....explain.concepts.probing import LinearProbe, linear_probe
from ....explain.concepts.tcav import TCAV, tcav_steps
from ....explain.decomposition.activations import activations
from ....explain.decomposition.streaming_svd import EXACT_FEATURES
from ....explain.explanation import Explanation
from ....explain.models.forward import find_tensor
from ....explain.models.inputs import Images, Place
from ....progress import Budget, Step, rescaled
from ....super_resolution.schemes import Prediction
from .worker import holding_models

_SAMPLES = 2000  # largest number of positions
_RANDOMS = 39  # random concepts, and permutations: the smallest p is 0.025
_TESTED = 24  # largest number of inputs whose outputs are tested


@dataclass(frozen=True, eq=False)
class PaintedConcept:
    """Result of the test of a painted concept in a layer.

    Attributes
    ----------
    layer : str
    probe : LinearProbe
        Classification of positions with and without the concept, with slices held out.
    tcav : TCAV
        Dependence of the output on the concept.
    painted : int
        Number of painted inputs.
    about : str
        Description of the tested output.
    cosines : ndarray, (k,)
        Cosines of the concept with the components of the layer.
    """

    layer: str
    probe: LinearProbe
    tcav: TCAV
    painted: int
    about: str
    cosines: NDArray[np.float64] = field(repr=False)

    @property
    def summary(self) -> str:
        """Results in a few sentences."""
        accuracy = self.probe.measures["accuracy"]
        low, high = accuracy.interval
        best = int(np.abs(self.cosines).argmax())
        return (
            f"{self.layer}: classified with an accuracy of {accuracy.mean:.3f} ({max(0.0, low):.3f} to "
            f"{min(1.0, high):.3f}) in held-out slices, by chance {np.mean(accuracy.chance):.3f}, "
            f"p = {accuracy.p:.3f}; {self.painted} inputs are painted.\n{self.tcav.summary} Output: {self.about}.\n"
            f"Nearest component: concept {best + 1}, cosine {self.cosines[best]:+.2f}."
        )


@holding_models
def painted_concept_steps(
    explanation: Explanation, volume: int, layer: str, labels: NDArray[Any], output: int, *, budget: Budget
) -> Generator[Step, None, PaintedConcept | None]:
    """Test a painted concept in a layer; the result is None if it was stopped."""
    if not explanation.layers[layer].k:
        raise InputError(f"The layer {layer} is 0 for all of these images; there is no concept in it.")
    places, examples = painted_inputs(explanation.images, volume, labels)
    others = [place for place in explanation.images.subset(2 * _TESTED) if place not in places] or places
    tested = explanation.images.at(others[:: -(-len(others) // _TESTED)])
    yield Step(0.0, "Classifying the painted voxels")
    inputs = explanation.images.at(places)
    seed, model = explanation.settings.seed, explanation.model
    samples = activations(model, inputs, [layer], EXACT_FEATURES, max_samples=_SAMPLES, seed=seed)[layer]
    probe = linear_probe(samples, examples, permutations=_RANDOMS, seed=seed)
    if budget.stop():
        return None
    target, about = tested_output(explanation, output)
    steps = tcav_steps(
        model,
        tested,
        [layer],
        Examples(inputs, examples),
        target,
        randoms=_RANDOMS,
        decompositions={layer: explanation.layers[layer]},
        max_samples=_SAMPLES,
        seed=seed,
        budget=budget,
    )
    tests = yield from rescaled(steps, 0.3, 1.0)
    if layer not in tests:
        return None
    cosines = tests[layer].cosines
    assert cosines is not None
    return PaintedConcept(layer, probe, tests[layer], len(places), about, cosines)


def painted_inputs(images: Images, volume: int, labels: NDArray[Any]) -> tuple[list[Place], list[NDArray[np.int64]]]:
    """Return the painted inputs of an image, and their labels: 1 with the concept, 0 without it, -1 undecided.

    With one label, unpainted voxels of painted inputs are without the concept. With several, label 1 is the concept,
    the others are without it, and unpainted voxels are undecided.

    Raises
    ------
    InputError
        If fewer than two inputs are painted.
    """
    shape = images.volumes[volume].data.shape
    if labels.shape != shape:
        raise InputError(
            f"The labels have {' x '.join(map(str, labels.shape))} voxels, the image has "
            f"{' x '.join(map(str, shape))}; they have to be equal."
        )
    array = labels[None] if labels.ndim == 2 else labels
    several = len(np.unique(array[array > 0])) > 1
    places, examples = [], []
    for place in images.places:
        if place.volume != volume:
            continue
        cut = images.crop(array, place)
        if not cut.any():
            continue
        places.append(place)
        meant = np.where(cut == 1, 1, np.where(cut > 0, 0, -1)) if several else (cut > 0).astype(np.int64)
        examples.append(meant.astype(np.int64))
    if len(places) < 2:
        raise InputError(
            f"{len(places)} of the slices (or tiles) that the model was run on are painted; paint the concept in two "
            "or more, so that one can be held out."
        )
    return places, examples


def tested_output(explanation: Explanation, output: int) -> tuple[Callable[[Any], Tensor], str]:
    """Return the function from the output to one number per input, and its description."""
    if explanation.model.sr is not None:
        # The projection fixes the mean, so only the detail can depend on a concept.
        return _detail, "detail of the output (mean square of the differences of neighbours)"

    def number(given: Any) -> Tensor:
        tensor = find_tensor(given, "The model")
        if tensor.ndim < 2 or not 0 <= output < tensor.shape[1]:
            raise InputError(
                f"The output has {tensor.shape[1] if tensor.ndim > 1 else 1} channels; there is no {output}."
            )
        return tensor[:, output].flatten(1).mean(1) if tensor.ndim > 2 else tensor[:, output]

    return number, f"mean of the output channel {output}"


def _detail(given: Any) -> Tensor:
    assert isinstance(given, Prediction)
    return given.image.diff(dim=1).square().flatten(1).mean(1) + given.image.diff(dim=2).square().flatten(1).mean(1)
