"""Growth strategies: where Gaussians are added during a fit, and which ones are relocated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import gather
from ..operators.gaussian_sum import Gaussians, self_overlap, symmetric, vjp
from .growth import births, spacing
from .split_merge import (
    MERGE_OVERLAP,
    Change,
    append,
    merge_similar,
    semi_axes,
    split_in_halves,
    splitting_matrices,
    substitute,
)


class Strategy(ABC):
    """Strategy for the positions of new Gaussians."""

    name: ClassVar[str]

    @abstractmethod
    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians, grown to the number `wanted`.

        Parameters
        ----------
        gaussians : Gaussians
            Current Gaussians, without useless ones, fewer than `wanted`. Strategies that split or copy Gaussians at
            most double them; births from the residual supply the rest.
        residual : Tensor, the grid's shape
            Residual target - f, zero at invalid voxels.
        wanted : int
            Number of Gaussians to return.
        random : torch.Generator
            Random number generator.
        """

    def rearrange(self, gaussians: Gaussians, residual: Tensor, random: torch.Generator) -> Change | None:
        """Return as many Gaussians, some of them relocated; None if there is nothing to do."""
        return None


class ResidualBirths(Strategy):
    """Births from the residual: positions sampled from the squared residual; see `births`."""

    name = "residual"

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the unchanged Gaussians, and births."""
        present = len(gaussians.weights)
        return append(gaussians, births(residual, wanted - present, present, random))


@dataclass(frozen=True)
class AdaptiveDensity(Strategy):
    """Splitting and cloning by positional gradients, as in 3D Gaussian splatting (Kerbl et al. 2023), at constant mass.

    The voxels under a Gaussian with too much detail pull its centre in different directions. These gradients add up to
    zero once the centre has converged, so the score is taken before the sum (in images: AbsGS, Ye et al. 2024): the sum
    of the squared gradients of single voxels, ``sum_x |r df/da|^2``, in whitened coordinates.

    Gaussians with a score above the threshold are handled in descending order of the score. Large ones are split
    (`split_in_halves`). Small ones are cloned: each of the two copies has half of the weight, one stays and the other
    moves downhill by a fraction of its radius, so that to first order half of the squared error falls by half of that
    fraction times the slope.

    Parameters
    ----------
    threshold : float
        Smallest score, relative to the mean score.
    large : float
        Smallest longest radius for splitting, in mean distances between Gaussians.
    share : float
        Offset of the halves, in radii; each is ``sqrt(1 - share^2)`` as long.
    pace : float
        Displacement of a clone, in radii.
    """

    name = "gradient"
    threshold: float = 2.0
    large: float = 0.5
    share: float = 0.7
    pace: float = 0.4

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians, some of them halved, their other halves, and births."""
        present, shape = len(gaussians.weights), tuple(residual.shape)
        score = _squared_pulls(gaussians, residual)
        selected = _highest(score, self.threshold * float(score.sum()) / max(present, 1), wanted - present)

        radius = semi_axes(gaussians.select(selected), shape)[0][:, 0].norm(dim=1)
        is_large = radius > self.large * spacing(residual.numel(), wanted, residual.ndim)
        split, clone = selected[is_large], selected[~is_large]
        old, new = split_in_halves(gaussians.select(split), shape, self.share)
        gaussians = substitute(gaussians, split, old)
        half = gaussians.select(clone)
        half = half._replace(weights=half.weights / 2)
        gaussians = substitute(gaussians, clone, half)
        moved = half._replace(means=half.means + self.pace * _downhill(half, residual))
        return _filled(append(gaussians, new.join(moved)), residual, wanted, random)


@dataclass(frozen=True)
class SteepestSplitting(Strategy):
    """Splitting at saddle points, where it decreases the loss (Liu et al. 2019; SteepGS: Wang et al. 2025).

    Two Gaussians of half of the weight each, at ``mu +- s v`` in whitened coordinates and otherwise as their parent,
    change half of the squared error by ``s^2 lambda / 2`` to second order, ``lambda = v^T C v`` with C the splitting
    matrix. Least is the smallest eigenvalue, along its eigenvector. Beside it stands the pair's own part of fourth
    order, the energy of the change, ``(s^2 w / 2)^2 |d^2 e|^2 / 2 = (3 / 32) w^2 c s^4``: their sum is least, ``- (2 /
    3) lambda^2 / (w^2 c)``, at ``s^2 = -(8 / 3) lambda / (w^2 c)``.

    To second order, splitting along v equals growth along v and a loss of weight. C therefore vanishes where weights
    and shapes have converged; the Gaussians that are split have not, as their trust radius or their neighbours limit
    their steps.

    Parameters
    ----------
    threshold : float
        Smallest decrease, relative to half of the squared error per Gaussian.
    shortest, longest : float
        Bounds of the offset s.
    """

    name = "saddle"
    threshold: float = 1.5
    shortest: float = 0.3
    longest: float = 1.0

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians, some of them split into twins with opposite offsets, and births."""
        offsets, decrease = self.splits(gaussians, residual)
        share = float(residual.square().sum()) / (2 * wanted)
        selected = _highest(decrease, self.threshold * share, wanted - len(decrease))
        half, offset = gaussians.select(selected), offsets[selected]
        half = half._replace(weights=half.weights / 2)
        gaussians = substitute(gaussians, selected, half._replace(means=half.means + offset))
        twins = half._replace(means=half.means - offset)
        return _filled(append(gaussians, twins), residual, wanted, random)

    def splits(self, gaussians: Gaussians, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offset of each split, ``(N, D)`` voxels, and the decrease of half the squared error."""
        axes, whitened = semi_axes(gaussians, tuple(residual.shape))
        values, vectors = torch.linalg.eigh(whitened @ splitting_matrices(gaussians, residual) @ whitened.mT)
        least = values[:, 0]
        stiffness = 3 / 8 * gaussians.weights**2 * self_overlap(gaussians)  # the fourth derivative over 6
        square = (-least / stiffness.clamp_min(1e-30)).clamp(self.shortest**2, self.longest**2)  # s^2
        offsets = (square.sqrt()[:, None, None] * vectors[:, None, :, 0] @ axes)[:, 0]
        return offsets, -square * (least / 2 + square * stiffness / 4)


@dataclass(frozen=True)
class Relocation(Strategy):
    """Copies of randomly sampled Gaussians, spread by noise (3DGS-MCMC: Kheradmand et al. 2024), for sums.

    A Gaussian sampled k - 1 times becomes k Gaussians of weight w / k, which leaves f unchanged. (The formula of the
    paper does the same under occlusion.) Noise with mean zero over the k copies then moves them apart, which changes f
    only from second order on. Gaussians are sampled by their energy inside the grid, ``w^2 sum_x e^2``; sampling by the
    squared error under them gave worse fits. Rearrangement turns dead Gaussians, those of least energy, into copies.

    Parameters
    ----------
    noise : float
        Standard deviation of the whitened noise, in radii.
    dead : float
        Largest energy of a dead Gaussian, relative to the squared error per Gaussian.
    most : float
        Largest fraction of the Gaussians to relocate at a time.
    """

    name = "mcmc"
    noise: float = 0.7
    dead: float = 0.1
    most: float = 0.03

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians with copies of some, and births beyond twice their number."""
        present = len(gaussians.weights)
        count = min(wanted - present, present)
        copied = self._copied(gaussians, _energy(gaussians, residual), count, residual, random)
        return _filled(copied, residual, wanted, random)

    def rearrange(self, gaussians: Gaussians, residual: Tensor, random: torch.Generator) -> Change | None:
        """Return the Gaussians with copies of others in place of dead ones."""
        energy = _energy(gaussians, residual)
        count = len(energy)
        limit = self.dead * float(residual.square().sum()) / max(count, 1)
        dead = _highest(-energy, -limit, int(self.most * count))
        if not len(dead):
            return None
        kept = torch.ones_like(energy, dtype=torch.bool).index_fill(0, dead, False)
        copied = self._copied(gaussians.select(kept), energy[kept], len(dead), residual, random)
        return Change(kept, copied.gaussians)

    def _copied(
        self, gaussians: Gaussians, energy: Tensor, count: int, residual: Tensor, random: torch.Generator
    ) -> Change:
        """Return the Gaussians with `count` copies, sampled in proportion to the energy."""
        present = len(energy)
        if not count:
            return append(gaussians, gaussians.select(torch.arange(0, device=energy.device)))
        chance = energy.double() + 1e-30  # never all zero
        drawn = torch.multinomial(chance, count, replacement=True, generator=random)
        source = torch.cat([torch.arange(present, device=energy.device), drawn])
        k = torch.zeros_like(energy).index_add_(0, source, energy.new_ones(len(source)))
        everyone = gaussians._replace(weights=gaussians.weights / k).select(source)
        axes, _ = semi_axes(gaussians, tuple(residual.shape))
        z = (
            torch.randn(len(source), axes.shape[1], generator=random, device=energy.device) * self.noise
        )  # (N + count, T)
        z -= (z.new_zeros(present, z.shape[1]).index_add_(0, source, z) / k[:, None])[source]
        everyone = everyone._replace(means=everyone.means + (z[:, None] @ axes[source])[:, 0])
        return Change(torch.ones_like(energy, dtype=torch.bool), everyone)


@dataclass(frozen=True)
class Merging(ResidualBirths):
    """Births from the residual; rearrangement merges nearly equal Gaussians, and births replace them.

    Parameters
    ----------
    threshold : float
        Smallest normalised overlap of a merged pair; see `merge_similar`.
    """

    name = "merge"
    threshold: float = MERGE_OVERLAP

    def rearrange(self, gaussians: Gaussians, residual: Tensor, random: torch.Generator) -> Change | None:
        """Return the Gaussians with close pairs merged, and as many births."""
        merged = merge_similar(gaussians, self.threshold)
        if merged.kept.all():
            return None
        return _filled(merged, residual, len(gaussians.weights), random)


_STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (ResidualBirths, AdaptiveDensity, SteepestSplitting, Relocation, Merging)
}
STRATEGIES = tuple(_STRATEGIES)


def strategy(name: str) -> Strategy:
    """Return the strategy of that name, one of `STRATEGIES`.

    Raises
    ------
    ValueError
        If there is no such strategy.
    """
    if name not in _STRATEGIES:
        raise InputError(f"There is no strategy {name!r}; choose one of {', '.join(STRATEGIES)}.")
    return _STRATEGIES[name]()


def _squared_pulls(gaussians: Gaussians, residual: Tensor) -> Tensor:
    """Return ``sum_x |r df/da|^2 = w^2 sum_x r^2 e^2 |y|^2``, ``(N,)``.

    That is ``w^2 tr(P M)``, M the second moments of ``r^2`` under ``e^2``, the Gaussian of factor ``sqrt(2) W``.
    """
    ndim = residual.ndim
    moments = gather(gaussians.means, 2**0.5 * gaussians.factors, residual.square())
    P = gaussians.factors @ gaussians.factors.mT
    trace = (P * symmetric(moments[:, ndim + 1 :], ndim)).sum((1, 2))
    pulls: Tensor = gaussians.weights**2 * trace
    return pulls


def _downhill(gaussians: Gaussians, residual: Tensor) -> Tensor:
    """Return the steepest descent direction of each centre, one radius long, ``(N, D)``."""
    axes, whitened = semi_axes(gaussians, tuple(residual.shape))
    slope = vjp(gaussians, residual)[:, 1 : residual.ndim + 1]
    z = (whitened @ slope[:, :, None])[:, :, 0]  # (N, T)
    flat = z.norm(dim=1) == 0
    z[flat, 0] = 1  # zero gradient: along the longest axis
    direction: Tensor = ((z / z.norm(dim=1, keepdim=True))[:, None] @ axes)[:, 0]
    return direction


def _energy(gaussians: Gaussians, residual: Tensor) -> Tensor:
    """Return the energy inside the grid, ``w^2 sum_x e^2``, ``(N,)``."""
    inside: Tensor = gather(gaussians.means, 2**0.5 * gaussians.factors, torch.ones_like(residual))[:, 0]
    energy: Tensor = gaussians.weights**2 * inside
    return energy


def _highest(score: Tensor, limit: float, most: int) -> Tensor:
    """Return the positions of the highest scores above the limit, at most `most`, in descending order."""
    best: Tensor = torch.argsort(score, descending=True, stable=True)[:most]
    above: Tensor = best[score[best] > limit]
    return above


def _filled(change: Change, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
    """Return the change with births up to `wanted` Gaussians."""
    present = len(change.gaussians.weights)
    if present >= wanted:
        return change
    return Change(change.kept, change.gaussians.join(births(residual, wanted - present, present, random)))
