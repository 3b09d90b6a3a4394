"""First-order solvers, Adam and SGD with momentum, on the same kernels as Gauss-Newton.

A batch of voxels is a lattice: every s-th voxel along each axis, from a random offset. All voxels are equally likely,
and batches cover the volume evenly. On the lattice the Gaussians are Gaussians again, with scaled means and factors,
and the kernels for grids apply. Whitened steps are invariant under the scaling.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from ..operators.gaussian_sum import Gaussians, predict, symmetric, upper, vjp
from ..operators.small_matrices import exponential
from ..progress import Budget
from .gauss_newton import shape_change, shortened
from .objective import Evaluation, Linear, Objective
from .settings import FitSettings
from .target import Target

# Rates of weights (relative to the data range), means (voxels), log radii and angles, tuned on a chest CT and a T1
# (docs/benchmarks.md).
_ADAM_RATES = (0.01, 0.1, 0.025)
_FINAL_RATE = 0.05
_MOMENTUM = 0.9
_SECOND_MOMENTUM = 0.99
_POWER_ITERATIONS = 8
_EVALUATE_EVERY = 5
_MIN_AGE = 50
"""Iterations after which a Gaussian that began with weight 0 may be removed as useless."""


class FirstOrder:
    """Adam (Kingma and Ba 2015), or SGD with momentum.

    Adam optimises the usual parameters of Gaussian splatting (Kerbl et al. 2023): centres in voxels, log radii,
    rotations and weights. SGD optimises whitened coordinates: its gradient is scaled by the constant blocks of
    `GaussianBlocks`, and its rate is the inverse of the largest eigenvalue of the scaled curvature. Without the two it
    would stall or diverge.

    Parameters
    ----------
    settings : FitSettings
        Solver ("adam" or "sgd"), learning_rate (a factor on the tuned rates, which decay along a cosine to a
        twentieth), batch_fraction (rounded to 1 over the D-th power of an integer) and seed.
    budget : Budget
        Limits of the run; its stop request is read before each iteration, which then changes nothing.
    """

    stuck = False
    converged_db = -math.inf  # no steady descent: the schedule ends the fit

    def __init__(self, settings: FitSettings, budget: Budget) -> None:
        self.settings = settings
        self.stop = budget.stop
        self.random = random.Random(settings.seed)  # offsets of the batches, chosen on the host
        self.iteration = 0
        # Running means of the gradient and its square (N, K), and iterations since birth (N, 1); none yet.
        self.first, self.second, self.age = torch.zeros(0, 1), torch.zeros(0, 1), torch.zeros(0, 1)
        self.sgd_rate: Tensor | None = None
        self.caution = 1.0
        self.evaluated = True  # True if the loss is that of the newest Gaussians

    def gaussians_changed(self, kept: Tensor, born: int) -> None:
        """Keep the moments of the remaining Gaussians, and start those of new ones at zero."""
        self.sgd_rate = None
        if not len(self.age):
            return
        self.first, self.second, self.age = (
            torch.cat([t[kept], t.new_zeros(born, t.shape[1])]) for t in (self.first, self.second, self.age)
        )

    def objective_changed(self) -> None:
        """Do nothing: the schedule is fixed."""

    def settled(self, count: int) -> Tensor:
        """Return a mask of the Gaussians with settled weights."""
        return self.age[:, 0] >= _MIN_AGE if len(self.age) == count else self.age.new_zeros(count, dtype=torch.bool)

    def iterate(
        self, gaussians: Gaussians, now: Evaluation, objective: Objective, progress: float
    ) -> tuple[Gaussians, Evaluation]:
        """Return the Gaussians after one iteration, and the newest full evaluation."""
        if self.stop():
            return gaussians, now
        target = objective.target
        stride = self._stride(target)
        linear = objective.linearise(gaussians, exact=False)
        data_gradient = (
            linear.gradient(now.residual) if stride == 1 else self._batch_gradient(gaussians, target, stride)
        )
        downhill = objective.downhill(gaussians, data_gradient)
        if not len(self.age):
            self.first, self.second = torch.zeros_like(downhill), torch.zeros_like(downhill)
            self.age = downhill.new_zeros(len(downhill), 1)
        self.age = self.age + 1
        falling = _FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * min(progress, 1))) / 2
        rate = self.settings.learning_rate * falling
        if self.settings.solver == "sgd":
            # The noise of a batch's gradient grows with the power of its stride, and momentum adds up ten gradients.
            damping = 1.0 if stride == 1 else 1 / (4 * stride**target.values.ndim)
            moved = self._sgd(gaussians, linear, downhill, rate * damping)
        else:
            moved = self._adam(gaussians, downhill, rate)
        moved = objective.project_to_orthant(gaussians, moved, downhill)
        self.iteration += 1
        self.evaluated = stride == 1 or self.iteration % _EVALUATE_EVERY == 0
        if self.evaluated:
            before, now = now, objective.evaluate(moved)
            if self.settings.solver == "sgd" and now.loss > 1.02 * before.loss:  # it begins to oscillate
                self.caution /= 2
                self.first = torch.zeros_like(self.first)
        return moved, now

    def _adam(self, gaussians: Gaussians, gradient: Tensor, rate: float) -> Gaussians:
        gradient = plain_gradient(gaussians, gradient)
        self.first = _MOMENTUM * self.first + (1 - _MOMENTUM) * gradient
        self.second = _SECOND_MOMENTUM * self.second + (1 - _SECOND_MOMENTUM) * gradient**2
        mean = self.first / (1 - _MOMENTUM**self.age)
        deviation = (self.second / (1 - _SECOND_MOMENTUM**self.age)).sqrt()
        step = rate * mean / (deviation + 1e-12)
        ndim = gaussians.means.shape[1]
        for columns, factor in zip((slice(1), slice(1, ndim + 1), slice(ndim + 1, None)), _ADAM_RATES, strict=True):
            step[:, columns] *= factor
        return plainly_moved(gaussians, step)

    def _sgd(self, gaussians: Gaussians, linear: Linear, gradient: Tensor, rate: float) -> Gaussians:
        scaled = linear.blocks.solve(gradient)
        if self.sgd_rate is None or self.iteration % _EVALUATE_EVERY == 0:  # the curvature grows with the weights
            self.sgd_rate = 1 / _largest_eigenvalue(linear, scaled)
        self.first = _MOMENTUM * self.first + scaled
        step = rate * self.caution * self.sgd_rate * self.first
        return gaussians.moved(shortened(step, shape_change(step, gaussians.means.shape[1])))

    def _stride(self, target: Target) -> int:
        return max(1, round(float(self.settings.batch_fraction ** (-1 / target.values.ndim))))

    def _batch_gradient(self, gaussians: Gaussians, target: Target, stride: int) -> Tensor:
        """Return ``J^T residual`` of a batch, scaled to all voxels."""
        shape = target.values.shape
        strides = [min(stride, n) for n in shape]
        offsets = [self.random.randrange(s) for s in strides]
        lattice = tuple(slice(o, None, s) for o, s in zip(offsets, strides, strict=True))
        thinned = Gaussians(gaussians.means.clone(), gaussians.factors.clone(), gaussians.weights)
        for axis, (o, s) in enumerate(zip(offsets, strides, strict=True)):
            thinned.means[:, axis].sub_(o).div_(s)
            thinned.factors[:, axis] *= s
        values = target.values[lattice]
        error = values - predict(thinned, values.shape)
        if target.valid is not None:
            error *= target.valid[lattice]
        return vjp(thinned, error) * math.prod(strides)


def _largest_eigenvalue(linear: Linear, start: Tensor) -> Tensor:
    """Return the largest eigenvalue of the curvature scaled by the blocks, by power iteration."""
    v = start
    for _ in range(_POWER_ITERATIONS):
        v = v / v.norm().clamp_min(1e-30)
        v = linear.blocks.solve(linear.times(v))
    value: Tensor = v.norm().clamp_min(1.0)  # 1 is the value of a single Gaussian
    return value


def plain_gradient(gaussians: Gaussians, gradient: Tensor) -> Tensor:
    """Return the gradient with respect to weight, mean, log radii and rotation, from the whitened one, ``(N, K)``.

    For factors ``W = R diag(1 / sigma)``. A mean's step is ``W^-T a``; log radii are half of B's diagonal; a rotation
    ``R exp(Theta)`` is ``B_jk = -Theta_jk (sigma_j / sigma_k - sigma_k / sigma_j)``. Radii and angles stand where the
    diagonal of B and the rest of its upper triangle do.
    """
    ndim = gaussians.means.shape[1]
    means = (gaussians.factors @ gradient[:, 1 : ndim + 1, None])[:, :, 0]
    sigma = 1 / gaussians.factors.norm(dim=1)  # (N, D)
    ratio = sigma[:, :, None] / sigma[:, None]
    factor = upper(1 / ratio - ratio + 2 * torch.eye(ndim, dtype=sigma.dtype, device=sigma.device))
    return torch.cat([gradient[:, :1], means, factor * gradient[:, ndim + 1 :]], 1)


def plainly_moved(gaussians: Gaussians, step: Tensor) -> Gaussians:
    """Return the Gaussians after a step of weight, mean, log radii and rotation; factors stay ``R diag(1 / sigma)``."""
    ndim = gaussians.means.shape[1]
    shape = symmetric(step[:, ndim + 1 :], ndim)
    inverse_radii = gaussians.factors.norm(dim=1)  # (N, D)
    R = gaussians.factors / inverse_radii[:, None]
    rotation = exponential(shape.triu(1) - shape.triu(1).mT)
    growth = torch.diagonal(shape, dim1=1, dim2=2)
    factors = (R @ rotation) * (inverse_radii * torch.exp(-growth))[:, None]
    return Gaussians(gaussians.means + step[:, 1 : ndim + 1], factors, gaussians.weights + step[:, 0])
