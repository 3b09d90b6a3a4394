"""Decoder of singular vectors along one axis: from the coarse to the fine grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .bspline import upsample_matrix
from .networks import EDSR

_KNOTS = 17  # knots of the frequency weights
TINY = 1e-12
"""Smallest singular value that is divided by."""
_WEAK = 3e-3  # relative to the strongest mode: the division by singular values below is damped


class AxisDecoder(nn.Module):
    """Network from the singular vectors along one axis to their samples on the fine grid.

    The output is the cubic B-spline of each vector, after multiplication of its cosine transform with trained frequency
    weights (W, initially 1), plus two corrections that are initially 0:

    - for each vector by itself: convolutions along the axis, shared by all modes, with features scaled by the c grid.
      They have no biases and odd activations;
    - for all modes together, if `blocks` is not 0. With ``u_k = F v_k / s_k``, a residual G of the image F upsampled
      along this axis alone means a residual ``G v_k / s_k`` of its vectors. G is the output of an `EDSR` with that many
      blocks. For modes so weak that they are rounding or noise the division is damped: ``G v_k s_k / (s_k^2 + e^2
      s_1^2)``.

    The map is odd: a vector of opposite sign gives the output of opposite sign, since signs of singular vectors are
    arbitrary.
    """

    def __init__(self, factor: float, channels: int, weighting: bool, blocks: int = 0) -> None:
        super().__init__()
        self.factor = factor
        self.weights = nn.Parameter(torch.ones(_KNOTS)) if weighting else None
        self.first = nn.Conv1d(1, channels, 7, padding=3, bias=False)
        self.second = nn.Conv1d(channels, channels, 5, padding=2, bias=False)
        self.last = nn.Conv1d(channels, 1, 5, padding=2, bias=False)
        self.gates = nn.Sequential(nn.Linear(2, channels), nn.Tanh(), nn.Linear(channels, 2 * channels))
        nn.init.zeros_(self.last.weight)
        self.details = EDSR(1, (factor, 1.0), channels, blocks) if blocks else None

    def forward(self, z: tuple[Tensor, Tensor, Tensor], grid: Tensor) -> Tensor:
        """Return vectors (B, N, r) for z = (vectors (B, n, r), values (B, r), others (B, m, r)) and grid (B, r, 2)."""
        vectors, values, others = z
        n = vectors.shape[1]
        matrix = torch.from_numpy(upsample_matrix(n, self.factor)).to(vectors)
        splines = (matrix @ self._weight_frequencies(vectors)) * (
            n / len(matrix)
        ) ** 0.5  # (B, N, r), of unit norm or nearly
        signals = splines.transpose(1, 2).flatten(0, 1)[:, None] * len(matrix) ** 0.5  # (B r, 1, N), of unit square
        gates = 1 + self.gates(grid).flatten(0, 1)[..., None]
        first, second = gates.chunk(2, 1)
        features = torch.tanh(first * self.first(signals))
        features = torch.tanh(second * (features + self.second(features)))
        correction = self.last(features)[:, 0].unflatten(0, (len(vectors), -1)).transpose(1, 2)
        corrected: Tensor = splines + correction / len(matrix) ** 0.5
        if self.details is None:
            return corrected
        image = ((vectors * values[:, None]) @ others.transpose(1, 2))[:, None]  # (B, 1, n, m)
        residual = self.details(image, image)[:, 0] @ others * (n / len(matrix)) ** 0.5  # (B, N, r)
        floor = (_WEAK * values[:, :1]).square() + TINY
        corrected = corrected + residual * (values / (values.square() + floor))[:, None]
        return corrected

    def _weight_frequencies(self, vectors: Tensor) -> Tensor:
        """Return vectors (B, n, r) with weighted frequencies."""
        if self.weights is None:
            return vectors
        n = vectors.shape[1]
        cosines = cosine_transform(n).to(vectors)
        frequencies = torch.linspace(0, _KNOTS - 1, n)
        left = frequencies.long().clamp_max(_KNOTS - 2)
        weights = torch.lerp(self.weights[left], self.weights[left + 1], (frequencies - left).to(vectors))
        weighted: Tensor = cosines.T @ (weights[:, None] * (cosines @ vectors))
        return weighted


@lru_cache(maxsize=64)
def cosine_transform(n: int) -> Tensor:
    """Return the matrix (n, n) of the orthonormal cosine transform (DCT-II): its rows are the basis."""
    k = np.arange(n)
    rows = np.cos(np.pi * k[:, None] * (k + 0.5) / n) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return torch.from_numpy(rows)
