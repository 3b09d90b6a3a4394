"""Running a model on fixed inputs, and the principal components of its layers there, of all inputs or of some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...errors import InputError
from ...types import Float64Array
from ..decomposition.activations import activations
from ..decomposition.components import Components
from ..models.forward import Batch, Inputs, iterate_batches, iterate_tensors
from .input_moments import InputMoments

SAMPLES = 8192
"""Positions of a layer that are looked at, of all inputs together."""
_MODES = 1024  # up to so many features, all modes are had, and so the covariance of units


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The principal components of a layer, of some of its samples.

    Attributes
    ----------
    spectrum : ndarray, (r,)
        Singular values of the samples about their mean, all that are known, descending.
    concepts : ndarray, (features, k)
        Unit columns.
    shares : ndarray, (k,)
        Part of the variance that each has.
    total : float
        Sum of the squares of all values.
    """

    spectrum: Float64Array
    concepts: Float64Array
    shares: Float64Array
    total: float

    @classmethod
    def of(cls, decomposition: Components, k: int, rows: NDArray[np.bool_] | None = None) -> PrincipalComponents:
        """Return the first k components of some of the samples of a centred decomposition, or of all."""
        d = decomposition
        spectrum, turned, total = d.spectrum, np.eye(d.k)[:, :k], d.total
        if rows is not None and not rows.all():
            x = d.scores[rows] * d.values
            x -= x.mean(0)
            squares, turned = np.linalg.eigh(x.T @ x)
            squares, turned = np.clip(squares[::-1], 0, None), turned[:, ::-1][:, : min(k, len(x) - 1)]
            beyond = (total - float(np.square(d.values).sum())) * rows.mean()  # the modes that are not known
            spectrum, total = np.sqrt(squares), float(squares.sum()) + max(0.0, float(beyond))
        values = spectrum[: turned.shape[1]]
        return cls(spectrum, d.concepts @ turned, np.square(values) / (total or 1.0), total)


class ProbeInputs:
    """Inputs, in several parts, that a model is run on again and again.

    Parameters
    ----------
    *parts : Tensor, tuple, dict, iterable of these, or a function that returns one
        As of `activations`. What can be had only once is kept.
    """

    def __init__(self, *parts: Inputs | Callable[[], Inputs]) -> None:
        self._parts = [list(part) if isinstance(part, Iterator) else part for part in parts]
        self.counts = [0] * len(parts)
        """Inputs of each part, as of the last time."""

    def __iter__(self) -> Iterator[Batch]:
        self.counts = [0] * len(self._parts)
        for k, part in enumerate(self._parts):
            for batch in iterate_batches(part() if callable(part) else part):
                self.counts[k] += next((len(tensor) for tensor in iterate_tensors(batch) if tensor.ndim), 1)
                yield batch

    def decomposed(self, model: nn.Module, layers: Sequence[str] | None, **more: Any) -> dict[str, Components]:
        """Return the principal components of layers, of all parts together."""
        return activations(model, self, layers, _MODES, centre=True, **more)


def input_moments(decomposition: Components, concepts: Float64Array, shares: Float64Array, inputs: int) -> InputMoments:
    """Return the moments of each input along given directions, (features, k), in the span of the decomposition.

    Raises
    ------
    ValueError
        If it is not known which samples are of which input, or an input has none.
    """
    d = decomposition
    assert d.places is not None
    if (d.places.inputs < 0).any():
        raise InputError(f"Layer {d.layer} gives one thing for a whole batch, not one for each input; leave it out.")
    coordinates = d.scores @ (d.values[:, None] * (d.concepts.T @ concepts))
    whose = d.places.input
    order = np.argsort(whose, kind="stable")
    try:
        return InputMoments.of(coordinates[order], whose[order], inputs, shares)
    except ValueError as error:
        raise InputError(f"Layer {d.layer}: {error}") from error


def unit_covariance(decomposition: Components) -> Float64Array | None:
    """Return the covariance of the units, (features, features), or None where it is not all known."""
    d = decomposition
    if d.total > 0 and float(np.square(d.values).sum()) < (1 - 1e-6) * d.total:
        return None
    return np.asarray((d.concepts * np.square(d.values)) @ d.concepts.T / max(1, d.samples - 1))


def check_labels(labels: Mapping[str, Any] | Any, inputs: int, what: str) -> NDArray[Any]:
    """Return one label for each input as an array; raise ValueError if they are not as many."""
    array = np.asarray(labels)
    if array.shape != (inputs,):
        raise InputError(f"{what} are one for each of the {inputs} inputs; these have the shape {array.shape}.")
    return array
