"""Gauss-Newton in whitened coordinates: the default solver.

In these coordinates (see `napari_gsvolume.observe.voxels`) a Gaussian's own block of ``J^T J`` is, but for the factor
``c = int e^2 = pi^(D/2) / |det W|`` and powers of its weight, the same for all: omega-omega 1; a-a w^2/2; off-diagonal
B w^2/4; omega-B_ii w/4; B_ii-B_ii 3w^2/16; B_ii-B_jj w^2/16. The diagonal of B splits into its trace, which couples
with omega in a 2x2 matrix, and the rest, which couples with nothing; so the block inverts in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..observe.voxels import Gaussians, derivative, predict, symmetric, transposed_derivative
from .target import Target

WEIGHT_FLOOR = 0.02
"""Weights, relative to the data range, count as at least this much: it keeps new Gaussians of weight 0 well behaved."""
TRUST_RADIUS = 0.5
"""Longest step of a mean in its own radii, and largest relative change of squared axes, an iteration."""
DAMPING_RANGE = (1e-4, 1e4)
_OWN_DAMPING_RANGE = (1.0, 1e3)
_BACKTRACKS = 2
COARSEST_SPACING = 4.0
THINNEST = 0.6
"""Radius, in spacings of the curvature's lattice, that it resolves; half of the Gaussians are no thinner."""
EXACT_FROM = 0.7
"""After this share of a fit curvature is taken on the voxels themselves: what is left to gain is in the details."""
_SLOW = 3e-4
"""And from the iteration on that lowered the loss by less than this share, until the population changes."""


class GaussianBlocks:
    """The block diagonal of ``J^T J``, each Gaussian a block, and its inverse."""

    def __init__(self, gaussians: Gaussians) -> None:
        self.ndim = gaussians.means.shape[1]
        self.overlap = math.pi ** (self.ndim / 2) / torch.linalg.det(gaussians.factors).abs()[:, None]  # c, (N, 1)
        sign = torch.where(gaussians.weights < 0, -1.0, 1.0)
        self.weight = (sign * gaussians.weights.abs().clamp_min(WEIGHT_FLOOR))[:, None]
        rows, columns = torch.triu_indices(self.ndim, self.ndim)
        self.diagonal = torch.nonzero(rows == columns).flatten() + 1 + self.ndim

    def times(self, step: Tensor) -> Tensor:
        """Return the blocks times a step ``(N, K)``."""
        return self._apply(step, inverse=False)

    def solve(self, gradient: Tensor) -> Tensor:
        """Return the inverse blocks times a gradient ``(N, K)``."""
        return self._apply(gradient, inverse=True)

    def _apply(self, v: Tensor, *, inverse: bool) -> Tensor:
        D, w = self.ndim, self.weight
        power = -1 if inverse else 1
        out: Tensor = torch.empty_like(v)
        out[:, 1 : D + 1] = v[:, 1 : D + 1] * (w * w / 2) ** power
        out[:, D + 1 :] = v[:, D + 1 :] * (w * w / 4) ** power
        # The diagonal of B along its unit trace direction, and the rest.
        omega, diagonal = v[:, :1], v[:, self.diagonal]
        trace = diagonal.sum(1, keepdim=True) / math.sqrt(D)
        rest = (diagonal - trace / math.sqrt(D)) * (w * w / 8) ** power
        # Trace and omega share the 2x2 matrix ((1, coupling), (coupling, stiffness)).
        coupling, stiffness = w * math.sqrt(D) / 4, w * w * (D + 2) / 16
        if inverse:
            determinant = stiffness - coupling**2  # w^2 / 8
            new_omega = (stiffness * omega - coupling * trace) / determinant
            new_trace = (trace - coupling * omega) / determinant
        else:
            new_omega = omega + coupling * trace
            new_trace = coupling * omega + stiffness * trace
        out[:, :1] = new_omega
        out[:, self.diagonal] = rest + new_trace / math.sqrt(D)
        out *= self.overlap**power
        return out


class Curvature:
    """``J^T J``, by quadrature on a lattice that may be coarser than the voxels'.

    Products of Gaussians are smooth: a lattice of spacing ``radius / THINNEST`` integrates them well enough, at a
    fraction of the voxels' cost. Curvature only shapes the step (gradient and loss are always exact), so an error of
    10 to 30 % does no harm while steps are long. Gaussians too thin for the lattice are thickened to `THINNEST`
    spacings, their amplitude lowered so that their own block stays what it is.

    Parameters
    ----------
    gaussians : Gaussians
    shape : sequence of int
        Of the voxels.
    exact : bool
        Use the voxels as they are.
    """

    def __init__(self, gaussians: Gaussians, shape: Sequence[int], *, exact: bool) -> None:
        U, s, Vt = torch.linalg.svd(gaussians.factors)  # s: inverse radii, (N, D), largest first
        spacing = (
            1.0 if exact or not len(s) else min(max(float((1 / s[:, 0]).median()) / THINNEST, 1.0), COARSEST_SPACING)
        )
        self.shape = tuple(math.ceil(n / spacing) for n in shape)
        spacings = torch.tensor([n / m for n, m in zip(shape, self.shape, strict=True)]).to(s)
        resolved = s.clamp_max(1 / (THINNEST * spacing)) if spacing > 1 else s
        means = (gaussians.means + 0.5) / spacings - 0.5
        factors = spacings[:, None] * (U @ (resolved[:, :, None] * Vt))
        self.gaussians = Gaussians(means, factors, gaussians.weights)
        # Per Gaussian: the amplitude that keeps int e^2, times the square root of the lattice's cell volume.
        self.amplitude = ((resolved / s).prod(1) * spacings.prod()).sqrt()[:, None]

    def times(self, step: Tensor) -> Tensor:
        """Return ``J^T J`` times a step ``(N, K)``."""
        change = derivative(self.gaussians, self.amplitude * step, self.shape)
        curved: Tensor = self.amplitude * transposed_derivative(self.gaussians, change)
        return curved


class GaussNewton:
    """Levenberg-Marquardt: each iteration solves ``(J^T J + damping * blocks) step = J^T residual`` by a few CG steps.

    The damping is a common factor, steered by whether the loss falls, times one of each Gaussian's own, which grows
    while the solution asks more of it than its trust radius allows, so that its neighbours' steps reckon with the
    short one it takes.

    Parameters
    ----------
    cg_steps : int
        Few beat many: the linear model is good for a short way only.
    stop : callable
        Asked between kernels; once it returns True the present iteration ends where it began.
    """

    evaluated = True  # the loss is always that of the newest Gaussians
    converged_db = 0.01
    """Ten iterations of a complete population that gain less, all together, are the last."""

    def __init__(self, cg_steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        self.cg_steps = cg_steps
        self.stop = stop
        self.damping = 1e-2
        self.own_damping = torch.ones(0, 1)
        self.slow = False

    @property
    def stuck(self) -> bool:
        """Whether no step, however short, decreased the loss any more."""
        return self.damping >= DAMPING_RANGE[1]

    def settled(self, count: int) -> Tensor:
        """Return which of `count` Gaussians are old enough to be judged: all, one iteration solves for the weights."""
        return torch.ones(count, dtype=torch.bool)

    def population_changed(self, kept: Tensor, born: int) -> None:
        """Follow the Gaussians that stay, and start afresh with the new ones."""
        self.damping, self.slow = min(self.damping, 1e-2), False
        self.own_damping = torch.cat([self.own_damping[kept], self.own_damping.new_ones(born, 1)])

    def iterate(
        self, gaussians: Gaussians, residual: Tensor, loss: float, target: Target, progress: float
    ) -> tuple[Gaussians, Tensor, float]:
        """Return the Gaussians after one iteration, their residual and loss; the old ones if it did not get better."""
        if not len(self.own_damping):
            self.own_damping = gaussians.weights.new_ones(len(gaussians.weights), 1)
        step = self._direction(gaussians, residual, exact=self.slow or progress > EXACT_FROM)
        if self.stop():
            return gaussians, residual, loss
        step = self._within_trust(step, residual.ndim)
        for backtrack in range(_BACKTRACKS + 1):
            moved = gaussians.moved(step / 4**backtrack)
            new_residual = target.residual(predict(moved, residual.shape))
            new_loss = target.mean_square(new_residual)
            if new_loss < loss:
                self.slow |= new_loss > (1 - _SLOW) * loss
                change = 2.0 if backtrack else 0.5
                self.damping = min(max(change * self.damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])
                return moved, new_residual, new_loss
        self.slow = True
        self.damping = min(max(16 * self.damping, 1e-3), DAMPING_RANGE[1])
        return gaussians, residual, loss

    def _direction(self, gaussians: Gaussians, residual: Tensor, *, exact: bool) -> Tensor:
        """Run preconditioned conjugate gradients from zero; returns a step ``(N, K)``."""
        blocks = GaussianBlocks(gaussians)
        curvature = Curvature(gaussians, residual.shape, exact=exact)
        damping = self.damping * self.own_damping  # (N, 1)
        left = transposed_derivative(gaussians, residual)
        step = torch.zeros_like(left)
        preconditioned = blocks.solve(left) / (1 + damping)
        direction = preconditioned
        decrease = (left * preconditioned).sum()
        for _ in range(self.cg_steps):
            if self.stop():
                break
            curved = curvature.times(direction) + damping * blocks.times(direction)
            length = decrease / (direction * curved).sum()
            if not torch.isfinite(length):  # the gradient is zero: nothing is left to gain
                break
            step = step + length * direction
            left = left - length * curved
            preconditioned = blocks.solve(left) / (1 + damping)
            new_decrease = (left * preconditioned).sum()
            direction = preconditioned + (new_decrease / decrease) * direction
            decrease = new_decrease
        return step

    def _within_trust(self, step: Tensor, ndim: int) -> Tensor:
        """Shorten each Gaussian's (a, B) to the trust radius, and adapt its own damping."""
        length = shape_change(step, ndim)
        factor = torch.where(length > TRUST_RADIUS, 4.0, 0.5)
        self.own_damping = (factor * self.own_damping).clamp(*_OWN_DAMPING_RANGE)
        return shortened(step, length)


def shape_change(step: Tensor, ndim: int) -> Tensor:
    """Return the larger of |a| and |B| of each row of a whitened step, ``(N, 1)``."""
    a, B = step[:, 1 : ndim + 1], symmetric(step[:, ndim + 1 :], ndim)
    return torch.maximum(a.norm(dim=1), B.flatten(1).norm(dim=1))[:, None]


def shortened(step: Tensor, length: Tensor) -> Tensor:
    """Shorten (a, B) of each row to `TRUST_RADIUS`; the linear weights need no such bound."""
    return torch.cat([step[:, :1], step[:, 1:] * (TRUST_RADIUS / length.clamp_min(TRUST_RADIUS))], 1)
