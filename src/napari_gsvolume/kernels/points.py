"""Sums of Gaussians at scattered points (numba, all cores)."""

from __future__ import annotations

from math import exp

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from .constants import SUPPORT
from .numba_support import launch_lock

_K2 = SUPPORT**2
_GAUSSIANS_PER_CELL = 2.0  # mean number; smaller cells cost memory, larger ones time


def evaluate(
    means: NDArray[np.float64], factors: NDArray[np.float64], weights: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ``sum_i w_i e_i(x)`` at each point, with the same cut at `SUPPORT` as the kernels on grids.

    Parameters
    ----------
    means, factors, weights : ndarray, (N, D), (N, D, D), (N,)
        The Gaussians, D = 2 or 3.
    points : ndarray, (M, D)
        Finite positions in the coordinates of the means.

    Returns
    -------
    ndarray, (M,), float64
    """
    if not len(means) or not len(points):
        return np.zeros(len(points))
    # The half widths of the supports: k times the square roots of the covariances' diagonals.
    reach = SUPPORT * np.linalg.norm(np.linalg.inv(factors), axis=1)  # S = W^-T W^-1: its diagonal sums over rows
    low, high = points.min(0), points.max(0)
    near = ((means + reach >= low) & (means - reach <= high)).all(1)
    means, factors, weights, reach = means[near], factors[near], weights[near], reach[near]
    if not len(means):
        return np.zeros(len(points))
    ndim = points.shape[1]
    n_cells = np.clip(len(means) / _GAUSSIANS_PER_CELL, 1, 2**18)
    extent = np.maximum(high - low, 1e-6)
    side = np.maximum((extent.prod() / n_cells) ** (1 / ndim), extent.max() / 256)
    shape = (np.floor(extent / side) + 1).astype(np.int64)
    first = np.clip(np.floor((means - reach - low) / side), 0, shape - 1).astype(np.int64)
    last = np.clip(np.floor((means + reach - low) / side), 0, shape - 1).astype(np.int64)
    cell = np.ravel_multi_index(tuple(np.floor((points - low) / side).astype(np.int64).T), tuple(shape))
    starts, members = _cells(first, last, shape)
    out = np.zeros(len(points))
    with launch_lock:
        _evaluate(means, factors, weights, points, cell, starts, members, numba.get_num_threads() * 16, out)
    return out


@njit(cache=True, nogil=True)
def _cells(first, last, shape):  # type: ignore[no-untyped-def]
    """Return, in compressed rows, which Gaussians reach into each cell of a 2D or 3D lattice."""
    ndim = len(shape)
    nz, ny, nx = (shape[0] if ndim == 3 else 1), shape[ndim - 2], shape[ndim - 1]
    starts = np.zeros(nz * ny * nx + 1, np.int64)
    members = np.empty(0, np.int64)
    for filling in (False, True):
        if filling:
            starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(starts[:-1])))
            members = np.empty(starts[-1], np.int64)
            free = starts.copy()
        for i in range(len(first)):
            z0, z1 = (first[i, 0], last[i, 0]) if ndim == 3 else (0, 0)
            for z in range(z0, z1 + 1):
                for y in range(first[i, ndim - 2], last[i, ndim - 2] + 1):
                    for x in range(first[i, ndim - 1], last[i, ndim - 1] + 1):
                        c = (z * ny + y) * nx + x
                        if filling:
                            members[free[c]] = i
                            free[c] += 1
                        else:
                            starts[c] += 1
    return starts, members


@njit(cache=True, nogil=True, parallel=True)
def _evaluate(means, factors, weights, points, cell, starts, members, tasks, out):  # type: ignore[no-untyped-def]
    ndim = points.shape[1]
    for task in prange(tasks):
        for m in range(task, len(points), tasks):
            total = 0.0
            for k in range(starts[cell[m]], starts[cell[m] + 1]):
                i = members[k]
                q = 0.0
                for b in range(ndim):
                    y = 0.0
                    for a in range(ndim):
                        y += factors[i, a, b] * (points[m, a] - means[i, a])
                    q += y * y
                if q < _K2:
                    total += weights[i] * exp(-q / 2)
            out[m] = total
