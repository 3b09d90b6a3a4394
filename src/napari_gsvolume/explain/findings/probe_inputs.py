"""Fixed probe inputs of a model, and the principal components of its layers on all or some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...types import Float64Array
from ..decomposition.activations import activations
from ..decomposition.components import Components
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Batch, Inputs, iterate_tensors
from .input_moments import InputMoments

SAMPLES = 8192
"""Number of positions of a layer that are sampled, of all inputs together."""
_MODES = 1024  # up to this number of features, all modes are computed, and so the covariance of units


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Principal components of some samples of a layer.

    Attributes
    ----------
    spectrum : ndarray, (r,)
        Known singular values of the samples about their mean, descending.
    concepts : ndarray, (features, k)
        Unit columns.
    shares : ndarray, (k,)
        Fractions of the variance.
    total : float
        Sum of squares of all values.
    """

    spectrum: Float64Array
    concepts: Float64Array
    shares: Float64Array
    total: float

    @classmethod
    def of(cls, decomposition: Components, k: int, rows: NDArray[np.bool_] | None = None) -> PrincipalComponents:
        """Return the first k components of some or all samples of a centred decomposition."""
        d = decomposition
        spectrum, turned, total = d.spectrum, np.eye(d.k)[:, :k], d.total
        if rows is not None and not rows.all():
            x = d.scores[rows] * d.values
            x -= x.mean(0)
            squares, turned = np.linalg.eigh(x.T @ x)
            squares, turned = np.clip(squares[::-1], 0, None), turned[:, ::-1][:, : min(k, len(x) - 1)]
            beyond = (total - float(np.square(d.values).sum())) * rows.mean()  # unknown modes
            spectrum, total = np.sqrt(squares), float(squares.sum()) + max(0.0, float(beyond))
        values = spectrum[: turned.shape[1]]
        return cls(spectrum, d.concepts @ turned, np.square(values) / (total or 1.0), total)


class ProbeInputs:
    """Inputs, in several parts, on which a model is run repeatedly.

    Parameters
    ----------
    *parts : Tensor, tuple, dict, iterable of these, or a function that returns one
        As in `activations`. Generators are kept as lists.
    """

    def __init__(self, *parts: Inputs | Callable[[], Inputs]) -> None:
        self._parts = [list(part) if isinstance(part, Iterator) else part for part in parts]
        self.counts = [0] * len(parts)
        """Number of inputs of each part in the last run."""

    def __iter__(self) -> Iterator[Batch]:
        self.counts = [0] * len(self._parts)
        for k, part in enumerate(self._parts):
            for batch in ExplainedModel.batches(part() if callable(part) else part):
                self.counts[k] += next((len(tensor) for tensor in iterate_tensors(batch) if tensor.ndim), 1)
                yield batch

    def decompose(self, model: Model, layers: Sequence[str] | None, **options: Any) -> dict[str, Components]:
        """Return the principal components of layers on all parts together."""
        return activations(model, self, layers, _MODES, centre=True, **options)


def input_moments(decomposition: Components, concepts: Float64Array, shares: Float64Array, inputs: int) -> InputMoments:
    """Return the moments of each input along directions, (features, k), in the span of the decomposition.

    Raises
    ------
    InputError
        If the inputs of the samples are unknown, or an input has no samples.
    """
    d = decomposition
    assert d.places is not None
    if (d.places.inputs < 0).any():
        raise InputError(f"Layer {d.layer} has one output for a whole batch, not one for each input; leave it out.")
    coordinates = d.scores @ (d.values[:, None] * (d.concepts.T @ concepts))
    owners = d.places.input
    order = np.argsort(owners, kind="stable")
    try:
        return InputMoments.of(coordinates[order], owners[order], inputs, shares)
    except ValueError as error:
        raise InputError(f"Layer {d.layer}: {error}") from error


def unit_covariance(decomposition: Components) -> Float64Array | None:
    """Return the covariance of the units, (features, features), or None if it is not fully known."""
    d = decomposition
    if d.total > 0 and float(np.square(d.values).sum()) < (1 - 1e-6) * d.total:
        return None
    return np.asarray((d.concepts * np.square(d.values)) @ d.concepts.T / max(1, d.samples - 1))


def check_labels(labels: Mapping[str, Any] | Any, inputs: int, what: str) -> NDArray[Any]:
    """Return one label for each input as an array; raise InputError if their number differs."""
    array = np.asarray(labels)
    if array.shape != (inputs,):
        raise InputError(f"{what} have one value for each of the {inputs} inputs; these have the shape {array.shape}.")
    return array
