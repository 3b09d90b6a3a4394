"""The two trained schemes as torch modules: from low-resolution to super-resolved slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..svd.continuous_basis import bspline_response
from .axis_decoder import TINY, AxisDecoder, cosine_transform
from .bspline import upsample_matrix
from .degradation import Degradation, apply_separable
from .networks import build_network
from .settings import DegradationKind, TrainSRSettings


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction of super-resolved slices.

    Attributes
    ----------
    raw : Tensor, (B, H, W)
        Prediction before the projection.
    image : Tensor, (B, H, W)
        Prediction projected on the measurement if the settings say so; else `raw`.
    base : Tensor, (B, H, W)
        Interpolation that scheme B adds the residual to. Scheme A: `raw`.
    U, V : Tensor, (B, H, r) and (B, W, r), or None
        Singular vectors on the fine grid, where decoders predict them.
    c : Tensor, (B, r), or None
        Their amplitudes (singular values on the fine grid).
    """

    raw: Tensor
    image: Tensor
    base: Tensor
    U: Tensor | None = None
    V: Tensor | None = None
    c: Tensor | None = None


class Scheme(nn.Module):
    """Base class of both schemes; see `SingularVectorScheme` (A) and `ResidualScheme` (B)."""

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__()
        self.settings = s = settings
        if s.has_decoders:
            # In scheme B the residual network predicts the details, so its decoders have no blocks.
            blocks = s.blocks if s.scheme == "singular-vectors" else 0
            self.along_y, self.along_x = (AxisDecoder(f, s.channels, s.frequency_weighting, blocks) for f in s.factors)

    def degradation(self, low: Sequence[int]) -> Degradation:
        """Return the degradation to slices of the shape `low`."""
        s = self.settings
        return cached_degradation((low[0], low[1]), s.factors, s.degradation, s.fwhm)

    def make_prediction(self, raw: Tensor, low: Tensor, base: Tensor) -> Prediction:
        """Return the prediction with raw slices (B, H, W), projected on the measurement (B, h, w)."""
        image = self.degradation(low.shape[1:]).project(raw, low) if self.settings.project else raw
        return Prediction(raw, image, base)

    def decode(self, slices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return U~ (B, H, r), V~ (B, W, r), their singular values (B, r) and the c grid of slices (B, h, w).

        z = (U_L, s, V_L) of a slice is data: no gradient goes through a decomposition.
        """
        z = slice_modes(slices, self.settings.rank)
        U, values, V = z
        grid = c_grid(values)
        U, V = self.along_y(z, grid), self.along_x(z[::-1], grid)
        if self.settings.orthogonality == "qr":
            U, V = orthonormalize(U), orthonormalize(V)
        # Unit vectors of more samples have smaller entries, so the singular values of the fine image are larger.
        scale = (U.shape[1] * V.shape[1] / slices[0].numel()) ** 0.5
        return U, V, scale * values, grid


class ResidualScheme(Scheme):
    """Scheme B: low-rank interpolation F~ = U~ S V~^T plus the output R of a residual network.

    U~ and V~ are B-splines of the singular vectors, or outputs of two `AxisDecoder`. Interpolation of the vectors is
    linear, like interpolation of the image: B-splines without truncation or smoothing are the spline of the slice, and
    no SVD is computed. Truncation denoises, and so does smoothing that grows for weaker modes, like the share of noise
    in their vectors (variance proportional to 1 / s_k^2).
    """

    def __init__(self, settings: TrainSRSettings) -> None:
        super().__init__(settings)
        self.network = build_network(settings)

    def forward(self, low: Tensor) -> Prediction:
        """Return the prediction of the middle of slices (B, C, h, w)."""
        s, k = self.settings, low.shape[1] // 2
        seen = low if self.network.sees_base else low[:, k : k + 1]
        middle = seen.shape[1] // 2
        if s.basis == "learned":
            # All input slices: (B, C, H, r), (B, C, W, r), (B, C, r).
            U, V, c = (t.view(*seen.shape[:2], *t.shape[1:]) for t in self.decode(seen.flatten(0, 1))[:3])
            base = (U * c[:, :, None]) @ V.transpose(2, 3)
        else:
            matrices = [upsample_matrix(n, f, s.spline_degree) for n, f in zip(low.shape[2:], s.factors, strict=True)]
            base = apply_separable(filter_modes(seen, s.rank, s.smoothing, s.spline_degree), matrices)
        raw = base[:, middle] + self.network(low, base)[:, 0]
        prediction = self.make_prediction(raw, low[:, k], base[:, middle])
        if s.basis == "learned":
            return replace(prediction, U=U[:, middle], V=V[:, middle], c=c[:, middle])
        return prediction


class SingularVectorScheme(Scheme):
    """Scheme A: singular vectors on the fine grid, and their amplitudes, predicted from those of the slice.

    D_u and D_v are `AxisDecoder` with access to all modes; D_c is a factor on the singular values, a function of the
    c grid: position and strength of a mode in the spectrum. The number of modes is that of the low-resolution slice:
    details along both axes at once (in neither U~ nor V~ alone) cannot be represented.
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
        U, V, values, grid = self.decode(slices)
        c = values * torch.exp(self.amplitudes(grid)[..., 0])
        raw = (U * c[:, None]) @ V.transpose(1, 2)
        return replace(self.make_prediction(raw, slices, raw), U=U, V=V, c=c)


def middle_slice(slices: Tensor) -> Tensor:
    """Return the middle slices (B, H, W) of slices with their neighbours (B, C, H, W)."""
    return slices[:, slices.shape[1] // 2]


def slice_modes(slices: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (B, h, r), values (B, r) and V (B, w, r) of slices (B, h, w), without gradients.

    Raises
    ------
    InputError
        If the rank exceeds the shorter side.
    """
    check_rank(slices.shape[1:], rank)
    with torch.no_grad():
        U, values, Vh = torch.linalg.svd(slices.detach().double(), full_matrices=False)
    return U[..., :rank].to(slices), values[:, :rank].to(slices), Vh[:, :rank].transpose(1, 2).to(slices)


def filter_modes(low: Tensor, rank: int | None, smoothing: float = 0.0, order: int = 3) -> Tensor:
    """Return slices (B, C, h, w) truncated to their first `rank` modes (or all) and smoothed.

    The vectors of mode k, along both axes, are replaced with samples of the smoothing splines of a degree that
    `ContinuousBasis` fits to them with the weight ``smoothing (s_1 / s_k)^2``. Errors are those of `slice_modes`.
    """
    if rank is None and smoothing == 0:
        return low
    U, values, V = slice_modes(low.flatten(0, 1), rank)
    if smoothing:
        weights = smoothing / (values / values[:, :1].clamp_min(TINY)).square().clamp_min(TINY)
        U, V = _smooth_vectors(U, weights, order), _smooth_vectors(V, weights, order)
    return ((U * values[:, None]) @ V.transpose(1, 2)).view_as(low)


def _smooth_vectors(vectors: Tensor, weights: Tensor, order: int) -> Tensor:
    """Return vectors (B, n, r) smoothed with the weights (B, r)."""
    gain, rough = (torch.from_numpy(each).to(vectors) for each in bspline_response(vectors.shape[1], order))
    cosines = cosine_transform(vectors.shape[1]).to(vectors)
    smoothed: Tensor = cosines.T @ (gain / (gain + weights[:, None] * rough) * (cosines @ vectors))
    return smoothed


def check_rank(shape: Sequence[int], rank: int | None) -> None:
    """Raise InputError if slices of a shape have fewer modes than the rank."""
    if rank is not None and rank > min(shape):
        raise InputError(f"The rank is 1 to {min(shape)} for slices of {' x '.join(map(str, shape))}; got {rank}.")


def c_grid(values: Tensor) -> Tensor:
    """Return the c grid (B, r, 2) of singular values (B, r): index of each from 0 to 1, and log10(s / s_0) / 3."""
    position = torch.linspace(0, 1, values.shape[1]).to(values).expand_as(values)
    strength = torch.log10(values / (values[:, :1] + TINY) + 1e-6) / 3
    return torch.stack([position, strength], -1)


def orthonormalize(vectors: Tensor) -> Tensor:
    """Return the orthonormal vectors (B, N, r) of a QR decomposition, with the signs of the given vectors."""
    Q, R = torch.linalg.qr(vectors)
    aligned: Tensor = Q * torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None].to(vectors)
    return aligned


def build_scheme(settings: TrainSRSettings) -> Scheme:
    """Return an untrained scheme for settings; the seed determines its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return (SingularVectorScheme if settings.scheme == "singular-vectors" else ResidualScheme)(settings)


@lru_cache(maxsize=64)
def cached_degradation(
    low: tuple[int, int], factors: tuple[float, float], kind: DegradationKind, fwhm: float
) -> Degradation:
    """Return a cached `Degradation.of_low`, so that its inverses are computed once."""
    return Degradation.of_low(low, factors, kind, fwhm)
