"""BM4D denoiser: block matching and collaborative hard thresholding.

Blocks of 4 x 4 x 4 voxels are grouped with the most similar blocks around. A group is sparse after a transform along
all four of its axes; setting small coefficients to zero removes noise, streaks and other structure that does not repeat
(M. Maggioni, V. Katkovnik, K. Egiazarian, A. Foi, "Nonlocal transform-domain filter for volumetric data denoising and
reconstruction", IEEE Trans. Image Process. 22(1), 119-133, 2013; the hard-thresholding stage).
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from ..errors import InputError
from ..kernels.numba_support import launch_lock

BLOCK_SIZE = 4
_VOXELS = BLOCK_SIZE**3
_k = np.arange(BLOCK_SIZE)
_DCT = np.sqrt(2 / BLOCK_SIZE) * np.cos(np.pi * (_k[None] + 0.5) * _k[:, None] / BLOCK_SIZE)
_DCT[0] = np.sqrt(1 / BLOCK_SIZE)
_DCT = _DCT.astype(np.float32)
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
HARD_THRESHOLD = 2.7
"""Threshold of the coefficients, in standard deviations of the noise."""
STRIDE = 3
"""Distance between reference blocks; small enough that every voxel is in a block."""


class BM4D:
    """Denoiser of volumes of one shape by collaborative hard thresholding.

    Parameters
    ----------
    shape : (int, int, int)
        Shape of the volume, at least `BLOCK_SIZE` voxels along every axis.
    reach : int
        Search radius of the block matching along each axis, voxels.
    group : int
        Number of blocks in a group, a power of 2.
    seed : int
        Seed of the random shift of the block lattice, which changes with every `match` to avoid block artefacts.
    """

    def __init__(self, shape: Sequence[int], *, reach: int = 4, group: int = 16, seed: int = 0) -> None:
        if min(shape) < BLOCK_SIZE:
            raise InputError(f"Blocks of {BLOCK_SIZE} voxels do not fit into a volume of shape {tuple(shape)}.")
        self.shape, self.reach, self.group = tuple(shape), reach, group
        self._random = np.random.default_rng(seed)
        self._sums = np.zeros((2, numba.get_num_threads(), *shape), np.float32)

    def match(self, guide: NDArray[np.float32]) -> None:
        """Match blocks in a guide volume; the groups are used until the next call."""
        self._places = [_places(n, int(self._random.integers(STRIDE))) for n in self.shape]
        self._matches = np.zeros((*map(len, self._places), self.group, 3), np.int16)
        with launch_lock:
            _find(guide, *self._places, self.reach, self._matches)

    def denoise(self, volume: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """Denoise a volume with noise of standard deviation `sigma`."""
        self._sums[:] = 0
        values, weights = self._sums
        cuts = np.linspace(0, len(self._places[0]), len(values) + 1).astype(np.int64)
        with launch_lock:
            _filter(volume, *self._places[1:], self._matches, np.float32(HARD_THRESHOLD * sigma), values, weights, cuts)
        return np.asarray(values.sum(0) / weights.sum(0))


def _places(n: int, offset: int) -> NDArray[np.int64]:
    """Return the first voxels of the reference blocks along an axis: every `STRIDE` voxels, and at both ends."""
    last = n - BLOCK_SIZE
    return np.unique([0, *range(min(offset, last), last + 1, STRIDE), last]).astype(np.int64)


@njit(cache=True, nogil=True, fastmath=FAST_MATH)
def _transform(block, T):  # type: ignore[no-untyped-def]
    """Apply a 4 x 4 matrix along each axis of a block, in place."""
    line = np.empty(4, np.float32)
    for axis in range(3):
        step = 16 if axis == 0 else 4 if axis == 1 else 1
        outer = 4 if axis == 0 else 16
        inner = 4 if axis == 2 else 1
        for i in range(4):
            for j in range(4):
                o = i * outer + j * inner
                for k in range(4):
                    total = np.float32(0)
                    for m in range(4):
                        total += T[k, m] * block[o + m * step]
                    line[k] = total
                for k in range(4):
                    block[o + k * step] = line[k]


@njit(cache=True, nogil=True, fastmath=FAST_MATH)
def _hadamard(group):  # type: ignore[no-untyped-def]
    """Transform along the first axis, in place; orthonormal, and its own inverse."""
    n = len(group)
    half = 1
    while half < n:
        for i in range(0, n, 2 * half):
            for j in range(i, i + half):
                for v in range(_VOXELS):
                    a, b = group[j, v], group[j + half, v]
                    group[j, v], group[j + half, v] = a + b, a - b
        half *= 2
    scale = np.float32(1 / np.sqrt(n))
    for i in range(n):
        for v in range(_VOXELS):
            group[i, v] *= scale


@njit(cache=True, nogil=True, fastmath=FAST_MATH)
def _match(volume, z, y, x, reach, squares, found):  # type: ignore[no-untyped-def]
    """Fill `found` with the blocks most similar to the one at (z, y, x), itself first; return their number."""
    nz, ny, nx = volume.shape
    most, n = len(found), 0
    x0, x1 = max(x - reach, 0), min(x + reach, nx - BLOCK_SIZE)
    width = x1 - x0 + 1
    row = np.empty(width, np.float32)
    for zz in range(max(z - reach, 0), min(z + reach, nz - BLOCK_SIZE) + 1):
        for yy in range(max(y - reach, 0), min(y + reach, ny - BLOCK_SIZE) + 1):
            row[:] = 0
            for bz in range(BLOCK_SIZE):
                for by in range(BLOCK_SIZE):
                    own, other = volume[z + bz, y + by], volume[zz + bz, yy + by]
                    for bx in range(BLOCK_SIZE):
                        value = own[x + bx]
                        for t in range(width):
                            difference = other[x0 + t + bx] - value
                            row[t] += difference * difference
            for t in range(width):
                square = row[t]
                if zz == z and yy == y and x0 + t == x:
                    square = np.float32(-1)
                if n < most or square < squares[n - 1]:
                    k = n if n < most else most - 1
                    n = min(n + 1, most)
                    while k > 0 and squares[k - 1] > square:
                        squares[k] = squares[k - 1]
                        found[k, 0], found[k, 1], found[k, 2] = found[k - 1, 0], found[k - 1, 1], found[k - 1, 2]
                        k -= 1
                    squares[k] = square
                    found[k, 0], found[k, 1], found[k, 2] = zz, yy, x0 + t
    return n


@njit(cache=True, nogil=True, parallel=True, fastmath=FAST_MATH)
def _find(guide, zs, ys, xs, reach, matches):  # type: ignore[no-untyped-def]
    for a in prange(len(zs)):
        group = matches.shape[3]
        squares, found = np.empty(group, np.float32), np.zeros((group, 3), np.int64)
        for b in range(len(ys)):
            for c in range(len(xs)):
                n = _match(guide, zs[a], ys[b], xs[c], reach, squares, found)
                for k in range(group):
                    for e in range(3):
                        matches[a, b, c, k, e] = found[k % n, e]  # small volumes: blocks are repeated


@njit(cache=True, nogil=True, parallel=True, fastmath=FAST_MATH)
def _filter(volume, ys, xs, matches, threshold, values, weights, cuts):  # type: ignore[no-untyped-def]
    """Aggregate filtered blocks, weighted by the sparsity of their groups; each task into its own sums."""
    forward, backward = _DCT, _DCT.T.copy()
    for task in prange(len(cuts) - 1):
        size = matches.shape[3]
        group = np.empty((size, _VOXELS), np.float32)
        value, weight = values[task], weights[task]
        for a in range(cuts[task], cuts[task + 1]):
            for b in range(len(ys)):
                for c in range(len(xs)):
                    places = matches[a, b, c]
                    for k in range(size):
                        z, y, x = places[k, 0], places[k, 1], places[k, 2]
                        for v in range(_VOXELS):
                            group[k, v] = volume[z + v // 16, y + v // 4 % 4, x + v % 4]
                        _transform(group[k], forward)
                    _hadamard(group)
                    mean, kept = group[0, 0], 1
                    for k in range(size):
                        for v in range(_VOXELS):
                            if abs(group[k, v]) < threshold:
                                group[k, v] = 0
                            else:
                                kept += 1
                    group[0, 0] = mean
                    share = np.float32(1) / np.float32(kept)
                    _hadamard(group)
                    for k in range(size):
                        _transform(group[k], backward)
                        z, y, x = places[k, 0], places[k, 1], places[k, 2]
                        for v in range(_VOXELS):
                            value[z + v // 16, y + v // 4 % 4, x + v % 4] += share * group[k, v]
                            weight[z + v // 16, y + v // 4 % 4, x + v % 4] += share
