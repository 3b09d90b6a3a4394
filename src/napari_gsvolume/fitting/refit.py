"""Refit of some parameters of the Gaussians, with the others fixed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import n_monomials
from ..operators.gaussian_sum import Gaussians
from ..progress import Budget
from .gauss_newton import GaussNewton
from .objective import Objective
from .settings import FitSettings

_CG_STEPS = 10
_ENOUGH = 1e-4


def refit(objective: Objective, gaussians: Gaussians, free: Tensor, budget: Budget) -> Gaussians:
    """Return the Gaussians after Gauss-Newton iterations on the squared error, over the free parameters only.

    Parameters
    ----------
    objective : Objective
        Objective with the target; its penalties are ignored.
    gaussians : Gaussians
        Start of the iterations.
    free : Tensor, (N, K)
        Mask: 1 for the components of a whitened step (omega, a, B) that may change, 0 for fixed ones.
    budget : Budget
        Number of iterations, and the stop request, which is read between kernels.
    """
    settings = FitSettings()
    fixed = Objective(objective.target, settings, free)
    solver = GaussNewton(_CG_STEPS, budget)
    now = fixed.evaluate(gaussians)
    assert budget.iterations is not None
    for _ in range(budget.iterations):
        before = now.loss
        gaussians, now = solver.iterate(gaussians, now, fixed, 0.0)
        if budget.stop() or solver.stuck or now.loss > (1 - _ENOUGH) * before:
            break
    return gaussians


def solve_weights(objective: Objective, gaussians: Gaussians) -> Gaussians:
    """Return the Gaussians with the weights of a least squares fit to the volume."""
    start = objective.with_weights(gaussians)
    n, ndim = start.means.shape
    free = torch.zeros(n, n_monomials(ndim), device=start.means.device)
    free[:, 0] = 1
    return refit(objective, start, free, Budget(iterations=20))
