"""The voxels that measurements and a prior agree on.

The alternating direction method of multipliers with a denoiser in the place of a prior ("plug and play": S.
Venkatakrishnan, C. Bouman, B. Wohlberg. Plug-and-play priors for model based reconstruction. *IEEE GlobalSIP*, 2013):
least squares keep to the measurements, the denoiser to what volumes look like, and a running difference makes the two
agree. The denoiser's strength falls from coarse to fine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .bm4d import SIDE, BlockMatching
from .measurements import TRUST, Measurement
from .settings import Prior

STRONGEST, WEAKEST = 0.2, 0.01
"""Standard deviation of what is taken for noise, relative to the brightest there is, at first and at last."""
MATCH_EVERY = 2
CG_STEPS = 60
_FIRST_CG = 25
_TV_STEPS = 20
_SOLVED = 1e-4
"""Conjugate gradients end once this is left of the squared gradient: on bodies soon, on sparse things late."""


class _Denoiser(Protocol):
    def match(self, guide: NDArray[np.float32]) -> None: ...

    def denoised(self, volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]: ...


class TotalVariation:
    """Denoises by least total variation (Rudin, Osher, Fatemi 1992; Chambolle 2004), scikit-image's."""

    def match(self, guide: NDArray[np.float32]) -> None:
        """Do nothing: this prior has nothing to learn from a guide."""

    def denoised(self, volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """Return the volume with less variation; `sigma` is the weight."""
        from skimage.restoration import denoise_tv_chambolle

        smooth: NDArray[np.float32] = denoise_tv_chambolle(volume, weight=sigma, max_num_iter=_TV_STEPS)
        return smooth.astype(np.float32)


def denoiser(prior: Prior, shape: Sequence[int], seed: int = 0) -> _Denoiser:
    """Return the denoiser of that name; total variation where blocks do not fit in."""
    return BlockMatching(shape, seed=seed) if prior == "blocks" and min(shape) >= SIDE else TotalVariation()


class Estimate(NamedTuple):
    """How far the agreement is."""

    volume: Tensor
    """What the denoiser made of it last, (Z, Y, X), relative."""
    misfit: float
    """Mean squared difference from the measurements, each over its variance."""


def estimates(
    measurements: Sequence[Measurement],
    shape: Sequence[int],
    prior: Prior,
    share: Callable[[], float],
    *,
    non_negative: bool,
    support: Tensor | None = None,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Estimate]:
    """Yield better and better volumes; the first is the least squares solution after a few steps.

    Parameters
    ----------
    measurements : sequence of Measurement
    shape : (int, int, int)
        Of the volume.
    prior : "blocks" or "tv"
    share : callable
        How much of it is done, 0 to 1; the last estimate is the one after it returned 1.
    non_negative : bool
    support : Tensor, bool, optional
        Where the volume may differ from 0.
    seed : int
        Of what the prior draws at random.
    stop : callable
        Asked between iterations.
    """

    def allowed(volume: Tensor) -> Tensor:
        volume = volume.clamp_min(0) if non_negative else volume
        return volume if support is None else volume * support

    starts = [start for m in measurements if (start := m.start()) is not None]
    x = torch.stack(starts).mean(0) if starts else torch.zeros(tuple(shape))
    x = allowed(least_squares(measurements, x, x, 1e-3 * _stiffness(measurements, shape), _FIRST_CG))
    yield Estimate(x, misfit(measurements, x))
    brightest = float(np.quantile(x.abs().numpy(), 0.999))
    tool, u, iteration, done = denoiser(prior, shape, seed), torch.zeros_like(x), 0, 0.0
    while done < 1 and not stop():
        done = min(share(), 1.0)
        sigma = brightest * STRONGEST * (WEAKEST / STRONGEST) ** done
        if iteration % MATCH_EVERY == 0:
            tool.match(x.numpy())
        noisy = x + u
        clean = torch.from_numpy(tool.denoised(noisy.numpy(), sigma))
        u = noisy - clean
        clean = allowed(clean)
        x = allowed(least_squares(measurements, clean - u, clean - u, 1 / sigma**2, CG_STEPS))
        iteration += 1
        yield Estimate(clean, misfit(measurements, clean))


def least_squares(
    measurements: Sequence[Measurement], start: Tensor, pull: Tensor, strength: float, steps: int
) -> Tensor:
    """Return about the least of ``sum_m |A_m x - y_m|^2 / variance + strength |x - pull|^2``: conjugate gradients."""
    x = start.clone()
    left = strength * (pull - x) + downhill(measurements, x)
    direction, square = left, _dot(left, left)
    enough = _SOLVED * square
    for _ in range(steps):
        if square <= enough:
            break
        curved = strength * direction + curvature(measurements, direction)
        length = square / _dot(direction, curved)
        x = x + length * direction
        left = left - length * curved
        new_square = _dot(left, left)
        direction = left + (new_square / square) * direction
        square = new_square
    return x


def downhill(measurements: Sequence[Measurement], volume: Tensor) -> Tensor:
    """Return minus the gradient of half of the summed misfits, ``(Z, Y, X)``."""
    total = torch.zeros_like(volume)
    for m in measurements:
        total += m.adjoint(m.precision * (m.values - m.forward(volume)))
    return total


def curvature(measurements: Sequence[Measurement], volume: Tensor) -> Tensor:
    """Return their Hessian times a volume."""
    total = torch.zeros_like(volume)
    for m in measurements:
        total += m.adjoint(m.precision * m.forward(volume))
    return total


def misfit(measurements: Sequence[Measurement], volume: Tensor) -> float:
    """Return the mean squared difference from the measurements, each over its variance: 1 is as noisy as they are."""
    squares = [(m.precision * (m.values - m.forward(volume)).square()).double() for m in measurements]
    return TRUST * float(sum(s.sum() for s in squares)) / sum(s.numel() for s in squares)


def _stiffness(measurements: Sequence[Measurement], shape: Sequence[int]) -> float:
    """Return about the mean eigenvalue of the Hessian that matters: its Rayleigh quotient of a random volume."""
    probe = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return _dot(probe, curvature(measurements, probe)) / _dot(probe, probe)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
