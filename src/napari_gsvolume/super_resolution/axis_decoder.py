"""Decoder of singular vectors along one axis."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .bspline import finer
from .networks import EDSR

_KNOTS = 17  # of a weighting of frequencies
TINY = 1e-12
_WEAK = 3e-3  # of the strongest mode: singular values below are not divided by


class AxisDecoder(nn.Module):
    """From singular vectors along one axis to their samples on a finer grid.

    A fixed basis, the splines of cosines, times latents, the cosine transform of the vectors, each weighted by its
    frequency (W, one at first); and two corrections, none at first:

    - of each vector by itself: convolutions along the axis, shared by all modes, whose features are scaled by the c
      grid. They have no biases and odd activations;
    - from all modes together, if `blocks` is not 0. As ``u_k = F v_k / s_k``, where G is what the image F lacks once it
      is finer along this axis alone, ``G v_k / s_k`` is what its vectors lack. G is an `EDSR` of that many blocks. Of
      modes so weak that they are rounding or noise there would be too much: it is ``G v_k s_k / (s_k^2 + e^2 s_1^2)``.

    A vector of the other sign becomes the same of the other sign: what signs vectors come with does not matter.
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
        """Return (B, N, r) of vectors (B, n, r), values (B, r) and the other vectors (B, m, r); grid: (B, r, 2)."""
        vectors, values, others = z
        n = vectors.shape[1]
        matrix = torch.from_numpy(finer(n, self.factor)).to(vectors)
        splines = (matrix @ self._weighted(vectors)) * (n / len(matrix)) ** 0.5  # (B, N, r), of unit norm or nearly
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
        lacking = self.details(image, image)[:, 0] @ others * (n / len(matrix)) ** 0.5  # (B, N, r)
        floor = (_WEAK * values[:, :1]).square() + TINY
        corrected = corrected + lacking * (values / (values.square() + floor))[:, None]
        return corrected

    def _weighted(self, vectors: Tensor) -> Tensor:
        """Return vectors (B, n, r), their frequencies weighted."""
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
    """Return the orthonormal cosine transform (DCT-II), (n, n): the rows are its basis."""
    k = np.arange(n)
    rows = np.cos(np.pi * k[:, None] * (k + 0.5) / n) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return torch.from_numpy(rows)
