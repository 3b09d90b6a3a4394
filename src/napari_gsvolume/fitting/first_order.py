"""First-order solvers, Adam and SGD with momentum, on the same kernels and in the same whitened coordinates.

They may see only a batch of the voxels each iteration: every s-th voxel along each axis, from a random offset. Every
voxel is as likely as any other, batches cover the volume evenly, and on such a lattice the Gaussians are Gaussians
again (means and factors scaled), so the kernels for grids serve. Whitened steps do not notice the scaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..observe.voxels import Gaussians, predict, transposed_derivative
from .gauss_newton import GaussianBlocks, shape_change, shortened
from .target import Target

# Tuned on the chest CT and the T1 of benchmarks/fit.py's documentation: (omega, a and B) at the start and the end.
_ADAM_RATE = (0.02, 0.05)
_SGD_RATE = 0.3
_FINAL_RATE = 0.05
_MOMENTUM = 0.9
_SECOND_MOMENTUM = 0.99
_EVALUATE_EVERY = 10


class FirstOrder:
    """Adam (Kingma and Ba 2015), or SGD with momentum on the gradient scaled by the constant Gaussian blocks.

    Parameters
    ----------
    solver : {"adam", "sgd"}
    learning_rate : float
        Factor on the tuned rates, which fall along a cosine to a twentieth as the fit proceeds.
    batch_fraction : float
        Share of the voxels in a batch, in (0, 1]; rounded to 1 over the D-th power of an integer.
    seed : int
        Seed of the batches.
    """

    stuck = False
    converged_db = -math.inf  # they do not descend steadily: the schedule ends them

    def __init__(self, solver: str, learning_rate: float, batch_fraction: float, seed: int) -> None:
        self.solver = solver
        self.learning_rate = learning_rate
        self.batch_fraction = batch_fraction
        self.random = torch.Generator().manual_seed(seed)
        self.iteration = 0
        self.first: Tensor | None = None  # running means of the gradient and its square, (N, K)
        self.second: Tensor | None = None
        self.age: Tensor | None = None  # iterations since birth, (N, 1): each Gaussian's moments start at zero

    def population_changed(self, kept: Tensor, born: int) -> None:
        """Keep the moments of the Gaussians that stay, start those of new ones at zero."""
        if self.first is None or self.second is None or self.age is None:
            return
        self.first, self.second, self.age = (
            torch.cat([t[kept], t.new_zeros(born, t.shape[1])]) for t in (self.first, self.second, self.age)
        )

    def iterate(
        self, gaussians: Gaussians, residual: Tensor, loss: float, target: Target, progress: float
    ) -> tuple[Gaussians, Tensor, float]:
        """Return the Gaussians after one iteration, and the newest full residual and loss there are."""
        gradient = self._gradient(gaussians, residual, target)  # of half the squared error, downhill
        if self.first is None or self.second is None or self.age is None:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(gradient)
            self.age = gradient.new_zeros(len(gradient), 1)
        rate = self.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * min(progress, 1))) / 2)
        self.age = self.age + 1
        if self.solver == "adam":
            self.first = _MOMENTUM * self.first + (1 - _MOMENTUM) * gradient
            self.second = _SECOND_MOMENTUM * self.second + (1 - _SECOND_MOMENTUM) * gradient**2
            mean = self.first / (1 - _MOMENTUM**self.age)
            deviation = (self.second / (1 - _SECOND_MOMENTUM**self.age)).sqrt()
            step = rate * mean / (deviation + 1e-12)
            step[:, :1] *= _ADAM_RATE[0]
            step[:, 1:] *= _ADAM_RATE[1]
        else:
            self.first = _MOMENTUM * self.first + (1 - _MOMENTUM) * GaussianBlocks(gaussians).solve(gradient)
            step = rate * _SGD_RATE * self.first
        gaussians = gaussians.moved(shortened(step, shape_change(step, residual.ndim)))
        self.iteration += 1
        if self._stride(target) == 1 or self.iteration % _EVALUATE_EVERY == 0:
            residual = target.residual(predict(gaussians, residual.shape))
            loss = target.mean_square(residual)
        return gaussians, residual, loss

    def _stride(self, target: Target) -> int:
        return max(1, round(float(self.batch_fraction ** (-1 / target.values.ndim))))

    def _gradient(self, gaussians: Gaussians, residual: Tensor, target: Target) -> Tensor:
        """Return J^T residual, from a batch scaled up to the whole where there are batches."""
        stride = self._stride(target)
        if stride == 1:
            return transposed_derivative(gaussians, residual)
        shape = target.values.shape
        strides = torch.tensor([min(stride, n) for n in shape])
        offsets = (torch.rand(len(shape), generator=self.random) * strides).long()
        lattice = tuple(slice(int(o), None, int(s)) for o, s in zip(offsets, strides, strict=True))
        scale = strides.to(gaussians.means)
        thinned = Gaussians(
            (gaussians.means - offsets.to(gaussians.means)) / scale,
            scale[:, None] * gaussians.factors,
            gaussians.weights,
        )
        values = target.values[lattice]
        error = values - predict(thinned, values.shape)
        if target.valid is not None:
            error *= target.valid[lattice]
        return transposed_derivative(thinned, error) * float(strides.prod())
