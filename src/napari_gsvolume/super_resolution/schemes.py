"""The two learned schemes as modules: from slices of low resolution to finer ones, with or without the projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..svd.continuous_basis import bspline_response
from .axis_decoder import TINY, AxisDecoder, cosine_transform
from .bspline import finer
from .degradation import Degradation, separable
from .networks import network
from .settings import DegradationKind, TrainSRSettings


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
        weights = smoothing / (values / values[:, :1].clamp_min(TINY)).square().clamp_min(TINY)
        U, V = _smoothed(U, weights, order), _smoothed(V, weights, order)
    return ((U * values[:, None]) @ V.transpose(1, 2)).view_as(low)


def _smoothed(vectors: Tensor, weights: Tensor, order: int) -> Tensor:
    """Return vectors (B, n, r), smoothed with the weights (B, r)."""
    gain, rough = (torch.from_numpy(each).to(vectors) for each in bspline_response(vectors.shape[1], order))
    cosines = cosine_transform(vectors.shape[1]).to(vectors)
    smoothed: Tensor = cosines.T @ (gain / (gain + weights[:, None] * rough) * (cosines @ vectors))
    return smoothed


def check_rank(shape: Sequence[int], rank: int | None) -> None:
    """Raise ValueError if slices of a shape have not so many modes."""
    if rank is not None and rank > min(shape):
        raise InputError(f"The rank is 1 to {min(shape)} for slices of {' x '.join(map(str, shape))}; got {rank}.")


def c_grid(values: Tensor) -> Tensor:
    """Return, for singular values (B, r), where each is: (B, r, 2), its number from 0 to 1, and log10(s / s_0) / 3."""
    place = torch.linspace(0, 1, values.shape[1]).to(values).expand_as(values)
    strength = torch.log10(values / (values[:, :1] + TINY) + 1e-6) / 3
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


@lru_cache(maxsize=64)
def degradation_of(
    low: tuple[int, int], factors: tuple[float, float], kind: DegradationKind, fwhm: float
) -> Degradation:
    """Return `Degradation.of_low`, whose inverses are then computed once."""
    return Degradation.of_low(low, factors, kind, fwhm)
