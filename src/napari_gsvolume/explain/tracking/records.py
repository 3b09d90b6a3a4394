"""Records of the layers of a network at each epoch, and their evolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...types import Float64Array
from ..findings.finding import Finding

COLUMNS = (
    "epoch",
    "layer",
    "group",
    "component",
    "place",
    "value",
    "share",
    "cosine_to_previous",
    "cosine_to_first",
    "angle",
    "effective_rank",
    "stable_rank",
    "sharpness",
)


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """Record of one layer at one epoch, on all inputs or on those of one group.

    Components keep their numbers over the epochs, whatever their values become; see `align_components`.

    Attributes
    ----------
    epoch : float
    layer : str
    group : str
        "" for all inputs.
    values : ndarray, (k,)
        Singular values of the activations about their mean, divided by the root of the number of samples: standard
        deviations along the concepts. 0 where there is no such component.
    shares : ndarray, (k,)
        Fractions of the variance of the layer.
    concepts : ndarray of float32, (features, k)
        Unit columns.
    means : ndarray of float32, (inputs, k)
        Mean coordinates of each input of the group; no rows if a layer has one output for a whole batch.
    to_previous, to_first : ndarray, (k,)
        Cosines with the same component in the previous and in the first record; NaN in the first one.
    angle : float
        Largest principal angle, in degrees, between the leading components and those of the previous record.
    effective_rank, stable_rank : float
        Ranks of the activations about their mean.
    sharpness : float
        Relative excess of the leading singular value on training inputs; NaN without held-out inputs. See `sharpness`.
    findings : tuple of Finding
        Findings in this record alone: collapse, dead and redundant units.
    """

    epoch: float
    layer: str
    group: str
    values: Float64Array
    shares: Float64Array
    concepts: NDArray[np.float32]
    means: NDArray[np.float32]
    to_previous: Float64Array
    to_first: Float64Array
    angle: float
    effective_rank: float
    stable_rank: float
    sharpness: float = np.nan
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class Evolution:
    """Evolution of one layer over all epochs: the fields of `LayerRecord`, stacked.

    Attributes
    ----------
    epochs : ndarray, (epochs,)
    values, shares, to_previous, to_first : ndarray, (epochs, k)
    concepts : ndarray of float32, (epochs, features, k)
    angles, effective_ranks, stable_ranks, sharpness : ndarray, (epochs,)
    """

    epochs: Float64Array
    values: Float64Array
    shares: Float64Array
    to_previous: Float64Array
    to_first: Float64Array
    concepts: NDArray[np.float32]
    angles: Float64Array
    effective_ranks: Float64Array
    stable_ranks: Float64Array
    sharpness: Float64Array
