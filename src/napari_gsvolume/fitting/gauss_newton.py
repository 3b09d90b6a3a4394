"""Gauss-Newton in whitened coordinates: the default solver."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..operators.gaussian_sum import Gaussians, symmetric
from ..progress import Budget
from .curvature import Blocks
from .objective import Evaluation, Linear, Objective

TRUST_RADIUS = 0.5
"""Largest step of a mean, in its own radii, and largest relative change of squared axes per iteration."""
DAMPING_RANGE = (1e-4, 1e4)
_OWN_DAMPING_RANGE = (1.0, 1e3)
_BACKTRACKS = 2
EXACT_FROM = 0.7
"""Fraction of a fit after which the curvature is computed on the voxels: the remaining error is in the details."""
_SLOW = 3e-4
"""Relative decrease of the loss below which the same holds, until Gaussians are added."""
_SOLVED = 1e-10
"""Remaining fraction of the squared preconditioned gradient at which CG stops."""
_LATE_CG = 2.5
"""Factor on the number of CG steps late in a fit: the linear model holds further, and couplings matter more."""


class GaussNewton:
    """Levenberg-Marquardt: each iteration solves ``(J^T J + damping * blocks) step = J^T residual`` by a few CG steps.

    The damping is the product of a common factor, which adapts to the decrease of the loss, and a factor per Gaussian,
    which grows while its solution exceeds its trust radius, so that the steps of its neighbours take its shortened step
    into account. Penalties add their gradient and a diagonal bound of their curvature. Sparsity, with its kink at zero,
    is treated orthant by orthant (Andrew and Gao 2007, OWL-QN): it is linear within an orthant, and a weight that would
    cross zero stays there.

    Parameters
    ----------
    cg_steps : int
        CG steps per iteration; late in a fit `_LATE_CG` times as many. Few steps are best while the linear model holds
        for short steps only.
    budget : Budget, optional
        Limits of the run; its stop request is read between kernels, and ends the current iteration without a step.
    """

    evaluated = True  # the loss is always that of the newest Gaussians
    converged_db = 0.01
    """Gain in dB of ten iterations, after all Gaussians are there, below which the fit has converged."""

    def __init__(self, cg_steps: int, budget: Budget | None = None) -> None:
        self.cg_steps = cg_steps
        self.stop = (budget or Budget()).stop
        self.damping = 1e-2
        self.own_damping = torch.ones(0, 1)
        self.slow = False

    @property
    def stuck(self) -> bool:
        """True if no step, however short, decreases the loss any more."""
        return self.damping >= DAMPING_RANGE[1]

    def settled(self, count: int) -> Tensor:
        """Return a mask of the Gaussians with settled weights: all, as one iteration solves for the weights."""
        return self.own_damping.new_ones(count, dtype=torch.bool)

    def gaussians_changed(self, kept: Tensor, born: int) -> None:
        """Keep the damping of the remaining Gaussians, and reset that of new ones."""
        if born:
            self.objective_changed()
        if len(self.own_damping):
            self.own_damping = torch.cat([self.own_damping[kept], self.own_damping.new_ones(born, 1)])

    def objective_changed(self) -> None:
        """Reset the common damping."""
        self.damping, self.slow = min(self.damping, 1e-2), False

    def iterate(
        self, gaussians: Gaussians, now: Evaluation, objective: Objective, progress: float
    ) -> tuple[Gaussians, Evaluation]:
        """Return the Gaussians after one iteration, and their evaluation; unchanged if the loss does not decrease."""
        if not len(self.own_damping):
            self.own_damping = gaussians.weights.new_ones(len(gaussians.weights), 1)
        exact = self.slow or progress > EXACT_FROM
        linear = objective.linearise(gaussians, exact=exact)
        downhill = objective.downhill(gaussians, linear.gradient(now.residual))
        n_steps = round(_LATE_CG * self.cg_steps) if exact else self.cg_steps
        step = self._direction(linear, downhill, objective.stiffness(gaussians), objective.free, n_steps)
        if self.stop():
            return gaussians, now
        step = self._within_trust(step, now.residual.ndim)
        for backtrack in range(_BACKTRACKS + 1):
            moved = objective.project_to_orthant(gaussians, gaussians.moved(step / 4**backtrack), downhill)
            new = objective.evaluate(moved)
            if new.loss < now.loss:
                self.slow |= new.loss > (1 - _SLOW) * now.loss
                change = 2.0 if backtrack else 0.5
                self.damping = min(max(change * self.damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])
                return moved, new
        self.slow = True
        self.damping = min(max(16 * self.damping, 1e-3), DAMPING_RANGE[1])
        return gaussians, now

    def _direction(
        self, linear: Linear, downhill: Tensor, stiffness: Tensor | None, free: Tensor | None, n_steps: int
    ) -> Tensor:
        """Run preconditioned conjugate gradients from zero; returns a step ``(N, K)``."""
        damping = self.damping * self.own_damping  # (N, 1)
        precondition = _preconditioner(linear.blocks, damping, stiffness, free)
        left = downhill
        step = torch.zeros_like(left)
        preconditioned = precondition(left)
        direction = preconditioned
        decrease = first_decrease = (left * preconditioned).sum()
        for _ in range(n_steps):
            if self.stop():
                break
            curved = linear.times(direction) + damping * linear.blocks.times(direction)
            if stiffness is not None:
                curved = curved + stiffness * direction
            if free is not None:
                curved = curved * free
            length = decrease / (direction * curved).sum()
            useful = torch.isfinite(length)  # otherwise the gradient is zero
            length = torch.where(useful, length, 0.0)
            step = step + length * direction
            left = left - length * curved
            preconditioned = precondition(left)
            new_decrease = (left * preconditioned).sum()
            useful &= new_decrease > _SOLVED * first_decrease
            # Not tested on a GPU, where the host would wait in every step: useless directions are zero there.
            if step.device.type == "cpu" and not useful:
                break
            direction = torch.where(useful, preconditioned + (new_decrease / decrease) * direction, 0.0)
            decrease = new_decrease
        return step

    def _within_trust(self, step: Tensor, ndim: int) -> Tensor:
        """Shorten each Gaussian's (a, B) to the trust radius, and adapt its own damping."""
        length = shape_change(step, ndim)
        factor = torch.where(length > TRUST_RADIUS, 4.0, 0.5)
        self.own_damping = (factor * self.own_damping).clamp(*_OWN_DAMPING_RANGE)
        return shortened(step, length)


def _preconditioner(
    blocks: Blocks, damping: Tensor, stiffness: Tensor | None, free: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Return an approximate inverse of damped blocks plus stiffness, symmetric and positive on the free columns."""
    if stiffness is None:
        scale = (1 + damping).rsqrt()
    else:
        scale = (1 + damping + stiffness / blocks.diagonal.clamp_min(1e-12)).rsqrt()
    if free is not None:
        scale = scale * free
    return lambda gradient: scale * blocks.solve(scale * gradient)


def shape_change(step: Tensor, ndim: int) -> Tensor:
    """Return the larger of |a| and |B| of each row of a whitened step, ``(N, 1)``."""
    a, B = step[:, 1 : ndim + 1], symmetric(step[:, ndim + 1 :], ndim)
    return torch.maximum(a.norm(dim=1), B.flatten(1).norm(dim=1))[:, None]


def shortened(step: Tensor, length: Tensor) -> Tensor:
    """Shorten (a, B) of each row to `TRUST_RADIUS`; the weights are linear and need no bound."""
    return torch.cat([step[:, :1], step[:, 1:] * (TRUST_RADIUS / length.clamp_min(TRUST_RADIUS))], 1)
