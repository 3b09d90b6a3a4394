"""What a decomposition says of each input: the first two moments of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .decomposition import Decomposition

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerInput:
    """The moments of the samples of each input, in the coordinates of the leading components.

    Attributes
    ----------
    means : ndarray, (inputs, k)
        Mean coordinates.
    seconds : ndarray, (inputs, k, k)
        Mean products of two coordinates.
    shares : ndarray, (k,)
        Part of the layer's variance that each component has.
    """

    means: Floats
    seconds: Floats
    shares: Floats

    @classmethod
    def of(cls, decomposition: Decomposition) -> PerInput:
        """Return the moments of the inputs that a decomposition has samples of.

        Raises
        ------
        ValueError
            If it is not known which samples are of which input.
        """
        places = decomposition.places
        if places is None or (places.inputs < 0).any():
            raise ValueError(
                f"Layer {decomposition.layer} gives one thing for a whole batch, not one for each input; leave it out."
            )
        of = places.input
        inputs = int(of.max(initial=-1)) + 1
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(inputs + 1))
        means, seconds = np.zeros((inputs, decomposition.k)), np.zeros((inputs, decomposition.k, decomposition.k))
        for k in range(inputs):
            x = decomposition.scores[order[ends[k] : ends[k + 1]]] * decomposition.values
            means[k], seconds[k] = x.mean(0), x.T @ x / len(x)
        return cls(means, seconds, shares(decomposition))

    def centred(self, labels: NDArray[np.intp]) -> Floats:
        """Return the second moments about the mean of each group, (inputs, k, k)."""
        mean = np.stack([self.means[labels == g].mean(0) for g in range(labels.max() + 1)])[labels]
        cross = mean[:, :, None] * self.means[:, None]
        return np.asarray(self.seconds - cross - cross.transpose(0, 2, 1) + mean[:, :, None] * mean[:, None])


def shares(decomposition: Decomposition) -> Floats:
    """Return the part of all of the sum of squares that each component has, (k,)."""
    return np.diff(decomposition.energy, prepend=0.0)
