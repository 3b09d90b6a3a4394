"""A concept painted on an image: its direction in a layer, whether the output depends on it. No Qt here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from ....explain.decomposition.streaming_svd import EXACT
from ....explain.explanation import Explanation
from ....explain.models.forward import find_tensor
from ....explain.models.inputs import Images, Place
from ....super_resolution.schemes import Prediction
from .worker import Progress, run_in_background

_SAMPLES = 2000  # positions that a concept is told by, at most
_RANDOMS = 39  # random concepts, and permutations for chance: p is 0.025 at least
_ASKED = 24  # inputs whose output is asked about, at most


@dataclass(frozen=True, eq=False)
class PaintedConcept:
    """What is known of a concept in a layer.

    Attributes
    ----------
    layer : str
    probe : LinearProbe
        How well positions with and without it are told apart, slices held out.
    tcav : TCAV
        Whether the output depends on it; its ``cosines`` are those with the layer's components.
    painted : int
        Inputs that were painted.
    about : str
        What output was asked about.
    """

    layer: str
    probe: LinearProbe
    tcav: TCAV
    painted: int
    about: str
    cosines: NDArray[np.float64] = field(repr=False)

    @property
    def said(self) -> str:
        """Sentences with the figures."""
        accuracy = self.probe.measures["accuracy"]
        low, high = accuracy.interval
        best = int(np.abs(self.cosines).argmax())
        return (
            f"{self.layer}: told apart with an accuracy of {accuracy.mean:.3f} ({max(0.0, low):.3f} to "
            f"{min(1.0, high):.3f}) in slices held out, by chance {np.mean(accuracy.chance):.3f}, "
            f"p = {accuracy.p:.3f}; {self.painted} inputs are painted.\n{self.tcav.said} Asked about: {self.about}.\n"
            f"Nearest component: concept {best + 1}, cosine {self.cosines[best]:+.2f}."
        )


def run_painted(
    of: Explanation, volume: int, layer: str, labels: NDArray[Any], output: int, stop: Callable[[], bool]
) -> Iterator[Progress]:
    """Find a painted concept in a layer; last comes the `PaintedConcept`."""
    yield from run_in_background(_painted(of, volume, layer, labels, output, stop))


def _painted(
    of: Explanation, volume: int, layer: str, labels: NDArray[Any], output: int, stop: Callable[[], bool]
) -> Iterator[Progress]:
    if not of.layers[layer].k:
        raise InputError(f"The layer {layer} gives 0 for all of these images; there is no concept in it.")
    places, examples = painted_inputs(of.images, volume, labels)
    others = [place for place in of.images.some(2 * _ASKED) if place not in places] or places
    asked = of.images.of(others[:: -(-len(others) // _ASKED)])
    yield Progress(0.0, "Looking at what is painted")
    inputs = of.images.of(places)
    seed, model = of.settings.seed, of.loaded.model
    taken = activations(model, inputs, [layer], EXACT, max_samples=_SAMPLES, seed=seed)[layer]
    probe = linear_probe(taken, examples, permutations=_RANDOMS, seed=seed)
    if stop():
        return
    function, about = asked_about(of, output)
    more: dict[str, Any] = {"randoms": _RANDOMS, "decompositions": {layer: of.layers[layer]}, "seed": seed}
    for step in tcav_steps(
        model, asked, [layer], Examples(inputs, examples), function, max_samples=_SAMPLES, **more
    ):  # fmt: skip
        yield Progress(0.3 + 0.7 * step.progress, step.message)
        if stop():
            return
    assert step.result is not None
    test = step.result[layer]
    assert test.cosines is not None
    yield Progress(1.0, "Done", PaintedConcept(layer, probe, test, len(places), about, test.cosines))


def painted_inputs(images: Images, volume: int, labels: NDArray[Any]) -> tuple[list[Place], list[NDArray[np.int64]]]:
    """Return the inputs of an image that are painted, and their labels: 1 the concept, 0 not, -1 left open.

    With one label, what is not painted of an input that is painted is not the concept. With several, 1 is the concept,
    the others are what it is not, and all else is left open.

    Raises
    ------
    ValueError
        If less than two inputs are painted.
    """
    shape = images.volumes[volume].data.shape
    if labels.shape != shape:
        raise InputError(
            f"The labels have {' x '.join(map(str, labels.shape))} voxels, the image has "
            f"{' x '.join(map(str, shape))}; they have to be of the same."
        )
    array = labels[None] if labels.ndim == 2 else labels
    several = len(np.unique(array[array > 0])) > 1
    places, examples = [], []
    for place in images.places:
        if place.volume != volume:
            continue
        cut = images.cut(array, place)
        if not cut.any():
            continue
        places.append(place)
        meant = np.where(cut == 1, 1, np.where(cut > 0, 0, -1)) if several else (cut > 0).astype(np.int64)
        examples.append(meant.astype(np.int64))
    if len(places) < 2:
        raise InputError(
            f"{len(places)} of the slices (or tiles) that the model was given are painted; paint the concept in two or "
            "more, so that one can be held out."
        )
    return places, examples


def asked_about(of: Explanation, output: int) -> tuple[Callable[[Any], Tensor], str]:
    """Return the function from what a model gives to one number an input, and what it is called."""
    if of.loaded.sr is not None:
        # The mean is fixed by what was measured, so it is the detail that can depend on anything.
        return _detail, "how much detail the output has (mean square of what neighbours differ by)"

    def number(given: Any) -> Tensor:
        tensor = find_tensor(given, "The model")
        if tensor.ndim < 2 or not 0 <= output < tensor.shape[1]:
            raise InputError(
                f"The output has {tensor.shape[1] if tensor.ndim > 1 else 1} channels; there is no {output}."
            )
        return tensor[:, output].flatten(1).mean(1) if tensor.ndim > 2 else tensor[:, output]

    return number, f"the mean of the output's channel {output}"


def _detail(given: Any) -> Tensor:
    assert isinstance(given, Prediction)
    squares = given.image.diff(dim=1).square().flatten(1).mean(1) + given.image.diff(dim=2).square().flatten(1).mean(1)
    return squares
