"""Growth of the number of Gaussians: when Gaussians are added, where the first ones are placed, which are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import gather
from ..operators.gaussian_sum import Gaussians
from .settings import FitSettings

DEFAULT_COUNT = 2000
BIRTHS_UNTIL = {"gauss-newton": 0.25, "first-order": 0.5}
"""Fraction of a fit after which a fixed count is complete; Gauss-Newton converges in a few iterations per round."""
GROWTH = 1.5
"""Growth factor per round if the final number is open."""
_FIRST_COUNT = 200
BYTES_PER_GAUSSIAN = {2: 4.5, 3: 6.2}
"""Bytes per Gaussian, in 2D and 3D, of the best trade-off of number and precision in a file; by experiment."""
_HEADER_BYTES = 200
_SLOW = 0.15
"""Fraction of the mean gain per iteration since the start of a round, below which the round is over."""
_KEYS = 1 << 20
"""Voxels per batch of the random sampling; it bounds the memory."""


@dataclass(frozen=True)
class Plan:
    """Schedule of the growth: when the number of Gaussians grows, and to which size.

    Parameters
    ----------
    final : int
        Final number of Gaussians; the largest possible one if it is open.
    rounds : int
        Number of rounds up to a fixed count.
    open_ended : bool
        True if the number is open: it then grows whenever the current Gaussians have nearly converged.
    births_until : float
        Fraction of the fit after which a fixed count is complete.
    n_bytes : int or None
        Largest size of the file, bytes.
    """

    final: int
    rounds: int
    open_ended: bool
    births_until: float
    n_bytes: int | None = None

    @property
    def start(self) -> int:
        """Number of Gaussians in the first round."""
        return min(self.final, _FIRST_COUNT) if self.open_ended else math.ceil(self.final / self.rounds)

    def target_count(self, present: int, progress: float, gains: list[float]) -> int:
        """Return the number of Gaussians due now.

        Parameters
        ----------
        present : int
            Number after the last round.
        progress : float
            Fraction of the fit that is done, 0 to 1.
        gains : list of float
            Gain of each iteration since then, dB.
        """
        if self.open_ended:
            slow = len(gains) >= 5 and sum(gains[-2:]) / 2 <= _SLOW * sum(gains) / len(gains)
            return min(self.final, math.ceil(GROWTH * present)) if slow else present
        if present >= self.final:
            return self.final
        due = 1 + int(progress / self.births_until * (self.rounds - 1))
        return max(present, min(self.final, math.ceil(self.final * due / self.rounds)))


def file_size(settings: FitSettings, n_voxels: int) -> int | None:
    """Return the largest size of the file in bytes; None without a limit."""
    if settings.target_bytes is not None:
        return settings.target_bytes
    return None if settings.ratio is None else int(4 * n_voxels / settings.ratio)


def make_growth_plan(settings: FitSettings, n_valid: int, n_voxels: int, ndim: int) -> Plan:
    """Return the growth schedule of the settings for a volume.

    Raises
    ------
    ValueError
        If there are to be more Gaussians than voxels.
    """
    births_until = BIRTHS_UNTIL["gauss-newton" if settings.solver == "gauss-newton" else "first-order"]
    n_bytes = file_size(settings, n_voxels)
    if settings.gaussians is not None:
        if settings.gaussians > n_valid:
            raise InputError(
                f"{settings.gaussians:,} Gaussians are more than the {n_valid:,} voxels there are to fit; "
                "ask for fewer."
            )
        return Plan(settings.gaussians, min(settings.rounds, settings.gaussians), False, births_until, n_bytes)
    # A 3D Gaussian has ten parameters: beyond a tenth of the voxels, the sum has more parameters than the volume.
    most = max(1, n_valid // 10)
    if n_bytes is not None:
        count = min(most, max(1, int((n_bytes - _HEADER_BYTES) / BYTES_PER_GAUSSIAN[ndim])))
        return Plan(count, min(settings.rounds, count), False, births_until, n_bytes)
    if settings.target_psnr is None and settings.time_limit is None:
        return Plan(min(DEFAULT_COUNT, most), settings.rounds, False, births_until)
    return Plan(most, 1, True, births_until)


def spacing(n_voxels: int, count: int, ndim: int) -> float:
    """Return the mean distance, in voxels, between `count` Gaussians spread over the grid."""
    return float((n_voxels / count) ** (1 / ndim))


def random_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return a random number generator on a device; equal seeds give equal fits."""
    return torch.Generator(device).manual_seed(seed)


def initial_gaussians(values: Tensor, count: int, random: torch.Generator) -> Gaussians:
    """Return the first Gaussians: isotropic, of weight 0, at positions with a large gradient of the volume."""
    sigma = 0.35 * spacing(values.numel(), count, values.ndim)
    smooth = smoothed(values, 1.0)
    slope = torch.zeros_like(smooth)
    for axis, n in enumerate(values.shape):
        difference = smooth.diff(dim=axis).square_()  # shared by the two voxels on both sides
        for start in (0, 1):
            slope.narrow(axis, start, n - 1).add_(difference)
        del difference
    return _sample_gaussians(slope.sqrt_(), count, sigma, random)


def births(residual: Tensor, count: int, present: int, random: torch.Generator) -> Gaussians:
    """Return new Gaussians: isotropic, of weight 0, at positions sampled from the squared, smoothed residual."""
    distance = spacing(residual.numel(), present + count, residual.ndim)
    return _sample_gaussians(smoothed(residual, 0.04 * distance).square_(), count, 0.3 * distance, random)


def smoothed(grid: Tensor, sigma: float) -> Tensor:
    """Return the grid averaged with Gaussian weights, cut off at four sigma, and renormalised at the borders."""
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(round(4 * sigma) + 1)]
    for axis, n in enumerate(grid.shape):
        some = weights[:n]
        total = torch.full((n,), some[0], device=grid.device)
        sums = grid * some[0]
        for k, weight in enumerate(some[1:], 1):
            for to, start in ((0, k), (k, 0)):
                total[to : to + n - k] += weight
                sums.narrow(axis, to, n - k).add_(grid.narrow(axis, start, n - k), alpha=weight)
        grid = sums.div_(total.view(-1, *[1] * (grid.ndim - 1 - axis)))
    return grid


def useful_mask(gaussians: Gaussians, loss: float, n_valid: int, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of the Gaussians worth keeping.

    A Gaussian is removed if its energy inside the grid, ``w^2 sum_x e(x)``, is below a thousandth of the squared error
    per Gaussian: all removed ones together change the error by less than about 0.1 %.
    """
    inside = gather(gaussians.means, gaussians.factors, torch.ones(shape, device=gaussians.means.device))[:, 0]
    energy = gaussians.weights**2 * inside
    return energy > 1e-3 * loss * n_valid / max(len(energy), 1)


def _sample_gaussians(chance: Tensor, count: int, sigma: float, random: torch.Generator) -> Gaussians:
    """Return isotropic Gaussians of `sigma` voxels at `count` different voxels, sampled in proportion to `chance`."""
    shape, device = chance.shape, chance.device
    place = _weighted_sample(chance.flatten(), count, random)
    means = torch.rand(count, len(shape), generator=random, device=device) - 0.5
    for axis in reversed(range(len(shape))):
        means[:, axis] += place % shape[axis]
        place = place // shape[axis]
        if shape[axis] == 1:  # only one position
            means[:, axis] = 0
    one = torch.eye(len(shape), device=device)
    return Gaussians(means, (one / max(sigma, 0.5)).repeat(count, 1, 1), torch.zeros(count, device=device))


def _weighted_sample(chance: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return `count` different positions, sampled in proportion to `chance`, in ascending order.

    With u uniform in (0, 1), the largest of ``log(u) / chance`` are a weighted sample without replacement (Efraimidis
    and Spirakis 2006). In float64, as among many voxels all selected ones have u near 1.
    """
    keys, places = [], []
    for start, some in zip(range(0, len(chance), _KEYS), torch.split(chance, _KEYS), strict=True):
        key = torch.rand(len(some), generator=random, dtype=torch.float64, device=some.device).log_().div_(some)
        best = key.topk(min(count, len(key)))
        keys.append(best.values)
        places.append(best.indices + start)
    winners = torch.cat(keys).topk(count).indices
    return torch.cat(places)[winners].sort().values
