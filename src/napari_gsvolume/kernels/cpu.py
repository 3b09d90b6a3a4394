"""The kernels on the CPU: numba, all cores, one vector of voxels at a time.

A Gaussian's support is an ellipsoid; it is walked plane by plane and row by row, the bounds of each being the roots
of a quadratic, so that hardly a voxel outside is touched. Rows are worked on in chunks of `LANES` voxels, a fixed trip
count that the compiler turns into straight vector code. `splat` gives each task a slab of the grid and `gather` a run
of Gaussians: nothing is written by two tasks, so there are no atomics and sums come out the same every time. The flat
kernels walk the same rows.

Images are volumes of shape (Y, 1, X) here: a Gaussian of any thickness centred on that one middle row is a 2D one.
"""

from __future__ import annotations

from math import ceil, floor, sqrt

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from .numba_support import FAST_MATH, exp16, f4, launch_lock

LANES = 16
_LANES_U = np.uint64(LANES)
_STEEPEST = 1e30  # keeps float32 finite; such a Gaussian touches at most the voxel it is centred on

_MONOMIALS_2D = [0, 1, 3, 4, 6, 9]  # where (1, y, x, yy, yx, xx) stand among the ten of a (Y, 1, X) volume


def splat(means: Tensor, factors: Tensor, coefficients: Tensor, shape: tuple[int, ...], support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.splat` on the CPU."""
    mu, W = _as_volume(means, factors)
    C = np.zeros((len(mu), 10), np.float32)
    C[:, _MONOMIALS_2D if len(shape) == 2 else slice(None)] = coefficients.detach().numpy()
    nz, ny, nx = (shape[0], 1, shape[1]) if len(shape) == 2 else shape
    out = np.zeros((nz, ny, max(nx, LANES)), np.float32)  # a row holds at least one chunk
    if len(mu):
        with launch_lock:
            E, order, first, last, slabs = _in_slabs(mu, W, nz, support)
            _splat(E, C[order], first, last, slabs, out.reshape(-1), ny, nx, out.shape[2], support**2)
    return torch.from_numpy(np.ascontiguousarray(out[:, :, :nx])).reshape(shape)


def gather(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.gather` on the CPU."""
    mu, W = _as_volume(means, factors)
    volume = _grid_as_volume(grid)
    nz, ny, nx = volume.shape
    if nx < LANES:
        volume = np.pad(volume, ((0, 0), (0, 0), (0, LANES - nx)))
    moments = np.zeros((len(mu), 10), np.float32)
    if len(mu):
        with launch_lock:
            E, first, last, runs = _in_runs(mu, W, nz, support)
            _gather(E, first, last, runs, volume.reshape(-1), ny, nx, volume.shape[2], support**2, moments)
    return torch.from_numpy(moments[:, _MONOMIALS_2D] if grid.ndim == 2 else moments)


def splat_flat(means: Tensor, factors: Tensor, values: Tensor, shape: tuple[int, ...], support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.splat_flat` on the CPU."""
    mu, W = _as_volume(means, factors)
    nz, ny, nx = (shape[0], 1, shape[1]) if len(shape) == 2 else shape
    amounts = values.detach().numpy().astype(np.float32 if values.is_floating_point() else np.int64)
    out = np.zeros((nz, ny, nx), amounts.dtype)
    if len(mu):
        with launch_lock:
            E, order, first, last, slabs = _in_slabs(mu, W, nz, support)
            _splat_flat(E, amounts[order], first, last, slabs, out.reshape(-1), ny, nx, support**2)
    return torch.from_numpy(out).reshape(shape)


def gather_flat(means: Tensor, factors: Tensor, grid: Tensor, support: float) -> Tensor:
    """Run `napari_gsvolume.kernels.gather_flat` on the CPU."""
    mu, W = _as_volume(means, factors)
    volume = _grid_as_volume(grid)
    nz, ny, nx = volume.shape
    sums = np.zeros(len(mu), np.float32)
    if len(mu):
        with launch_lock:
            E, first, last, runs = _in_runs(mu, W, nz, support)
            _gather_flat(E, first, last, runs, volume.reshape(-1), ny, nx, support**2, sums)
    return torch.from_numpy(sums)


def _grid_as_volume(grid: Tensor) -> NDArray[np.float32]:
    volume = np.ascontiguousarray(grid.detach().numpy(), np.float32)
    return volume[:, None, :] if volume.ndim == 2 else volume


def _in_slabs(
    mu: NDArray[np.float32], W: NDArray[np.float32], nz: int, support: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the ellipsoids along z, their order, first and last planes, and the cuts between slabs of equal work."""
    E = _ellipsoids(mu, W)
    first, last = _extent(E, nz, support)
    slabs = _equal_cuts(_cost_of_planes(E, first, last, nz, support), numba.get_num_threads())
    order = np.argsort(first, kind="stable")  # so that neighbours in the list are neighbours in memory
    return E[order], order, first[order], last[order], slabs


def _in_runs(
    mu: NDArray[np.float32], W: NDArray[np.float32], nz: int, support: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the ellipsoids as they come, their first and last planes, and the cuts between runs of equal work."""
    E = _ellipsoids(mu, W)
    first, last = _extent(E, nz, support)
    return E, first, last, _equal_cuts(_cost_of_gaussians(E, first, last, support), numba.get_num_threads())


def _as_volume(means: Tensor, factors: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return means (N, 3) and factors (N, 3, 3), images lifted to volumes of one middle row."""
    mu = np.ascontiguousarray(means.detach().numpy(), np.float32)
    W = np.ascontiguousarray(factors.detach().numpy(), np.float32)
    if mu.shape[1] == 2:
        lifted = np.zeros((len(mu), 3, 3), np.float32)
        lifted[:, 1, 1] = 1
        lifted[:, ::2, ::2] = W
        mu, W = np.insert(mu, 1, 0, axis=1), lifted
    return mu, W


@njit(cache=True, nogil=True, error_model="numpy")
def _ellipsoids(mu, W):  # type: ignore[no-untyped-def]
    """Return (N, 9) float64: centre (z, y, x) and the squares completed along x, then y, then z.

    ``|W^T d|^2 = A (dx + a dy + b dz)^2 + B (dy + c dz)^2 + C dz^2``, stored as A, a, b, B, c, C.
    """
    E = np.empty((len(mu), 9))
    for i in range(len(mu)):
        P = np.zeros((3, 3))
        for r in range(3):
            for s in range(3):
                for t in range(3):
                    P[r, s] += np.float64(W[i, r, t]) * np.float64(W[i, s, t])
        A = P[2, 2]
        a, b = P[1, 2] / A, P[0, 2] / A
        B = P[1, 1] - A * a * a
        c = (P[0, 1] - A * a * b) / B
        C = P[0, 0] - A * b * b - B * c * c
        E[i, 0], E[i, 1], E[i, 2] = mu[i, 0], mu[i, 1], mu[i, 2]
        E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8] = A, a, b, B, c, C
    return E


@njit(cache=True, nogil=True, error_model="numpy")
def _bounds(centre, radius, n):  # type: ignore[no-untyped-def]
    """Return first and last integer within `radius` of `centre` and inside [0, n); last < first if there is none.

    The ends are clipped before they become integers: a huge Gaussian's would overflow.
    """
    return int(ceil(max(centre - radius, 0.0))), int(floor(min(centre + radius, n - 1.0)))  # noqa: RUF046, numba's ceil and floor are floats


@njit(cache=True, nogil=True, error_model="numpy")
def _extent(E, nz, support):  # type: ignore[no-untyped-def]
    """Return the first and last plane of each ellipsoid."""
    first, last = np.empty(len(E), np.int64), np.empty(len(E), np.int64)
    for i in range(len(E)):
        # A singular factor has no A, B, C > 0 (numbers or NaN): such a Gaussian touches nothing.
        if E[i, 3] > 0 and E[i, 6] > 0 and E[i, 8] > 0:
            first[i], last[i] = _bounds(E[i, 0], support / sqrt(E[i, 8]), nz)
        else:
            first[i], last[i] = 0, -1
    return first, last


@njit(cache=True, nogil=True, error_model="numpy")
def _plane_cost(E, i, support):  # type: ignore[no-untyped-def]
    """Return about the work of one plane of ellipsoid `i`: chunks of voxels, and a row's overhead."""
    width, height = 2 * support / sqrt(E[i, 3]), 2 * support / sqrt(E[i, 6])
    return (height + 1) * (width + 2 * LANES)


@njit(cache=True, nogil=True, error_model="numpy")
def _cost_of_planes(E, first, last, nz, support):  # type: ignore[no-untyped-def]
    cost = np.zeros(nz)
    for i in range(len(E)):
        for z in range(first[i], last[i] + 1):
            cost[z] += _plane_cost(E, i, support)
    return cost


@njit(cache=True, nogil=True, error_model="numpy")
def _cost_of_gaussians(E, first, last, support):  # type: ignore[no-untyped-def]
    cost = np.zeros(len(E))
    for i in range(len(E)):
        if last[i] >= first[i]:
            cost[i] = (last[i] - first[i] + 1) * _plane_cost(E, i, support)
    return cost


def _equal_cuts(cost: NDArray[np.float64], parts: int) -> NDArray[np.int64]:
    """Return `parts` + 1 indices that cut a list into runs of about equal cost."""
    total = np.concatenate([[0.0], np.cumsum(cost)])
    cuts = np.searchsorted(total, np.linspace(0, total[-1], parts + 1))
    cuts[0], cuts[-1] = 0, len(cost)
    return cuts.astype(np.int64)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _splat_chunk(out, start, skip, length, alpha, u0, beta, d0, p0, p1, p2):  # type: ignore[no-untyped-def]
    """Add ``exp * (p0 + p1 d + p2 d^2)`` to `LANES` voxels, those inside ``skip <= j < skip + length`` only."""
    for j in range(_LANES_U):
        step = f4(np.int32(j))
        u = u0 + step
        d = d0 + step
        value = exp16(alpha * u * u + beta) * (p0 + d * (p1 + d * p2))
        inside = np.uint32(np.uint32(j) - skip) < length  # below skip this wraps around to a huge number
        out[start + j] += value if inside else f4(0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _gather_chunk(grid, start, skip, length, alpha, u0, beta, d0):  # type: ignore[no-untyped-def]
    """Return the sums of grid * exp * (1, d, d^2) over the voxels that `_splat_chunk` would touch."""
    s0, s1, s2 = f4(0), f4(0), f4(0)
    for j in range(_LANES_U):
        step = f4(np.int32(j))
        u = u0 + step
        d = d0 + step
        e = exp16(alpha * u * u + beta)
        inside = np.uint32(np.uint32(j) - skip) < length
        value = grid[start + j] * (e if inside else f4(0))
        moment = value * d
        s0 += value
        s1 += moment
        s2 += moment * d
    return s0, s1, s2


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _splat(E, coefficients, first, last, slabs, out, ny, nx, stride, k2):  # type: ignore[no-untyped-def]
    for task in prange(len(slabs) - 1):
        for i in range(len(E)):
            my, mx = E[i, 1], E[i, 2]
            A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
            q = coefficients[i]
            alpha, p2 = f4(-min(A, _STEEPEST) / 32), q[9]
            for z in range(max(first[i], slabs[task]), min(last[i] + 1, slabs[task + 1])):
                dz = z - E[i, 0]
                left_plane = k2 - C * dz * dz  # what is left of the squared radius for y and x
                centre_y = my - c * dz
                y0, y1 = _bounds(centre_y, sqrt(max(left_plane, 0.0) / B), ny)
                for y in range(y0, y1 + 1):
                    dy = y - my
                    left_row = left_plane - B * (y - centre_y) ** 2
                    centre = mx - a * dy - b * dz
                    x0, x1 = _bounds(centre, sqrt(max(left_row, 0.0) / A), nx)
                    beta = f4((left_row - k2) / 32)
                    p0 = f4(q[0] + dz * (q[1] + dz * q[4] + dy * q[5]) + dy * (q[2] + dy * q[7]))
                    p1 = f4(q[3] + dz * q[6] + dy * q[8])
                    for x in range(x0, x1 + 1, LANES):
                        start = min(x, stride - LANES)
                        _splat_chunk(
                            out,
                            np.uint64((z * ny + y) * stride + start),
                            np.uint32(x - start),
                            np.uint32(x1 + 1 - x),
                            alpha,
                            f4(start - centre),
                            beta,
                            f4(start - mx),
                            p0,
                            p1,
                            p2,
                        )


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _gather(E, first, last, runs, grid, ny, nx, stride, k2, moments):  # type: ignore[no-untyped-def]
    for task in prange(len(runs) - 1):
        for i in range(runs[task], runs[task + 1]):
            my, mx = E[i, 1], E[i, 2]
            A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
            alpha = f4(-min(A, _STEEPEST) / 32)
            m, mz, my_, mx_, mzz, mzy, mzx, myy, myx, mxx = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for z in range(first[i], last[i] + 1):
                dz = z - E[i, 0]
                left_plane = k2 - C * dz * dz
                centre_y = my - c * dz
                y0, y1 = _bounds(centre_y, sqrt(max(left_plane, 0.0) / B), ny)
                r, ry, rx, ryy, ryx, rxx = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0  # the moments of this plane
                for y in range(y0, y1 + 1):
                    dy = y - my
                    left_row = left_plane - B * (y - centre_y) ** 2
                    centre = mx - a * dy - b * dz
                    x0, x1 = _bounds(centre, sqrt(max(left_row, 0.0) / A), nx)
                    beta = f4((left_row - k2) / 32)
                    for x in range(x0, x1 + 1, LANES):
                        start = min(x, stride - LANES)
                        s0, s1, s2 = _gather_chunk(
                            grid,
                            np.uint64((z * ny + y) * stride + start),
                            np.uint32(x - start),
                            np.uint32(x1 + 1 - x),
                            alpha,
                            f4(start - centre),
                            beta,
                            f4(start - mx),
                        )
                        r += s0
                        rx += s1
                        rxx += s2
                        ry += dy * s0
                        ryy += dy * dy * s0
                        ryx += dy * s1
                m += r
                mz += dz * r
                mzz += dz * dz * r
                my_ += ry
                mx_ += rx
                mzy += dz * ry
                mzx += dz * rx
                myy += ryy
                myx += ryx
                mxx += rxx
            o = moments[i]
            o[0], o[1], o[2], o[3] = m, mz, my_, mx_
            o[4], o[5], o[6], o[7], o[8], o[9] = mzz, mzy, mzx, myy, myx, mxx


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _splat_flat(E, values, first, last, slabs, out, ny, nx, k2):  # type: ignore[no-untyped-def]
    for task in prange(len(slabs) - 1):
        for i in range(len(E)):
            A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
            value = values[i]
            for z in range(max(first[i], slabs[task]), min(last[i] + 1, slabs[task + 1])):
                dz = z - E[i, 0]
                left_plane = k2 - C * dz * dz
                centre_y = E[i, 1] - c * dz
                y0, y1 = _bounds(centre_y, sqrt(max(left_plane, 0.0) / B), ny)
                for y in range(y0, y1 + 1):
                    left_row = left_plane - B * (y - centre_y) ** 2
                    centre = E[i, 2] - a * (y - E[i, 1]) - b * dz
                    x0, x1 = _bounds(centre, sqrt(max(left_row, 0.0) / A), nx)
                    start = np.uint64((z * ny + y) * nx + x0)
                    for j in range(np.uint64(max(x1 + 1 - x0, 0))):
                        out[start + j] += value


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _gather_flat(E, first, last, runs, grid, ny, nx, k2, sums):  # type: ignore[no-untyped-def]
    for task in prange(len(runs) - 1):
        for i in range(runs[task], runs[task + 1]):
            A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
            total = np.float64(0)
            for z in range(first[i], last[i] + 1):
                dz = z - E[i, 0]
                left_plane = k2 - C * dz * dz
                centre_y = E[i, 1] - c * dz
                y0, y1 = _bounds(centre_y, sqrt(max(left_plane, 0.0) / B), ny)
                for y in range(y0, y1 + 1):
                    left_row = left_plane - B * (y - centre_y) ** 2
                    centre = E[i, 2] - a * (y - E[i, 1]) - b * dz
                    x0, x1 = _bounds(centre, sqrt(max(left_row, 0.0) / A), nx)
                    start = np.uint64((z * ny + y) * nx + x0)
                    row = f4(0)
                    for j in range(np.uint64(max(x1 + 1 - x0, 0))):
                        row += grid[start + j]
                    total += row
            sums[i] = total
