"""The two learned schemes as modules: from slices of low resolution to finer ones, with or without the projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .degradation import Degradation, separable
from .networks import network
from .settings import DegradationKind
from .sr_settings import TrainSRSettings
from .upsample import interpolation

_KNOTS = 17  # of a weighting of frequencies
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a scheme makes of slices.

    Attributes
    ----------
    raw : Tensor, (B, H, W)
        As predicted.
    image : Tensor, (B, H, W)
        Projected on what was measured, where the settings say so; else `raw`.
    base : Tensor, (B, H, W)
        The backbone of scheme b: the spline of the first modes. Of scheme a, `raw`.
    U, V : Tensor, (B, H, r) and (B, W, r), or None
        Predicted singular vectors of scheme a.
    c : Tensor, (B, r), or None
        Their amplitudes.
    """

    raw: Tensor
    image: Tensor
    base: Tensor
    U: Tensor | None = None
    V: Tensor | None = None
    c: Tensor | None = None


class Scheme(nn.Module):
    """What both schemes share; see `HybridScheme` and `BasisScheme`."""

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__()
        self.settings = settings

    def degradation(self, low: Sequence[int]) -> Degradation:
        """Return the operator onto slices of the shape `low`."""
        s = self.settings
        return degradation_of((low[0], low[1]), s.factors, s.degradation, s.fwhm)

    def predicted(self, raw: Tensor, low: Tensor, base: Tensor) -> Prediction:
        """Return what is made of raw slices (B, H, W) and what was measured, (B, h, w)."""
        image = self.degradation(low.shape[1:]).project(raw, low) if self.settings.project else raw
        return Prediction(raw, image, base)


class HybridScheme(Scheme):
    """Scheme b: the spline of the first modes of a slice, F~ = U~ S V~^T, and a residual network, F~ + R.

    Interpolating singular vectors with a linear interpolant is interpolating the image: the backbone differs from a
    spline by its truncation alone, and the whole gain is R's.
    """

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__(settings)
        self.network = network(settings)

    def forward(self, low: Tensor) -> Prediction:
        """Return the prediction of the middle of slices (B, C, h, w)."""
        k = low.shape[1] // 2
        matrices = [finer(n, f) for n, f in zip(low.shape[2:], self.settings.factors, strict=True)]
        seen = low if self.network.sees_base else low[:, k : k + 1]
        base = separable(truncated(seen, self.settings.rank), matrices)
        middle = base[:, seen.shape[1] // 2]
        return self.predicted(middle + self.network(low, base)[:, 0], low[:, k], middle)


class BasisScheme(Scheme):
    """Scheme a: singular vectors on the finer grids, and their amplitudes, predicted from those of the slice.

    z = (U_L, s, V_L) of the slice is data: no gradient goes through a decomposition. D_u and D_v are `AxisDecoder`; D_c
    is a factor on the singular values, a function of the c grid: where in the spectrum a mode is, and how strong.
    """

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__(settings)
        s = settings
        self.along_y, self.along_x = (AxisDecoder(f, s.channels, s.weighting) for f in s.factors)
        last = nn.Linear(s.channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.amplitudes = nn.Sequential(nn.Linear(2, s.channels), nn.Tanh(), last)

    def forward(self, low: Tensor) -> Prediction:
        """Return the prediction of slices (B, 1, h, w)."""
        slices = low[:, 0]
        U, values, V = modes(slices, self.settings.rank)
        grid = c_grid(values)
        high = [self.along_y(U, grid), self.along_x(V, grid)]
        if self.settings.orthogonality == "qr":
            high = [orthonormal(vectors) for vectors in high]
        U, V = high
        scale = (U.shape[1] * V.shape[1] / slices[0].numel()) ** 0.5  # of singular values, once there are more pixels
        c = scale * values * torch.exp(self.amplitudes(grid)[..., 0])
        raw = (U * c[:, None]) @ V.transpose(1, 2)
        return replace(self.predicted(raw, slices, raw), U=U, V=V, c=c)


class AxisDecoder(nn.Module):
    """From singular vectors along one axis to their samples on a finer grid.

    A fixed basis, the splines of cosines, times latents, the cosine transform of the vectors, each weighted by its
    frequency (W, one at first); and a correction by convolutions along the axis, shared by all modes, whose features
    are scaled by the c grid. They have no biases and odd activations, so a vector of the other sign becomes the same of
    the other sign: what signs the vectors come with does not matter. At first this is the spline of the vectors.
    """

    def __init__(self, factor: float, channels: int, weighting: bool) -> None:
        super().__init__()
        self.factor = factor
        self.weights = nn.Parameter(torch.ones(_KNOTS)) if weighting else None
        self.first = nn.Conv1d(1, channels, 7, padding=3, bias=False)
        self.second = nn.Conv1d(channels, channels, 5, padding=2, bias=False)
        self.last = nn.Conv1d(channels, 1, 5, padding=2, bias=False)
        self.gates = nn.Sequential(nn.Linear(2, channels), nn.Tanh(), nn.Linear(channels, 2 * channels))
        nn.init.zeros_(self.last.weight)

    def forward(self, vectors: Tensor, grid: Tensor) -> Tensor:
        """Return (B, N, r) of vectors (B, n, r) and the c grid (B, r, 2)."""
        n = vectors.shape[1]
        if self.weights is not None:
            cosines = _cosines(n).to(vectors)
            frequencies = torch.linspace(0, _KNOTS - 1, n)
            left = frequencies.long().clamp_max(_KNOTS - 2)
            weights = torch.lerp(self.weights[left], self.weights[left + 1], (frequencies - left).to(vectors))
            vectors = cosines.T @ (weights[:, None] * (cosines @ vectors))
        matrix = torch.from_numpy(finer(n, self.factor)).to(vectors)
        splines = (matrix @ vectors) * (n / len(matrix)) ** 0.5  # (B, N, r), of unit norm or nearly
        signals = splines.transpose(1, 2).flatten(0, 1)[:, None] * len(matrix) ** 0.5  # (B r, 1, N), of unit square
        gates = 1 + self.gates(grid).flatten(0, 1)[..., None]
        first, second = gates.chunk(2, 1)
        features = torch.tanh(first * self.first(signals))
        features = torch.tanh(second * (features + self.second(features)))
        correction = self.last(features)[:, 0].unflatten(0, (len(vectors), -1)).transpose(1, 2)
        corrected: Tensor = splines + correction / len(matrix) ** 0.5
        return corrected


def modes(slices: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (B, h, r), values (B, r) and V (B, w, r) of slices (B, h, w): data, through which no gradient flows.

    Raises
    ------
    ValueError
        If the rank is above the shorter side.
    """
    check_rank(slices.shape[1:], rank)
    with torch.no_grad():
        U, values, Vh = torch.linalg.svd(slices.detach().double(), full_matrices=False)
    return U[..., :rank].to(slices), values[:, :rank].to(slices), Vh[:, :rank].transpose(1, 2).to(slices)


def truncated(low: Tensor, rank: int | None) -> Tensor:
    """Return the first `rank` modes of slices (B, C, h, w), all of them if None; errors as of `modes`."""
    if rank is None:
        return low
    U, values, V = modes(low.flatten(0, 1), rank)
    return ((U * values[:, None]) @ V.transpose(1, 2)).view_as(low)


def check_rank(shape: Sequence[int], rank: int | None) -> None:
    """Raise ValueError if slices of a shape have not so many modes."""
    if rank is not None and rank > min(shape):
        raise ValueError(f"The rank is 1 to {min(shape)} for slices of {' x '.join(map(str, shape))}; got {rank}.")


def c_grid(values: Tensor) -> Tensor:
    """Return, for singular values (B, r), where each is: (B, r, 2), its number from 0 to 1, and log10(s / s_0) / 3."""
    place = torch.linspace(0, 1, values.shape[1]).to(values).expand_as(values)
    strength = torch.log10(values / (values[:, :1] + _TINY) + 1e-6) / 3
    return torch.stack([place, strength], -1)


def orthonormal(vectors: Tensor) -> Tensor:
    """Return the orthonormal vectors (B, N, r) of a QR decomposition, each to the side of the one it is made from."""
    Q, R = torch.linalg.qr(vectors)
    turned: Tensor = Q * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None].to(vectors)
    return turned


def scheme(settings: TrainSRSettings) -> Scheme:
    """Return the untrained scheme that the settings ask for, its weights decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return (BasisScheme if settings.scheme == "a" else HybridScheme)(settings)


def finer(n: int, factor: float) -> NDArray[np.float64]:
    """Return `interpolation` by cubic splines, (round(n factor), n)."""
    return np.eye(n) if factor == 1 else interpolation(n, factor)


@lru_cache(maxsize=64)
def degradation_of(
    low: tuple[int, int], factors: tuple[float, float], kind: DegradationKind, fwhm: float
) -> Degradation:
    """Return `Degradation.of_low`, whose inverses are then computed once."""
    return Degradation.of_low(low, factors, kind, fwhm)


@lru_cache(maxsize=64)
def _cosines(n: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), (n, n): the rows are its basis."""
    k = np.arange(n)
    rows = np.cos(np.pi * k[:, None] * (k + 0.5) / n) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return torch.from_numpy(rows)
