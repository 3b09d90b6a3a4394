"""Restoration of modes over the layers of a super-resolution network, and over its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ...errors import InputError
from ...super_resolution.model import SRModel
from ...types import Float64Array
from ..concepts.labels import reconstruct_activations
from ..decomposition.activations import activations
from ..decomposition.components import Components
from ..decomposition.streaming_svd import EXACT_FEATURES
from ..models.explained_model import ExplainedModel
from .restoration import Lens, Predictor, check_slices, compute_lens, predict

if TYPE_CHECKING:
    from ...super_resolution.training import SRTrainingStep


def lens_over_layers(
    model: SRModel | nn.Module,
    lows: ArrayLike | Tensor,
    targets: ArrayLike | Tensor,
    layers: Sequence[str] | None = None,
    *,
    factors: Sequence[float] | None = None,
    ridge: float = 10.0,
    folds: int = 5,
) -> dict[str, Lens]:
    """Analyse the linear decoding of the target from the activations of each layer, mode by mode.

    At each position of a layer one decoder, shared by all positions, predicts the pixels of the target inside it, as
    their difference from the spline; a decoder of zeros is the spline. Slices are decoded by a decoder of other slices.
    Non-linear information, and information at other positions, is not decoded; and the network need not use what can be
    decoded. A decoder may even do better than the network, which was not trained on these slices.

    Parameters
    ----------
    model : SRModel or nn.Module
    lows, targets, factors
        As in `sr_lens`; at least two slices.
    layers : sequence of str, optional
        All modules with parameters and one output per slice on a grid that divides the target, if omitted.
    ridge : float
        Penalty of the weights of the decoder, on standardized features.
    folds : int
        Number of folds of the cross-validation over slices.

    Raises
    ------
    InputError
        As in `sr_lens` and `activations`; or if a requested layer has no such grid.
    """
    low, truth, base = check_slices(lows, targets, factors)
    if len(low) < 2:
        raise InputError("Decoders are validated on held-out slices; two or more are needed.")
    explained = ExplainedModel.of(model)
    found: dict[str, Lens] = {}
    for name, components in activations(explained, low, layers, EXACT_FEATURES).items():
        blocks = _blocks(components, truth)
        if blocks is None:
            if layers is None:
                continue
            raise InputError(
                f"The grid of the layer {name!r} does not divide the target's {truth.shape[1]} x {truth.shape[2]} "
                "pixels once a slice, so it cannot be decoded."
            )
        rows, (ry, rx) = blocks
        count, gy, gx, features = rows.shape
        beyond = (truth - base).reshape(count, gy, ry, gx, rx).transpose(0, 1, 3, 2, 4)
        decoded = np.empty_like(beyond)
        for train, test in KFold(min(folds, count), shuffle=True, random_state=0).split(rows):
            decoder = make_pipeline(StandardScaler(), Ridge(ridge))
            decoder.fit(rows[train].reshape(-1, features), beyond[train].reshape(-1, ry * rx))
            decoded[test] = decoder.predict(rows[test].reshape(-1, features)).reshape(decoded[test].shape)
        predictions = base + decoded.transpose(0, 1, 3, 2, 4).reshape(truth.shape)
        found[name] = compute_lens(truth, predictions, base, name)
    return found


def _blocks(components: Components, truth: Float64Array) -> tuple[Float64Array, tuple[int, int]] | None:
    """Return activations (B, gy, gx, features) and the pixels of the target per position; None without such a grid."""
    places = components.places
    assert places is not None
    count, height, width = truth.shape
    if places.grids.shape[1] != 2 or len(places.inputs) != count or (places.inputs != np.arange(count)).any():
        return None
    if (places.grids != places.grids[0]).any() or height % places.grids[0, 0] or width % places.grids[0, 1]:
        return None
    gy, gx = map(int, places.grids[0])
    return reconstruct_activations(components).reshape(count, gy, gx, -1), (height // gy, width // gx)


@dataclass(frozen=True, eq=False)
class LensRecord:
    """Restoration of modes by a model at one epoch of its training."""

    epoch: int
    lens: Lens = field(repr=False)


class LensTracker:
    """Restoration of modes by a model during its training, on fixed slices.

    Parameters
    ----------
    lows, targets, factors
        As in `sr_lens`; slices of the validation set.
    """

    def __init__(
        self, lows: ArrayLike | Tensor, targets: ArrayLike | Tensor, factors: Sequence[float] | None = None
    ) -> None:
        self._low, self._truth, self._base = check_slices(lows, targets, factors)
        self.history: tuple[LensRecord, ...] = ()

    @classmethod
    def of_training(cls, step: SRTrainingStep) -> LensTracker:
        """Return a tracker of the validation set of a training, given any of its steps; of its first volume."""
        validation = step.validation_sets[0]
        return cls(validation.low, validation.target, step.scheme.settings.factors)

    def record(self, epoch: int, model: Predictor) -> LensRecord:
        """Analyse a model, which stays unchanged; a second record of an epoch replaces the first.

        Raises
        ------
        InputError
            As in `sr_lens`.
        """
        lens = compute_lens(self._truth, predict(model, self._low, self._truth), self._base, f"epoch {epoch}")
        record = LensRecord(int(epoch), lens)
        others = [one for one in self.history if one.epoch != record.epoch]
        self.history = tuple(sorted([*others, record], key=lambda one: one.epoch))
        return record
