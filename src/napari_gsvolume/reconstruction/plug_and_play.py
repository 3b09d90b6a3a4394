"""Plug-and-play ADMM: voxels from measurements and an image prior.

The alternating direction method of multipliers with a denoiser in place of the proximal operator of the prior (S. V.
Venkatakrishnan, C. A. Bouman, B. Wohlberg, "Plug-and-play priors for model based reconstruction", IEEE GlobalSIP,
2013). The data fidelity is a least squares problem, solved by conjugate gradients; the noise level of the denoiser
decreases over the iterations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..progress import Budget
from .bm4d import BLOCK_SIZE, BM4D
from .measurements import VARIANCE_SCALE, Measurement
from .settings import Prior

INITIAL_NOISE_LEVEL, FINAL_NOISE_LEVEL = 0.2, 0.01
"""Noise level of the denoiser in the first and last iteration, relative to the largest intensity."""
MATCH_EVERY = 2
CG_ITERATIONS = 60
_FIRST_CG_ITERATIONS = 25
_TV_ITERATIONS = 20
_CG_TOLERANCE = 1e-4
"""Relative squared gradient at which conjugate gradients stop."""


class _Denoiser(Protocol):
    def match(self, guide: NDArray[np.float32]) -> None: ...

    def denoise(self, volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]: ...


class TotalVariation:
    """Total variation denoiser, of scikit-image.

    References
    ----------
    .. [1] L. I. Rudin, S. Osher and E. Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D
       60, 259-268, 1992.
    .. [2] A. Chambolle, "An algorithm for total variation minimization and applications", J. Math. Imaging Vis. 20,
       89-97, 2004.
    """

    def match(self, guide: NDArray[np.float32]) -> None:
        """Do nothing: total variation needs no guide."""

    def denoise(self, volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """Denoise a volume; `sigma` is the weight of the total variation."""
        from skimage.restoration import denoise_tv_chambolle

        smooth: NDArray[np.float32] = denoise_tv_chambolle(volume, weight=sigma, max_num_iter=_TV_ITERATIONS)
        return smooth.astype(np.float32)


def build_denoiser(prior: Prior, shape: Sequence[int], seed: int = 0) -> _Denoiser:
    """Return the denoiser of a prior; total variation for volumes that are too thin for blocks."""
    return BM4D(shape, seed=seed) if prior == "bm4d" and min(shape) >= BLOCK_SIZE else TotalVariation()


class ADMMIterate(NamedTuple):
    """Iterate of plug-and-play ADMM.

    Attributes
    ----------
    volume : Tensor, (Z, Y, X)
        Denoised volume, in relative intensities.
    data_fidelity : float
        Mean squared residual of the measurements over their variance.
    fraction : float
        Fraction of the iterations that is done, 0 to 1.
    """

    volume: Tensor
    data_fidelity: float
    fraction: float


def admm_iterates(
    measurements: Sequence[Measurement],
    shape: Sequence[int],
    prior: Prior,
    budget: Budget,
    *,
    non_negative: bool,
    support: Tensor | None = None,
    seed: int = 0,
) -> Iterator[ADMMIterate]:
    """Yield the iterates of plug-and-play ADMM; the first is a least squares solution.

    Parameters
    ----------
    measurements : sequence of Measurement
        Linear measurements of the volume, normalized to the same unit of intensity.
    shape : (int, int, int)
        Shape of the volume.
    prior : "bm4d" or "tv"
        Image prior.
    budget : Budget
        Limits of the iterations; at least one of iterations and time limit is needed, as it sets the noise level of
        the denoiser in each iteration.
    non_negative : bool
        Constrain intensities to be non-negative.
    support : Tensor of bool, (Z, Y, X), optional
        Mask of the voxels that may differ from zero.
    seed : int
        Seed of the denoiser.
    """
    began = time.perf_counter()

    def constrain(volume: Tensor) -> Tensor:
        volume = volume.clamp_min(0) if non_negative else volume
        return volume if support is None else volume * support

    starts = [start for m in measurements if (start := m.initial_volume()) is not None]
    x = torch.stack(starts).mean(0) if starts else torch.zeros(tuple(shape))
    x = constrain(solve_least_squares(measurements, x, x, 1e-3 * _stiffness(measurements, shape), _FIRST_CG_ITERATIONS))
    yield ADMMIterate(x, data_fidelity(measurements, x), 0.0)
    largest = float(np.quantile(x.abs().numpy(), 0.999))
    denoiser, u, iteration, done = build_denoiser(prior, shape, seed), torch.zeros_like(x), 0, 0.0
    while done < 1 and not budget.stop():
        done = min(budget.fraction(iteration + 1, time.perf_counter() - began), 1.0)
        sigma = largest * INITIAL_NOISE_LEVEL * (FINAL_NOISE_LEVEL / INITIAL_NOISE_LEVEL) ** done
        if iteration % MATCH_EVERY == 0:
            denoiser.match(x.numpy())
        noisy = x + u
        clean = torch.from_numpy(denoiser.denoise(noisy.numpy(), sigma))
        u = noisy - clean
        clean = constrain(clean)
        x = constrain(solve_least_squares(measurements, clean - u, clean - u, 1 / sigma**2, CG_ITERATIONS))
        iteration += 1
        yield ADMMIterate(clean, data_fidelity(measurements, clean), done)


def solve_least_squares(
    measurements: Sequence[Measurement], start: Tensor, pull: Tensor, strength: float, steps: int
) -> Tensor:
    """Minimize ``sum_m |A_m x - y_m|^2 / variance + strength |x - pull|^2`` by conjugate gradients.

    Parameters
    ----------
    measurements : sequence of Measurement
        Linear measurements A_m, y_m.
    start, pull : Tensor, (Z, Y, X)
        Initial volume, and centre of the quadratic penalty.
    strength : float
        Weight of the quadratic penalty.
    steps : int
        Largest number of iterations.

    References
    ----------
    .. [1] M. R. Hestenes and E. Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. Natl.
       Bur. Stand. 49(6), 409-436, 1952.
    """
    x = start.clone()
    left = strength * (pull - x) + negative_gradient(measurements, x)
    direction, square = left, _dot(left, left)
    enough = _CG_TOLERANCE * square
    for _ in range(steps):
        if square <= enough:
            break
        curved = strength * direction + hessian_product(measurements, direction)
        length = square / _dot(direction, curved)
        x = x + length * direction
        left = left - length * curved
        new_square = _dot(left, left)
        direction = left + (new_square / square) * direction
        square = new_square
    return x


def negative_gradient(measurements: Sequence[Measurement], volume: Tensor) -> Tensor:
    """Return the negative gradient of half of the summed data fidelities, ``(Z, Y, X)``."""
    total = torch.zeros_like(volume)
    for m in measurements:
        total += m.adjoint(m.precision * (m.values - m.forward(volume)))
    return total


def hessian_product(measurements: Sequence[Measurement], volume: Tensor) -> Tensor:
    """Return the product of the Hessian of half of the summed data fidelities with a volume, ``(Z, Y, X)``."""
    total = torch.zeros_like(volume)
    for m in measurements:
        total += m.adjoint(m.precision * m.forward(volume))
    return total


def data_fidelity(measurements: Sequence[Measurement], volume: Tensor) -> float:
    """Return the mean squared residual of the measurements over their variance; 1 is the noise level."""
    return mean_squared_residual(measurements, [m.forward(volume) for m in measurements])


def mean_squared_residual(measurements: Sequence[Measurement], predictions: Sequence[Tensor]) -> float:
    """Return the mean squared residual of predicted values over the variance of the measurements."""
    squares = [
        (m.precision * (m.values - values).square()).double()
        for m, values in zip(measurements, predictions, strict=True)
    ]
    return VARIANCE_SCALE * float(sum(s.sum() for s in squares)) / sum(s.numel() for s in squares)


def _stiffness(measurements: Sequence[Measurement], shape: Sequence[int]) -> float:
    """Estimate the mean eigenvalue of the Hessian: Rayleigh quotient of a random volume."""
    probe = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return _dot(probe, hessian_product(measurements, probe)) / _dot(probe, probe)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
