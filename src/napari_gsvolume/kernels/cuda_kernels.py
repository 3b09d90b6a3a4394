"""The kernels of `napari_gsvolume.kernels.cuda`, in CUDA Python.

With the squares of ``|W^T d|^2`` completed along x, then y, then z (`complete_squares`) a Gaussian is::

    q = A u^2 + B t^2 + C dz^2,    u = dx + a dy + b dz,    t = dy + c dz

Squares are completed, and whatever is the same for a whole tile or row is computed, in float64: far along a long, thin
Gaussian u is a small difference of large numbers. The loops over voxels are float32 throughout, so their integers and
constants are cast: int64 times float32 would be float64. The simulator has no warp intrinsics; none are used.
"""

from __future__ import annotations

from math import ceil, exp, floor, isfinite, sqrt

import numpy as np
from numba import cuda

f4, f8, i4, i8 = np.float32, np.float64, np.int32, np.int64
STEEPEST = 1e30  # keeps float32 finite; such a Gaussian touches at most the voxel it is centred on

TILE_THREADS = 256
"""Threads of a block that has a tile; of `splat` each has `RUN` neighbouring voxels of a row."""
RUN = 4
BATCH = 64
"""Gaussians of a tile that are in shared memory together."""
WARP = 32
"""Threads of a block of `gather`: `LANES` voxels of each of WARP / LANES rows at a time."""
LANES = 8

# Columns of a Gaussian in shared memory, the coefficients after them.
_C, _MZ, _B, _CC, _T0, _A, _AA, _BB, _U0, _MY, _MX, _COEFFICIENTS = range(12)
_FIELDS = _COEFFICIENTS + 11  # an odd number: rows begin in different banks


@cuda.jit(cache=True)
def complete_squares(mu, W, E, flaws):  # type: ignore[no-untyped-def]
    """Fill E (N, 9), float64, with the centre (z, y, x) and A, a, b, B, c, C; count in `flaws` what is not finite.

    Where the factor is singular, or not finite, C is 0: such a Gaussian touches nothing.
    """
    i = cuda.grid(1)
    if i >= mu.shape[0]:
        return
    total = f8(0)  # of float32 numbers; it cannot overflow
    for r in range(3):
        total += f8(mu[i, r])
        for s in range(3):
            total += f8(W[i, r, s])
    finite = isfinite(total)
    if not finite:
        cuda.atomic.add(flaws, 0, 1)
    P00, P01, P02, P11, P12, P22 = f8(0), f8(0), f8(0), f8(0), f8(0), f8(0)
    for s in range(3):
        wz, wy, wx = f8(W[i, 0, s]), f8(W[i, 1, s]), f8(W[i, 2, s])
        P00 += wz * wz
        P01 += wz * wy
        P02 += wz * wx
        P11 += wy * wy
        P12 += wy * wx
        P22 += wx * wx
    a, b, B, c, C = f8(0), f8(0), f8(0), f8(0), f8(0)
    if finite and P22 > 0:
        a, b = P12 / P22, P02 / P22
        B = P11 - P22 * a * a
    if B > 0:
        c = (P01 - P22 * a * b) / B
        C = P00 - P22 * b * b - B * c * c
    E[i, 0], E[i, 1], E[i, 2] = mu[i, 0], mu[i, 1], mu[i, 2]
    E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7] = P22, a, b, B, c
    E[i, 8] = C if C > 0 else f8(0)


@cuda.jit(device=True)
def _bounds(centre, radius, n):  # type: ignore[no-untyped-def]
    """Return first and last integer within `radius` of `centre` and inside [0, n); last < first if there is none."""
    return i4(ceil(max(centre - radius, f8(0)))), i4(floor(min(centre + radius, f8(n - 1))))


@cuda.jit(device=True)
def _tile_box(E, i, shape, tile, k):  # type: ignore[no-untyped-def]
    """Return the first tile along z, y and x that ellipsoid `i` may reach, and one past the last; all 0 if none.

    Along each axis it extends k times the root of the covariance's diagonal.
    """
    A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
    if not C > 0:
        return 0, 0, 0, 0, 0, 0
    z0, z1 = _bounds(E[i, 0], k / sqrt(C), shape[0])
    y0, y1 = _bounds(E[i, 1], k * sqrt(1 / B + c * c / C), shape[1])
    x0, x1 = _bounds(E[i, 2], k * sqrt(1 / A + a * a / B + (a * c - b) ** 2 / C), shape[2])
    if z1 < z0 or y1 < y0 or x1 < x0:
        return 0, 0, 0, 0, 0, 0
    return (
        z0 // tile[0],
        y0 // tile[1],
        x0 // tile[2],
        z1 // tile[0] + 1,
        y1 // tile[1] + 1,
        x1 // tile[2] + 1,
    )


@cuda.jit(device=True)
def _reaches(E, i, tz, ty, tx, tile, k2):  # type: ignore[no-untyped-def]
    """Tell whether ellipsoid `i` may reach into a tile: False is certain, True is not.

    The least of each square over the tile is found on its own, u, t and dz running over the intervals they can have.
    """
    a, b, c = E[i, 4], E[i, 5], E[i, 7]
    hz, hy, hx = f8(tile[0] - 1) / 2, f8(tile[1] - 1) / 2, f8(tile[2] - 1) / 2
    dz, dy, dx = tz * tile[0] + hz - E[i, 0], ty * tile[1] + hy - E[i, 1], tx * tile[2] + hx - E[i, 2]
    z = max(abs(dz) - hz, f8(0))
    t = max(abs(dy + c * dz) - hy - abs(c) * hz, f8(0))
    u = max(abs(dx + a * dy + b * dz) - hx - abs(a) * hy - abs(b) * hz, f8(0))
    return E[i, 3] * u * u + E[i, 6] * t * t + E[i, 8] * z * z < k2


@cuda.jit(cache=True)
def count_tiles(E, shape, tile, k, counts):  # type: ignore[no-untyped-def]
    """Count the tiles each ellipsoid reaches into."""
    i = cuda.grid(1)
    if i >= E.shape[0]:
        return
    z0, y0, x0, z1, y1, x1 = _tile_box(E, i, shape, tile, k)
    n = i8(0)
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if _reaches(E, i, z, y, x, tile, k * k):
                    n += 1
    counts[i] = n


@cuda.jit(cache=True)
def list_tiles(E, shape, tile, k, ends, tiles, members):  # type: ignore[no-untyped-def]
    """List the pairs of tile and ellipsoid that `count_tiles` counted; those of ellipsoid i end at ends[i]."""
    i = cuda.grid(1)
    if i >= E.shape[0]:
        return
    ny, nx = (shape[1] + tile[1] - 1) // tile[1], (shape[2] + tile[2] - 1) // tile[2]
    z0, y0, x0, z1, y1, x1 = _tile_box(E, i, shape, tile, k)
    place = ends[i - 1] if i > 0 else i8(0)
    for z in range(z0, z1):
        for y in range(y0, y1):
            for x in range(x0, x1):
                if _reaches(E, i, z, y, x, tile, k * k):
                    tiles[place] = (z * ny + y) * nx + x
                    members[place] = i
                    place += 1


@cuda.jit(device=True)
def _origin(shape, tile):  # type: ignore[no-untyped-def]
    """Return the first voxel of this block's tile."""
    ny, nx = (shape[1] + tile[1] - 1) // tile[1], (shape[2] + tile[2] - 1) // tile[2]
    block = cuda.blockIdx.x
    return block // (ny * nx) * tile[0], block // nx % ny * tile[1], block % nx * tile[2]


@cuda.jit(device=True)
def _load(E, i, oz, oy, ox, shared, g):  # type: ignore[no-untyped-def]
    """Put what a tile at that origin needs of ellipsoid `i` into row `g`, relative to the origin."""
    dz, dy, dx = oz - E[i, 0], oy - E[i, 1], ox - E[i, 2]
    a, b, c = E[i, 4], E[i, 5], E[i, 7]
    shared[g, _C], shared[g, _MZ] = min(E[i, 8], STEEPEST), -dz
    shared[g, _B], shared[g, _CC], shared[g, _T0] = min(E[i, 6], STEEPEST), c, dy + c * dz
    shared[g, _A], shared[g, _AA], shared[g, _BB] = min(E[i, 3], STEEPEST), a, b
    shared[g, _U0], shared[g, _MY], shared[g, _MX] = dx + a * dy + b * dz, -dy, -dx


@cuda.jit(cache=True, fastmath=True)
def splat(E, coefficients, starts, members, shape, tile, k2, out):  # type: ignore[no-untyped-def]
    """Sum over a tile a block; ``members[starts[b]:starts[b + 1]]`` are the Gaussians of tile b."""
    shared = cuda.shared.array((BATCH, _FIELDS), np.float32)
    total = cuda.local.array(RUN, np.float32)
    thread = cuda.threadIdx.x
    oz, oy, ox = _origin(shape, tile)
    runs = tile[2] // RUN
    k, j, i = thread // (runs * tile[1]), thread // runs % tile[1], thread % runs * RUN
    kf, jf, xf, limit = f4(k), f4(j), f4(i), f4(k2)
    for v in range(RUN):
        total[v] = f4(0)
    start, end = starts[cuda.blockIdx.x], starts[cuda.blockIdx.x + 1]
    for first in range(start, end, BATCH):
        n = min(BATCH, end - first)
        if thread < n:
            _load(E, members[first + thread], oz, oy, ox, shared, thread)
        for m in range(thread, 10 * n, TILE_THREADS):
            shared[m // 10, _COEFFICIENTS + m % 10] = coefficients[members[first + m // 10], m % 10]
        cuda.syncthreads()
        for g in range(n):
            s = shared[g]
            dz = kf - s[_MZ]
            t = jf + s[_CC] * kf + s[_T0]
            left = limit - s[_C] * dz * dz - s[_B] * t * t  # what is left of the squared radius for x
            if left > f4(0):
                A, dy, dx = s[_A], jf - s[_MY], xf - s[_MX]
                u = xf + s[_AA] * jf + s[_BB] * kf + s[_U0]
                q = s[_COEFFICIENTS:]
                p0 = q[0] + dz * (q[1] + dz * q[4] + dy * q[5]) + dy * (q[2] + dy * q[7])
                p1 = q[3] + dz * q[6] + dy * q[8]
                p2 = q[9]
                for v in range(RUN):
                    square = A * u * u
                    if square < left:
                        total[v] += exp(f4(0.5) * (left - limit - square)) * (p0 + dx * (p1 + dx * p2))
                    u += f4(1)
                    dx += f4(1)
        cuda.syncthreads()
    if oz + k < shape[0] and oy + j < shape[1]:
        for v in range(RUN):
            if ox + i + v < shape[2]:
                out[oz + k, oy + j, ox + i + v] = total[v]


@cuda.jit(cache=True, fastmath=True)
def gather(E, grid, k, moments):  # type: ignore[no-untyped-def]
    """Sum over every `gridDim.y`-th plane of a Gaussian a block, a warp, into moments (parts, N, 10).

    The lanes of a warp sum on their own; then ten of them add up a moment each.
    """
    shared = cuda.shared.array((WARP, 10), np.float32)
    i, part, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    nz, ny, nx = grid.shape
    column, row = lane % LANES, lane // LANES
    mz, my, mx, k2 = E[i, 0], E[i, 1], E[i, 2], k * k
    a, b, B, c, C = E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
    A = f4(min(E[i, 3], STEEPEST))
    z0, z1 = _bounds(mz, k / sqrt(C), nz) if C > 0 else (i4(0), i4(-1))
    m, m_z, m_y, m_x, m_zz, m_zy, m_zx, m_yy, m_yx, m_xx = (
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
        f4(0),
    )
    for z in range(z0 + part, z1 + 1, cuda.gridDim.y):
        dz8 = z - mz
        dz, left_plane, centre_y = f4(dz8), k2 - C * dz8 * dz8, my - c * dz8
        y0, y1 = _bounds(centre_y, sqrt(max(left_plane, f8(0)) / B), ny)
        for y in range(y0 + row, y1 + 1, WARP // LANES):
            dy8, t = y - my, y - centre_y
            left8 = left_plane - B * t * t
            centre = mx - a * dy8 - b * dz8
            dy, left = f4(dy8), f4(left8)
            x0, x1 = _bounds(centre, f8(sqrt(max(left, f4(0)) / A)), nx)
            s0, s1, s2 = f4(0), f4(0), f4(0)  # the moments of this lane's part of the row
            u, dx = f4(x0 + column - centre), f4(x0 + column - mx)
            for x in range(x0 + column, x1 + 1, LANES):
                value = grid[z, y, x] * exp(f4(0.5) * (left - f4(k2) - A * u * u))
                moment = value * dx
                s0 += value
                s1 += moment
                s2 += moment * dx
                u += f4(LANES)
                dx += f4(LANES)
            yz = dy * s0
            m += s0
            m_z += dz * s0
            m_y += yz
            m_x += s1
            m_zz += dz * dz * s0
            m_zy += dz * yz
            m_zx += dz * s1
            m_yy += dy * yz
            m_yx += dy * s1
            m_xx += s2
    own = shared[lane]
    own[0], own[1], own[2], own[3] = m, m_z, m_y, m_x
    own[4], own[5], own[6], own[7], own[8], own[9] = m_zz, m_zy, m_zx, m_yy, m_yx, m_xx
    cuda.syncthreads()
    if lane < 10:
        total = f4(0)
        for other in range(WARP):
            total += shared[other, lane]
        moments[part, i, lane] = total


@cuda.jit(cache=True)
def splat_flat(E, values, starts, members, shape, tile, k2, out):  # type: ignore[no-untyped-def]
    """Sum constants over the ellipsoids of a tile a block, a voxel a thread."""
    shared = cuda.shared.array((BATCH, _FIELDS), np.float32)
    thread = cuda.threadIdx.x
    oz, oy, ox = _origin(shape, tile)
    k, j, i = thread // (tile[2] * tile[1]), thread // tile[2] % tile[1], thread % tile[2]
    kf, jf, xf, limit = f4(k), f4(j), f4(i), f4(k2)
    total = values.dtype.type(0)
    start, end = starts[cuda.blockIdx.x], starts[cuda.blockIdx.x + 1]
    for first in range(start, end, BATCH):
        n = min(BATCH, end - first)
        if thread < n:
            _load(E, members[first + thread], oz, oy, ox, shared, thread)
        cuda.syncthreads()
        for g in range(n):
            s = shared[g]
            dz = kf - s[_MZ]
            t = jf + s[_CC] * kf + s[_T0]
            u = xf + s[_AA] * jf + s[_BB] * kf + s[_U0]
            if s[_A] * u * u + s[_B] * t * t + s[_C] * dz * dz < limit:
                total += values[members[first + g]]
        cuda.syncthreads()
    if oz + k < shape[0] and oy + j < shape[1] and ox + i < shape[2]:
        out[oz + k, oy + j, ox + i] = total


@cuda.jit(cache=True)
def gather_flat(E, grid, k, sums):  # type: ignore[no-untyped-def]
    """Sum over every `gridDim.y`-th plane of an ellipsoid a block, a warp, into sums (parts, N)."""
    shared = cuda.shared.array(WARP, np.float32)
    i, part, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    nz, ny, nx = grid.shape
    column, row = lane % LANES, lane // LANES
    mz, my, mx, k2 = E[i, 0], E[i, 1], E[i, 2], k * k
    A, a, b, B, c, C = E[i, 3], E[i, 4], E[i, 5], E[i, 6], E[i, 7], E[i, 8]
    z0, z1 = _bounds(mz, k / sqrt(C), nz) if C > 0 else (i4(0), i4(-1))
    total = f4(0)
    for z in range(z0 + part, z1 + 1, cuda.gridDim.y):
        dz = z - mz
        left_plane, centre_y = k2 - C * dz * dz, my - c * dz
        y0, y1 = _bounds(centre_y, sqrt(max(left_plane, f8(0)) / B), ny)
        for y in range(y0 + row, y1 + 1, WARP // LANES):
            t = y - centre_y
            x0, x1 = _bounds(mx - a * (y - my) - b * dz, sqrt(max(left_plane - B * t * t, f8(0)) / A), nx)
            for x in range(x0 + column, x1 + 1, LANES):
                total += grid[z, y, x]
    shared[lane] = total
    cuda.syncthreads()
    if lane == 0:
        total = f4(0)
        for other in range(WARP):
            total += shared[other]
        sums[part, i] = total
