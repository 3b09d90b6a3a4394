"""The lens on a super-resolution over its layers, what each of them knows of the target, and over its training."""

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
from ..decomposition.streaming_svd import EXACT
from .restoration import Lens, Predictor, check_slices, compute_lens, predict

if TYPE_CHECKING:
    from ...super_resolution.training import SRTraining


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
    """Return what a linear decoder restores of the target from the activations of each layer.

    At each position of a layer the decoder, one for all positions, gives the pixels of the target that lie in it, as
    their difference from the spline, so nothing read is the spline. Slices are decoded by a decoder of other slices.
    What a layer knows otherwise than linearly, or keeps in other positions, is not seen; and what can be decoded need
    not be what the network makes of it. A decoder may do better than the network itself, which was not trained on these
    very slices.

    Parameters
    ----------
    model : SRModel or nn.Module
    lows, targets, factors
        As of `sr_lens`; two slices at least.
    layers : sequence of str, optional
        When omitted, all modules with parameters that give one thing a slice, on a grid that divides the target.
    ridge : float
        Penalty of the decoder's weights on standardised features.
    folds : int
        Of the cross-validation over slices.

    Raises
    ------
    ValueError
        As of `sr_lens` and `activations`; or if a layer that was named has no such grid.
    """
    low, truth, base = check_slices(lows, targets, factors)
    if len(low) < 2:
        raise InputError("Decoders are judged by other slices than they learn from; two or more are needed.")
    made_of = model.scheme if isinstance(model, SRModel) else model
    found: dict[str, Lens] = {}
    for name, taken in activations(made_of, low, layers, EXACT).items():
        blocks = _blocks(taken, truth)
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
        for learn, test in KFold(min(folds, count), shuffle=True, random_state=0).split(rows):
            decoder = make_pipeline(StandardScaler(), Ridge(ridge))
            decoder.fit(rows[learn].reshape(-1, features), beyond[learn].reshape(-1, ry * rx))
            decoded[test] = decoder.predict(rows[test].reshape(-1, features)).reshape(decoded[test].shape)
        predictions = base + decoded.transpose(0, 1, 3, 2, 4).reshape(truth.shape)
        found[name] = compute_lens(truth, predictions, base, name)
    return found


def _blocks(taken: Components, truth: Float64Array) -> tuple[Float64Array, tuple[int, int]] | None:
    """Return activations (B, gy, gx, features), and the pixels of the target in a position, if that is possible."""
    places = taken.places
    assert places is not None
    count, height, width = truth.shape
    if places.grids.shape[1] != 2 or len(places.inputs) != count or (places.inputs != np.arange(count)).any():
        return None
    if (places.grids != places.grids[0]).any() or height % places.grids[0, 0] or width % places.grids[0, 1]:
        return None
    gy, gx = map(int, places.grids[0])
    return reconstruct_activations(taken).reshape(count, gy, gx, -1), (height // gy, width // gx)


@dataclass(frozen=True, eq=False)
class LensRecord:
    """The lens on a model at one time of its training."""

    epoch: int
    lens: Lens = field(repr=False)


class LensTracker:
    """The lens on a model while it is trained, always on the same slices.

    Parameters
    ----------
    lows, targets, factors
        As of `sr_lens`; slices held out from the training.
    """

    def __init__(
        self, lows: ArrayLike | Tensor, targets: ArrayLike | Tensor, factors: Sequence[float] | None = None
    ) -> None:
        self._low, self._truth, self._base = check_slices(lows, targets, factors)
        self.history: tuple[LensRecord, ...] = ()

    @classmethod
    def of_training(cls, training: SRTraining) -> LensTracker:
        """Return a tracker of the slices that a training holds out, of its first volume."""
        held = training.planes.held_out[0]
        return cls(held.low, held.target, training.settings.factors)

    def record(self, epoch: int, model: Predictor) -> LensRecord:
        """Look at a model, which stays as it is; an epoch recorded again is replaced.

        Raises
        ------
        ValueError
            As of `sr_lens`.
        """
        seen = compute_lens(self._truth, predict(model, self._low, self._truth), self._base, f"epoch {epoch}")
        record = LensRecord(int(epoch), seen)
        others = [one for one in self.history if one.epoch != record.epoch]
        self.history = tuple(sorted([*others, record], key=lambda one: one.epoch))
        return record
