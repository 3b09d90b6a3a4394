"""First two moments of the samples of each input, in the coordinates of the leading components of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...types import Float64Array


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Moments of the samples of each input, equally weighted.

    Attributes
    ----------
    means : ndarray, (inputs, k)
        Mean coordinates.
    seconds : ndarray, (inputs, k, k)
        Mean products of two coordinates.
    shares : ndarray, (k,)
        Fraction of the variance of the layer in each component.
    """

    means: Float64Array
    seconds: Float64Array
    shares: Float64Array

    @classmethod
    def of(
        cls, coordinates: Float64Array, owners: NDArray[np.int64], inputs: int, shares: Float64Array
    ) -> InputMoments:
        """Return the moments of samples.

        Parameters
        ----------
        coordinates : ndarray, (samples, k)
        owners : ndarray of int, (samples,)
            Input of each sample, ascending.
        inputs : int
            Number of inputs.
        shares : ndarray, (k,)

        Raises
        ------
        InputError
            If an input has no sample.
        """
        k = coordinates.shape[1]
        ends = np.searchsorted(owners, np.arange(inputs + 1))
        if (np.diff(ends) == 0).any():
            raise InputError(
                f"{(np.diff(ends) == 0).sum()} of {inputs} inputs have none of the {len(owners)} samples; raise "
                "max_samples, or give fewer inputs."
            )
        means, seconds = np.empty((inputs, k)), np.empty((inputs, k, k))
        for i in range(inputs):
            x = coordinates[ends[i] : ends[i + 1]]
            means[i], seconds[i] = x.mean(0), x.T @ x / len(x)
        return cls(means, seconds, shares)

    def first(self, inputs: int) -> InputMoments:
        """Return the moments of the first `inputs` inputs."""
        return InputMoments(self.means[:inputs], self.seconds[:inputs], self.shares)

    def centred(self, labels: NDArray[np.intp]) -> Float64Array:
        """Return the second moments about the mean of each group, (inputs, k, k)."""
        mean = np.stack([self.means[labels == g].mean(0) for g in range(labels.max() + 1)])[labels]
        cross = mean[:, :, None] * self.means[:, None]
        return np.asarray(self.seconds - cross - cross.transpose(0, 2, 1) + mean[:, :, None] * mean[:, None])
