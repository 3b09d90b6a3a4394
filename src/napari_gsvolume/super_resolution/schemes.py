"""The two learned schemes as modules: from slices of low resolution to finer ones, with or without the projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..svd.continuous_basis import bspline_response
from .bspline import interpolation
from .degradation import Degradation, separable
from .networks import EDSR, network
from .settings import DegradationKind
from .training_settings import TrainSRSettings

_KNOTS = 17  # of a weighting of frequencies
_TINY = 1e-12
_WEAK = 3e-3  # of the strongest mode: singular values below are not divided by


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
        The backbone of scheme b. Of scheme a, `raw`.
    U, V : Tensor, (B, H, r) and (B, W, r), or None
        Singular vectors on the finer grid, where decoders predict them.
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
        self.settings = s = settings
        if s.decodes:
            blocks = s.blocks if s.scheme == "a" else 0  # what b's decoders lack, its residual network has
            self.along_y, self.along_x = (AxisDecoder(f, s.channels, s.weighting, blocks) for f in s.factors)

    def degradation(self, low: Sequence[int]) -> Degradation:
        """Return the operator onto slices of the shape `low`."""
        s = self.settings
        return degradation_of((low[0], low[1]), s.factors, s.degradation, s.fwhm)

    def predicted(self, raw: Tensor, low: Tensor, base: Tensor) -> Prediction:
        """Return what is made of raw slices (B, H, W) and what was measured, (B, h, w)."""
        image = self.degradation(low.shape[1:]).project(raw, low) if self.settings.project else raw
        return Prediction(raw, image, base)

    def decoded(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return U~ (B, H, r), V~ (B, W, r), singular values for them (B, r) and the c grid, of slices (B, h, w).

        z = (U_L, s, V_L) of a slice is data: no gradient goes through a decomposition.
        """
        z = modes(slices, self.settings.rank)
        U, values, V = z
        grid = c_grid(values)
        U, V = self.along_y(z, grid), self.along_x(z[::-1], grid)
        if self.settings.orthogonality == "qr":
            U, V = orthonormal(U), orthonormal(V)
        # Vectors have unit norm, so those of more samples have smaller ones, and an image has larger singular values.
        scale = (U.shape[1] * V.shape[1] / slices[0].numel()) ** 0.5
        return U, V, scale * values, grid


class HybridScheme(Scheme):
    """Scheme b: a backbone of low rank, F~ = U~ S V~^T, and a residual network, F~ + R.

    U~ and V~ are B-splines of the singular vectors, or what two `AxisDecoder` make of them. Interpolating vectors is
    linear, and so is interpolating the image: B-splines without truncation or smoothing are the spline of the slice,
    with no decomposition. Truncation takes noise away, and so does smoothing that grows as modes become weaker, like
    the share of noise in their vectors (variances: 1 / s_k^2).
    """

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__(settings)
        self.network = network(settings)

    def forward(self, low: Tensor) -> Prediction:
        """Return the prediction of the middle of slices (B, C, h, w)."""
        s, k = self.settings, low.shape[1] // 2
        seen = low if self.network.sees_base else low[:, k : k + 1]
        middle = seen.shape[1] // 2
        if s.functions == "decoders":
            # Of all slices seen: (B, C, H, r), (B, C, W, r), (B, C, r).
            U, V, c = (t.view(*seen.shape[:2], *t.shape[1:]) for t in self.decoded(seen.flatten(0, 1))[:3])
            base = (U * c[:, :, None]) @ V.transpose(2, 3)
        else:
            matrices = [finer(n, f, s.order) for n, f in zip(low.shape[2:], s.factors, strict=True)]
            base = separable(filtered(seen, s.rank, s.smoothing, s.order), matrices)
        raw = base[:, middle] + self.network(low, base)[:, 0]
        prediction = self.predicted(raw, low[:, k], base[:, middle])
        if s.functions == "decoders":
            return replace(prediction, U=U[:, middle], V=V[:, middle], c=c[:, middle])
        return prediction


class BasisScheme(Scheme):
    """Scheme a: singular vectors on the finer grids, and their amplitudes, predicted from those of the slice.

    D_u and D_v are `AxisDecoder` that see all modes; D_c is a factor on the singular values, a function of the c grid:
    where in the spectrum a mode is, and how strong. There are as many modes as the slice has: what is finer along both
    axes at once (in neither U~ nor V~ alone) is out of reach.
    """

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__(settings)
        last = nn.Linear(settings.channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.amplitudes = nn.Sequential(nn.Linear(2, settings.channels), nn.Tanh(), last)

    def forward(self, low: Tensor) -> Prediction:
        """Return the prediction of slices (B, 1, h, w)."""
        slices = low[:, 0]
        U, V, values, grid = self.decoded(slices)
        c = values * torch.exp(self.amplitudes(grid)[..., 0])
        raw = (U * c[:, None]) @ V.transpose(1, 2)
        return replace(self.predicted(raw, slices, raw), U=U, V=V, c=c)


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
        floor = (_WEAK * values[:, :1]).square() + _TINY
        corrected = corrected + lacking * (values / (values.square() + floor))[:, None]
        return corrected

    def _weighted(self, vectors: Tensor) -> Tensor:
        """Return vectors (B, n, r), their frequencies weighted."""
        if self.weights is None:
            return vectors
        n = vectors.shape[1]
        cosines = _cosines(n).to(vectors)
        frequencies = torch.linspace(0, _KNOTS - 1, n)
        left = frequencies.long().clamp_max(_KNOTS - 2)
        weights = torch.lerp(self.weights[left], self.weights[left + 1], (frequencies - left).to(vectors))
        weighted: Tensor = cosines.T @ (weights[:, None] * (cosines @ vectors))
        return weighted


def middle(slices: Tensor) -> Tensor:
    """Return the slices (B, H, W) that are predicted among slices and their neighbours, (B, C, H, W)."""
    return slices[:, slices.shape[1] // 2]


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


def filtered(low: Tensor, rank: int | None, smoothing: float = 0.0, order: int = 3) -> Tensor:
    """Return slices (B, C, h, w) of their first `rank` modes, or all, smoothed; errors as of `modes`.

    The vectors of mode k are samples of the smoothing splines, of an order, that `ContinuousBasis` fits to them with
    the weight ``smoothing (s_1 / s_k)^2``: of both axes, also of one that does not become finer.
    """
    if rank is None and smoothing == 0:
        return low
    U, values, V = modes(low.flatten(0, 1), rank)
    if smoothing:
        weights = smoothing / (values / values[:, :1].clamp_min(_TINY)).square().clamp_min(_TINY)
        U, V = _smoothed(U, weights, order), _smoothed(V, weights, order)
    return ((U * values[:, None]) @ V.transpose(1, 2)).view_as(low)


def _smoothed(vectors: Tensor, weights: Tensor, order: int) -> Tensor:
    """Return vectors (B, n, r), smoothed with the weights (B, r)."""
    gain, rough = (torch.from_numpy(each).to(vectors) for each in bspline_response(vectors.shape[1], order))
    cosines = _cosines(vectors.shape[1]).to(vectors)
    smoothed: Tensor = cosines.T @ (gain / (gain + weights[:, None] * rough) * (cosines @ vectors))
    return smoothed


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


def finer(n: int, factor: float, order: int = 3) -> NDArray[np.float64]:
    """Return `interpolation` by splines, (round(n factor), n), which of a factor of 1 changes nothing."""
    return np.eye(n) if factor == 1 else interpolation(n, factor, order)


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
