"""Quantisation of fitted Gaussians to a file of given size."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..gaussians import GaussianVolume
from ..grid import Grid
from ..io.gsv.format import CELL, decoded, floats, pack, short
from ..io.gsv.format import rounded as to_codes
from ..io.gsv.quantization import Codes, with_amplitudes, with_means
from ..kernels import n_monomials
from ..operators.gaussian_sum import Gaussians
from ..progress import Budget
from .objective import Objective
from .refit import refit

_ITERATIONS = 8
"""Largest number of iterations of each refit."""
_ATTEMPTS = 3
_SLACK = 12
"""Bytes in reserve for the digits of figures that are known only at the end."""


def check_size(n_bytes: int, grid: Grid) -> None:
    """Raise InputError if a file of `n_bytes` has no room for a single Gaussian."""
    ndim = grid.ndim
    nothing = GaussianVolume(torch.zeros(0, ndim), torch.zeros(0, ndim, ndim), torch.zeros(0), grid)
    least = len(pack(to_codes(nothing, 1.0)[0], 1.0, nothing)) + 20 * ndim
    if n_bytes < least:
        raise InputError(
            f"A file of {n_bytes:,} bytes is too small for even one Gaussian, which takes about {least}; "
            "ask for a larger file, or a smaller ratio."
        )


def fit_to_size(
    objective: Objective, gaussians: GaussianVolume, n_bytes: int, budget: Budget
) -> tuple[Gaussians, float]:
    """Return Gaussians quantised to at most `n_bytes`, relative to the data range, and the quantisation step.

    All parameters are quantised with the finest step that fits (`napari_gsvolume.io.gsv.quantization`). Centres and
    weights are then refitted to compensate for the quantised shapes, and after the quantisation of the centres, the
    weights.

    Raises
    ------
    ValueError
        If not even a file with a single Gaussian is that small.
    """
    began = time.perf_counter()

    def is_over() -> bool:
        return budget.stop() or budget.fraction(0, time.perf_counter() - began) > 1

    refit_budget = Budget(iterations=_ITERATIONS, stop=is_over)
    allowed = n_bytes - _SLACK
    for _ in range(_ATTEMPTS):
        step, codes, kept = _of_size(gaussians, allowed)
        rounded = _refitted(objective, gaussians.select(torch.from_numpy(kept)), codes, step, refit_budget)
        size = len(pack(rounded, step, gaussians))
        if size <= n_bytes - _SLACK:
            break
        allowed -= size - (n_bytes - _SLACK) + 4
    else:
        rounded = codes  # without the refit they fit
    return _relative(decoded(rounded, step, gaussians), objective), step


def _of_size(gaussians: GaussianVolume, n_bytes: int) -> tuple[float, Codes, NDArray[np.intp]]:
    """Return the finest step for a file of this size, the codes, and the indices of the Gaussians in them."""
    energy = float((gaussians.weights.double() ** 2 / torch.linalg.det(gaussians.factors.double()).abs()).max())
    low, high = 1e-4 * math.sqrt(energy), 8 * math.sqrt(energy)
    best: tuple[float, Codes, NDArray[np.intp]] | None = None
    for _ in range(22):
        step = short(math.sqrt(low * high))
        codes, kept = to_codes(gaussians, step)
        if len(codes.amplitudes) and len(pack(codes, step, gaussians)) <= n_bytes:
            best, high = (step, codes, kept), step
        elif len(codes.amplitudes):
            low = step
        else:
            high = step
    if best is None:
        raise InputError(f"A file of {n_bytes:,} bytes is too small for even one Gaussian; ask for a larger one.")
    return best


def _refitted(objective: Objective, gaussians: GaussianVolume, codes: Codes, step: float, budget: Budget) -> Codes:
    """Return the codes after the refit of centres and weights."""
    n, ndim = len(gaussians), gaussians.ndim
    free = torch.ones(n, n_monomials(ndim), device=objective.target.values.device)
    free[:, 1 + ndim :] = 0
    state = refit(objective, _relative(decoded(codes, step, gaussians), objective), free, budget)
    codes = with_means(codes, floats(state.means), CELL)
    state = state._replace(means=decoded(codes, step, gaussians).means.to(free))
    free[:, 1:] = 0
    state = refit(objective, state, free, budget)
    return with_amplitudes(codes, floats(state.weights) * objective.target.data_range, step)


def _relative(gaussians: GaussianVolume, objective: Objective) -> Gaussians:
    """Return Gaussians relative to the data range, on the target's device."""
    weights = gaussians.weights.double() / objective.target.data_range
    return Gaussians(gaussians.means, gaussians.factors, weights.float()).to(objective.target.values.device)
