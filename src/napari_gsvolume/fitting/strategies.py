"""Where Gaussians are added to a fit, and which ones are moved elsewhere: five ways behind one interface."""

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
    """A way of choosing where Gaussians are added."""

    name: ClassVar[str]

    @abstractmethod
    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the population grown to `wanted`.

        Parameters
        ----------
        gaussians : Gaussians
            N of them, none useless, N < `wanted`. Strategies that add Gaussians to Gaussians at most double them; the
            other places, like all that a strategy has no use for, go to births from the residual.
        residual : Tensor, the grid's shape
            target - f, zero at voxels that are not valid.
        wanted : int
            The number of Gaussians to return.
        random : torch.Generator
            Equal seeds give equal results.
        """

    def rearrange(self, gaussians: Gaussians, residual: Tensor, random: torch.Generator) -> Change | None:
        """Return the population with the same number of Gaussians put to better use; None for nothing to do."""
        return None


class ResidualBirths(Strategy):
    """New Gaussians at places drawn from the squared residual; see `births`."""

    name = "residual"

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians as they are, and births."""
        present = len(gaussians.weights)
        return append(gaussians, births(residual, wanted - present, present, random))


@dataclass(frozen=True)
class AdaptiveDensity(Strategy):
    """Splitting and cloning where centres are pulled at, as 3D Gaussian splatting does (Kerbl et al. 2023), mass kept.

    A Gaussian with too much to describe is pulled different ways by different voxels. The pulls add up to zero once
    its centre has converged, so they are judged before they are added (in images: AbsGS, Ye et al. 2024): the score is
    the sum of the squared pulls of single voxels, ``sum_x |r df/da|^2``, in whitened coordinates.

    Gaussians with a score above the threshold are handled in descending order of the score. Large ones are split
    (`split_in_halves`). Small ones are cloned: each of the two copies has half of the weight, one stays and the other
    moves downhill by a fraction of its radius, so that to first order half of the squared error falls by half of that
    fraction times the slope.

    Parameters
    ----------
    threshold : float
        Least score, in mean scores.
    large : float
        Least longest radius to be split, in mean distances between Gaussians.
    share : float
        Offset of the halves, in radii; each is ``sqrt(1 - share^2)`` as long.
    pace : float
        How far a clone moves, in radii.
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
        chosen = _highest(score, self.threshold * float(score.sum()) / max(present, 1), wanted - present)

        radius = semi_axes(gaussians.select(chosen), shape)[0][:, 0].norm(dim=1)
        is_large = radius > self.large * spacing(residual.numel(), wanted, residual.ndim)
        split, clone = chosen[is_large], chosen[~is_large]
        old, new = split_in_halves(gaussians.select(split), shape, self.share)
        gaussians = substitute(gaussians, split, old)
        half = gaussians.select(clone)
        half = half._replace(weights=half.weights / 2)
        gaussians = substitute(gaussians, clone, half)
        moved = half._replace(means=half.means + self.pace * _downhill(half, residual))
        return _filled(append(gaussians, new.join(moved)), residual, wanted, random)


@dataclass(frozen=True)
class SteepestSplitting(Strategy):
    """Splitting in two where that is the way down: at saddle points (Liu et al. 2019; SteepGS: Wang et al. 2025).

    Two Gaussians of half of the weight each, at ``mu +- s v`` in whitened coordinates and otherwise as their parent,
    change half of the squared error by ``s^2 lambda / 2`` to second order, ``lambda = v^T C v`` with C the splitting
    matrix. Least is the smallest eigenvalue, along its eigenvector. Beside it stands the pair's own part of fourth
    order, the energy of the change, ``(s^2 w / 2)^2 |d^2 e|^2 / 2 = (3 / 32) w^2 c s^4``: their sum is least, ``- (2 /
    3) lambda^2 / (w^2 c)``, at ``s^2 = -(8 / 3) lambda / (w^2 c)``.

    To second order splitting along v is growing along v and losing weight. So where weights and shapes have both
    converged C vanishes, and it is Gaussians that have not, whose step is held back by their trust radius or their
    neighbours, that are found worth splitting.

    Parameters
    ----------
    threshold : float
        Least decrease, in mean shares of half of the squared error a Gaussian.
    shortest, longest : float
        Bounds of the offset s.
    """

    name = "saddle"
    threshold: float = 1.5
    shortest: float = 0.3
    longest: float = 1.0

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians, some of them moved one way, their twins moved the other way, and births."""
        offsets, decrease = self.splits(gaussians, residual)
        share = float(residual.square().sum()) / (2 * wanted)
        chosen = _highest(decrease, self.threshold * share, wanted - len(decrease))
        half, offset = gaussians.select(chosen), offsets[chosen]
        half = half._replace(weights=half.weights / 2)
        gaussians = substitute(gaussians, chosen, half._replace(means=half.means + offset))
        twins = half._replace(means=half.means - offset)
        return _filled(append(gaussians, twins), residual, wanted, random)

    def splits(self, gaussians: Gaussians, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far each Gaussian would be split, ``(N, D)`` voxels, and what half the squared error loses."""
        axes, whitened = semi_axes(gaussians, tuple(residual.shape))
        values, vectors = torch.linalg.eigh(whitened @ splitting_matrices(gaussians, residual) @ whitened.mT)
        least = values[:, 0]
        stiffness = 3 / 8 * gaussians.weights**2 * self_overlap(gaussians)  # the fourth derivative over 6
        square = (-least / stiffness.clamp_min(1e-30)).clamp(self.shortest**2, self.longest**2)  # s^2
        offsets = (square.sqrt()[:, None, None] * vectors[:, None, :, 0] @ axes)[:, 0]
        return offsets, -square * (least / 2 + square * stiffness / 4)


@dataclass(frozen=True)
class Relocation(Strategy):
    """Copies of Gaussians drawn at random, spread by noise (3DGS-MCMC: Kheradmand et al. 2024), for sums.

    A Gaussian drawn k - 1 times becomes k of weight w / k: f is exactly what it was. (The paper's formula does the same
    for what occludes.) Noise then moves the k apart; its mean over them is taken out, so that f changes from second
    order on. They are drawn by energy inside the grid, ``w^2 sum_x e^2``; drawn by the squared error
    under them fits came out worse. Rearranging makes the dead, those of least energy, such copies of the living.

    Parameters
    ----------
    noise : float
        Standard deviation of the whitened noise, in radii.
    dead : float
        Largest energy of a dead Gaussian, in mean shares of the squared error a Gaussian.
    most : float
        Largest share of the population to relocate at a time.
    """

    name = "mcmc"
    noise: float = 0.7
    dead: float = 0.1
    most: float = 0.03

    def grow(self, gaussians: Gaussians, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
        """Return the Gaussians with copies of some, and births where that would more than double them."""
        present = len(gaussians.weights)
        count = min(wanted - present, present)
        copied = self._copied(gaussians, _energy(gaussians, residual), count, residual, random)
        return _filled(copied, residual, wanted, random)

    def rearrange(self, gaussians: Gaussians, residual: Tensor, random: torch.Generator) -> Change | None:
        """Return the Gaussians with the dead ones made copies of living ones."""
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
        """Return the Gaussians with `count` copies, drawn with probabilities as the energy."""
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
    """Births from the residual; rearranging, Gaussians nearly the same become one, and births take their places.

    Parameters
    ----------
    threshold : float
        Least normalised overlap of a pair to be merged; see `merge_similar`.
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
        If there is none.
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
    """Return the way, one radius long, on which each centre lowers the squared error most, ``(N, D)``."""
    axes, whitened = semi_axes(gaussians, tuple(residual.shape))
    slope = vjp(gaussians, residual)[:, 1 : residual.ndim + 1]
    z = (whitened @ slope[:, :, None])[:, :, 0]  # (N, T)
    flat = z.norm(dim=1) == 0
    z[flat, 0] = 1  # nothing pulls: along the longest axis
    way: Tensor = ((z / z.norm(dim=1, keepdim=True))[:, None] @ axes)[:, 0]
    return way


def _energy(gaussians: Gaussians, residual: Tensor) -> Tensor:
    """Return the energy inside the grid, ``w^2 sum_x e^2``, ``(N,)``."""
    inside: Tensor = gather(gaussians.means, 2**0.5 * gaussians.factors, torch.ones_like(residual))[:, 0]
    energy: Tensor = gaussians.weights**2 * inside
    return energy


def _highest(score: Tensor, limit: float, most: int) -> Tensor:
    """Return positions of at most so many scores, highest first, that are above the limit."""
    best: Tensor = torch.argsort(score, descending=True, stable=True)[:most]
    above: Tensor = best[score[best] > limit]
    return above


def _filled(change: Change, residual: Tensor, wanted: int, random: torch.Generator) -> Change:
    """Return the change with births up to `wanted` Gaussians."""
    present = len(change.gaussians.weights)
    if present >= wanted:
        return change
    return Change(change.kept, change.gaussians.join(births(residual, wanted - present, present, random)))
