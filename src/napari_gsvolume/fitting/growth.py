"""The choice of N: where Gaussians are born, when, and which ones go."""

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
"""A fixed count is complete after this share of the fit; Gauss-Newton is through with a round in a few iterations."""
GROWTH = 1.5
"""How much larger each round makes a population whose final size is open."""
_FIRST_COUNT = 200
BYTES_A_GAUSSIAN = {2: 4.5, 3: 6.2}
"""In 2D and 3D: where a given size is spent best, on more, coarser Gaussians or fewer, finer ones; found by trial."""
_HEADER_BYTES = 200
_SLOW = 0.15
"""A round has given what it can when an iteration gains less than this share of the mean gain since it began."""
_KEYS = 1 << 20
"""Voxels drawn from together: it bounds the memory that takes."""


@dataclass(frozen=True)
class Plan:
    """When a population grows, and to which size.

    Parameters
    ----------
    final : int
        Largest number of Gaussians.
    rounds : int
        Number of rounds to a fixed count.
    open_ended : bool
        Whether the number is to be found: it then grows whenever the present Gaussians have about given what they can.
    births_until : float
        The share of the fit after which a fixed count is complete.
    n_bytes : int or None
        The largest file the Gaussians may take.
    """

    final: int
    rounds: int
    open_ended: bool
    births_until: float
    n_bytes: int | None = None

    @property
    def start(self) -> int:
        """The size of the first round."""
        return min(self.final, _FIRST_COUNT) if self.open_ended else math.ceil(self.final / self.rounds)

    def wanted(self, present: int, progress: float, gains: list[float]) -> int:
        """Return the size the population should have now.

        Parameters
        ----------
        present : int
            Its size after the last round.
        progress : float
            The share of the fit that is over, in [0, 1].
        gains : list of float
            Decibels gained by each iteration since then.
        """
        if self.open_ended:
            slow = len(gains) >= 5 and sum(gains[-2:]) / 2 <= _SLOW * sum(gains) / len(gains)
            return min(self.final, math.ceil(GROWTH * present)) if slow else present
        if present >= self.final:
            return self.final
        due = 1 + int(progress / self.births_until * (self.rounds - 1))
        return max(present, min(self.final, math.ceil(self.final * due / self.rounds)))


def file_size(settings: FitSettings, n_voxels: int) -> int | None:
    """Return the bytes that a file of the Gaussians may have; None where that was not asked for."""
    if settings.target_bytes is not None:
        return settings.target_bytes
    return None if settings.ratio is None else int(4 * n_voxels / settings.ratio)


def make_growth_plan(settings: FitSettings, n_valid: int, n_voxels: int, ndim: int) -> Plan:
    """Return the plan that the settings ask for on so many voxels.

    Raises
    ------
    ValueError
        If more Gaussians than voxels are asked for.
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
    # A 3D Gaussian has ten numbers: beyond a tenth of the voxels a sum of them is no shorter than the volume.
    most = max(1, n_valid // 10)
    if n_bytes is not None:
        count = min(most, max(1, int((n_bytes - _HEADER_BYTES) / BYTES_A_GAUSSIAN[ndim])))
        return Plan(count, min(settings.rounds, count), False, births_until, n_bytes)
    if settings.target_psnr is None and settings.time_limit is None:
        return Plan(min(DEFAULT_COUNT, most), settings.rounds, False, births_until)
    return Plan(most, 1, True, births_until)


def spacing(n_voxels: int, count: int, ndim: int) -> float:
    """Return the mean distance, in voxels, between `count` Gaussians spread over the grid."""
    return float((n_voxels / count) ** (1 / ndim))


def random_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return the source of random numbers of a fit on that device: equal seeds give equal fits."""
    return torch.Generator(device).manual_seed(seed)


def initial_gaussians(values: Tensor, count: int, random: torch.Generator) -> Gaussians:
    """Return the first Gaussians: round, of weight 0, where the gradient of the volume is large."""
    sigma = 0.35 * spacing(values.numel(), count, values.ndim)
    smooth = smoothed(values, 1.0)
    slope = torch.zeros_like(smooth)
    for axis, n in enumerate(values.shape):
        difference = smooth.diff(dim=axis).square_()  # shared by the two voxels beside it
        for start in (0, 1):
            slope.narrow(axis, start, n - 1).add_(difference)
        del difference
    return _born(slope.sqrt_(), count, sigma, random)


def births(residual: Tensor, count: int, present: int, random: torch.Generator) -> Gaussians:
    """Return new Gaussians: round, of weight 0, at places drawn from the squared, lightly smoothed residual."""
    distance = spacing(residual.numel(), present + count, residual.ndim)
    return _born(smoothed(residual, 0.04 * distance).square_(), count, 0.3 * distance, random)


def smoothed(grid: Tensor, sigma: float) -> Tensor:
    """Return the grid averaged with Gaussian weights, cut off at four sigma; what is outside of it does not count."""
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

    One goes when its energy inside the grid, ``w^2 sum_x e(x)``, is under a thousandth of the mean share of the squared
    error a Gaussian: all that go together change the error by less than about 0.1 %.
    """
    inside = gather(gaussians.means, gaussians.factors, torch.ones(shape, device=gaussians.means.device))[:, 0]
    energy = gaussians.weights**2 * inside
    return energy > 1e-3 * loss * n_valid / max(len(energy), 1)


def _born(chance: Tensor, count: int, sigma: float, random: torch.Generator) -> Gaussians:
    """Draw `count` different voxels with chances in proportion to `chance`, each a round Gaussian of `sigma` voxels."""
    shape, device = chance.shape, chance.device
    place = _drawn(chance.flatten(), count, random)
    means = torch.rand(count, len(shape), generator=random, device=device) - 0.5
    for axis in reversed(range(len(shape))):
        means[:, axis] += place % shape[axis]
        place = place // shape[axis]
        if shape[axis] == 1:  # there is nowhere to go
            means[:, axis] = 0
    one = torch.eye(len(shape), device=device)
    return Gaussians(means, (one / max(sigma, 0.5)).repeat(count, 1, 1), torch.zeros(count, device=device))


def _drawn(chance: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return `count` different positions, drawn with chances in proportion to `chance`, ascending.

    With u uniform in (0, 1), the largest of ``log(u) / chance`` are a weighted draw without replacement (Efraimidis and
    Spirakis 2006). In float64: where there are many voxels all that win have u near 1.
    """
    keys, places = [], []
    for start, some in zip(range(0, len(chance), _KEYS), torch.split(chance, _KEYS), strict=True):
        key = torch.rand(len(some), generator=random, dtype=torch.float64, device=some.device).log_().div_(some)
        best = key.topk(min(count, len(key)))
        keys.append(best.values)
        places.append(best.indices + start)
    winners = torch.cat(keys).topk(count).indices
    return torch.cat(places)[winners].sort().values
