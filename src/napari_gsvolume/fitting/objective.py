"""Objective of a fit: a data term plus penalties, with the derivatives that the solvers need.

The loss is ``mean(residual^2) + sum_t lambda_t P_t``, with intensities relative to the data range and every penalty
``P_t`` a mean over Gaussians (see `napari_gsvolume.fitting.penalties`). Solvers work with half the sum of squares, so
a penalty counts there as ``n_valid lambda_t / 2``, its strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..kernels import gather
from ..operators.gaussian_sum import Gaussians, empty, predict, vjp
from ..operators.voxel_support import Ellipsoid, Neighbourhood
from .curvature import Blocks, Curvature, GaussianBlocks
from .penalties import Overlap, Penalty, Smoothness, Spacing, Sparsity, clip_to_orthant, pseudo_gradient
from .settings import FitSettings
from .target import Target


class Evaluation(NamedTuple):
    """Residual and loss of Gaussians."""

    residual: Tensor  # target - prediction, the grid's shape
    loss: float
    mean_square: float
    terms: dict[str, float]  # terms of the loss, multiplied by their weights: "data" and the penalties


class Linear(Protocol):
    """Data term, linearised at given Gaussians."""

    def gradient(self, residual: Tensor) -> Tensor:
        """Return J^T residual, ``(N, K)``."""

    def times(self, step: Tensor) -> Tensor:
        """Return ``J^T J`` times a step ``(N, K)``."""

    @property
    def blocks(self) -> Blocks:
        """Approximate block diagonal of ``J^T J``."""


class _Weighted:
    """Weighted sum of Gaussians, linearised."""

    def __init__(self, gaussians: Gaussians, shape: Sequence[int], *, exact: bool) -> None:
        self.gaussians, self.shape, self.exact = gaussians, shape, exact
        self.blocks: Blocks = GaussianBlocks(gaussians)
        self._curvature: Curvature | None = None

    def gradient(self, residual: Tensor) -> Tensor:
        return vjp(self.gaussians, residual)

    def times(self, step: Tensor) -> Tensor:
        if self._curvature is None:
            self._curvature = Curvature(self.gaussians, self.shape, exact=self.exact)
        return self._curvature.times(step)


class _Supported:
    """Voxel-support data term, linearised."""

    def __init__(self, term: Neighbourhood | Ellipsoid, gaussians: Gaussians) -> None:
        self._linear = term.linearise(gaussians)
        self.blocks: Blocks = self._linear.blocks

    def gradient(self, residual: Tensor) -> Tensor:
        return self._linear.vjp(residual)

    def times(self, step: Tensor) -> Tensor:
        return self._linear.vjp(self._linear.jvp(step))


class Objective:
    """Loss of Gaussians on a target.

    Parameters
    ----------
    target : Target
        Volume to fit.
    settings : FitSettings
        Data term and weights of the penalties.
    free : Tensor, (N, K), optional
        Mask: 1 for the components of a whitened step that may change, 0 for fixed ones. By default all may change.

    Attributes
    ----------
    count : int
        Number of Gaussians in the means of the penalties: the number that the growth has requested so far. Gaussians
        that sparsity removes still count, as a smaller count would raise the penalty of the others.
    """

    def __init__(self, target: Target, settings: FitSettings, free: Tensor | None = None) -> None:
        self.target, self.settings = target, settings
        shape = target.grid.shape
        self.support = (
            Neighbourhood(target.values, settings.neighbourhood_radius, settings.normalised)
            if settings.data_term == "neighbourhood"
            else Ellipsoid(target.values, settings.ellipsoid_radius, settings.normalised)
            if settings.data_term == "ellipsoid"
            else None
        )
        s = settings
        weighted: list[tuple[float, Penalty]] = [
            (s.sparsity_weight, Sparsity(1)),
            (s.overlap_weight, Overlap(1)),
            (s.smoothness_weight, Smoothness(1, shape)),
            (s.spacing_weight, Spacing(1, target=s.spacing, k=s.spacing_radius)),
        ]
        self.penalties = [(weight, penalty) for weight, penalty in weighted if weight > 0]
        self.sparsity = s.sparsity_weight
        self.free = free
        self.count = 1
        self.refresh(empty(target.grid.ndim, target.values.device))

    def set_count(self, count: int) -> None:
        """Set the number of Gaussians in the means of the penalties."""
        self.count = count
        for _, penalty in self.penalties:
            penalty.count = count

    def refresh(self, gaussians: Gaussians) -> None:
        """Search the neighbours again; required after the number of Gaussians has changed."""
        for _, penalty in self.penalties:
            penalty.refresh(gaussians)

    def refreshed(self, gaussians: Gaussians, now: Evaluation) -> Evaluation:
        """Search the neighbours again, and return the evaluation with the penalties on the new pairs.

        Losses are comparable only between two such calls.
        """
        if not self.penalties:
            return now
        self.refresh(gaussians)
        return self._evaluation(now.residual, [now.mean_square, *torch.stack(self._values(gaussians)).tolist()])

    def lift_sparsity(self) -> None:
        """Remove sparsity from the loss: it has selected the Gaussians, and would keep their weights too small.

        This is the relaxed lasso (Meinshausen 2007). The value of the term is still reported.
        """
        self.sparsity = 0.0

    def predict(self, gaussians: Gaussians) -> Tensor:
        """Return the reconstruction, relative to the data range and without the background."""
        if not len(gaussians.weights):  # also works before the kernels are loaded
            return torch.zeros_like(self.target.values)
        if self.support is not None:
            return self.support.predict(gaussians)
        return predict(gaussians, self.target.grid.shape)

    def with_weights(self, gaussians: Gaussians) -> Gaussians:
        """Return the Gaussians with weights; without weights in the data term, with the values at the centres."""
        if self.support is None:
            return gaussians
        values = self.target.values
        nearest = gaussians.means.round().long().unbind(1)
        inside = tuple(x.clamp(0, n - 1) for x, n in zip(nearest, values.shape, strict=True))
        return gaussians._replace(weights=values[inside])

    def evaluate(self, gaussians: Gaussians) -> Evaluation:
        """Return the residual and the loss with all its terms."""
        residual = self.target.residual(self.predict(gaussians))
        values = torch.stack([self.target.mean_square(residual), *self._values(gaussians)])
        return self._evaluation(residual, values.tolist())  # the only place where the host waits for a GPU

    def _values(self, gaussians: Gaussians) -> list[Tensor]:
        """Return the penalties, multiplied by their weights."""
        return [weight * penalty.value(gaussians) for weight, penalty in self.penalties]

    def _evaluation(self, residual: Tensor, values: list[float]) -> Evaluation:
        names = ["data", *(penalty.name for _, penalty in self.penalties)]
        terms = dict(zip(names, values, strict=True))
        loss = sum(values)
        if self.sparsity == 0:  # lifted, or never there
            loss -= terms.get(Sparsity.name, 0.0)
        return Evaluation(residual, loss, values[0], terms)

    def linearise(self, gaussians: Gaussians, *, exact: bool) -> Linear:
        """Return the linearised data term; `exact` takes its curvature on the voxels, not on a coarser lattice."""
        if self.support is not None:
            return _Supported(self.support, gaussians)
        return _Weighted(gaussians, self.target.grid.shape, exact=exact)

    def strength(self, weight: float) -> float:
        """Return the factor of a penalty in half the sum of squares."""
        return self.target.n_valid * weight / 2

    def downhill(self, gaussians: Gaussians, data_gradient: Tensor) -> Tensor:
        """Return minus the gradient of the whole loss, from that of the data term ``J^T residual``, ``(N, K)``.

        The column of the weights has the pseudo-gradient of the L1 norm.
        """
        downhill = data_gradient.clone()
        for weight, penalty in self.penalties:
            if not isinstance(penalty, Sparsity):
                downhill -= self.strength(weight) * penalty.gradient(gaussians)
        if self.sparsity > 0:
            strength = self.strength(self.sparsity) / self.count
            downhill[:, 0] = pseudo_gradient(downhill[:, 0], gaussians.weights, strength)
        return downhill if self.free is None else downhill * self.free

    def stiffness(self, gaussians: Gaussians) -> Tensor | None:
        """Return the diagonal curvature of the penalties ``(N, K)``; None without penalties."""
        curved = [(w, p) for w, p in self.penalties if not isinstance(p, Sparsity)]
        if not curved:
            return None
        total = self.strength(curved[0][0]) * curved[0][1].curvature(gaussians)
        for weight, penalty in curved[1:]:
            total = total + self.strength(weight) * penalty.curvature(gaussians)
        return total

    def zeroed_mask(self, gaussians: Gaussians, residual: Tensor) -> Tensor | None:
        """Return a mask of the Gaussians that sparsity holds at weight zero, for removal; None if there are none.

        A weight stays at zero if its gradient is smaller than the penalty; other weights will leave zero again.
        """
        if self.sparsity == 0:
            return None
        zeroed = gaussians.weights == 0
        if not zeroed.any():
            return None
        at_zero = gaussians.select(zeroed)
        pull = gather(at_zero.means, at_zero.factors, residual)[:, 0].abs()
        zeroed[zeroed.clone()] = pull <= self.strength(self.sparsity) / self.count
        return zeroed if zeroed.any() else None

    def project_to_orthant(self, before: Gaussians, after: Gaussians, downhill: Tensor) -> Gaussians:
        """Return `after` with weights that changed sign set to zero, if there is sparsity."""
        if self.sparsity == 0:
            return after
        return after._replace(weights=clip_to_orthant(before.weights, after.weights, downhill[:, 0]))
