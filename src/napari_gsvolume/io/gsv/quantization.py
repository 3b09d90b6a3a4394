"""Gaussians as integers, each number as coarse as the volume can bear.

An error ``(omega, a, B)`` of a Gaussian in whitened coordinates (see `napari_gsvolume.operators.gaussian_sum`) changes
the volume by the energy ``c (omega^2 + w^2 |a|^2 / 2 + w^2 |B|^2 / 8)``, with ``c = int e^2`` and for the weight that
goes with B. So, with the amplitude ``u = w sqrt(c)``, the energy of an error is the same everywhere if u is rounded to
multiples of a step, positions are rounded in radii and shapes in ratios, both to steps in proportion to ``step / |u|``.
This is uniform quantisation with respect to the error in the volume, which is about optimal at a given rate (Gish and
Pierce 1968).

``u = m step`` with an integer m; its class is ``floor(log2 |m|)``; all other steps are powers of two of the class:

- log radii are multiples of ``2^-class``, sorted;
- the orientation is, in 3D, the direction of the most distinct axis (the shortest one of a disc, the longest one of a
  needle) on a hemisphere of rings, and an angle about it; in 2D one angle. Their steps are ``2^-class sqrt(2)``
  over ``r - 1 / r``, with r the ratio of the radii that the rotation mixes: what is round needs no orientation;
- positions are a cell of the grid plus a fraction of it, rounded axis by axis, each one making up for the rounding of
  those before it, so that the steps along the axes are those of the Cholesky factor of the covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...types import Float64Array, IntArray

MOST_LEVELS = 1 << 12
"""Of an angle or of a fraction of a cell."""
LARGEST_CLASS = 20
FINEST = 8
"""Class above which only the amplitude gains precision: radii and positions are precise to a few thousandths."""
LOG_RADII = (-3.0, 8.0)
"""Natural logarithms of the smallest and largest radii that are kept, in voxels."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Integer codes of N Gaussians in D dimensions.

    Attributes
    ----------
    cells : (N, D)
        Cell of the centre along each axis; cell 0 begins where the first voxel does. May be negative.
    amplitudes : (N,)
        m, not zero.
    radii : (N, D)
        Log radii over their step, in rising order.
    orientations : (N, 1 or 2)
        Angle (2D); direction and angle (3D).
    fractions : (N, D)
        Where in its cell the centre is.
    """

    cells: IntArray
    amplitudes: IntArray
    radii: IntArray
    orientations: IntArray
    fractions: IntArray


def classes(amplitudes: IntArray) -> IntArray:
    """Return floor(log2 |m|)."""
    return np.frexp(np.abs(amplitudes).astype(np.float64))[1].astype(np.int64) - 1


def _fineness(amplitudes: IntArray) -> Float64Array:
    """Return one over the step of log radii and, in radii, of positions: a power of two."""
    return np.exp2(np.minimum(classes(amplitudes), FINEST))


def quantise(
    means: Float64Array, factors: Float64Array, weights: Float64Array, step: float, cell: int
) -> tuple[Codes, NDArray[np.intp]]:
    """Return the codes of Gaussians, and their indices: Gaussians with an amplitude that rounds to zero are left out.

    Parameters
    ----------
    means, factors, weights : ndarray, (N, D), (N, D, D), (N,)
        The Gaussians; voxel centres are at integers.
    step : float
        Of the amplitudes ``w sqrt(c)``; the other steps follow from it.
    cell : int
        Voxels along a cell.
    """
    ndim = means.shape[1]
    axes, inverse_radii, _ = np.linalg.svd(factors)  # largest inverse radius first
    logs = np.clip(-np.log(np.maximum(inverse_radii, 1e-30)), *LOG_RADII)  # (N, D), rising
    amplitude = weights * math.pi ** (ndim / 4) * np.exp(logs.sum(1) / 2)
    m = np.rint(np.clip(amplitude / step, -(2.0**LARGEST_CLASS), 2.0**LARGEST_CLASS)).astype(np.int64)
    kept = np.flatnonzero(m)
    m, logs, axes = m[kept], logs[kept], axes[kept]
    fineness = _fineness(m)[:, None]
    radii = np.rint(logs * fineness).astype(np.int64)
    logs = radii / fineness
    if ndim == 2:
        orientations = _angle_code(axes[:, :, 0], _angles(_mixing(logs[:, 0], logs[:, 1]), fineness[:, 0]))[:, None]
    else:
        orientations = _orientation_codes(axes, logs, fineness[:, 0])
    codes = Codes(np.zeros((len(m), ndim), np.int64), m, radii, orientations, np.zeros((len(m), ndim), np.int64))
    return _with_positions(codes, means[kept], cell), kept


def with_amplitudes(codes: Codes, weights: Float64Array, step: float) -> Codes:
    """Return the codes with the amplitudes of other weights, clipped to their classes, which fix all steps."""
    old = codes.amplitudes
    low = np.exp2(classes(old)).astype(np.int64)
    m = np.rint(weights / unit_weights(codes, step)).astype(np.int64)
    m = np.where(old < 0, -1, 1) * np.clip(np.where(old < 0, -m, m), low, 2 * low - 1)
    return Codes(codes.cells, m, codes.radii, codes.orientations, codes.fractions)


def with_means(codes: Codes, means: Float64Array, cell: int) -> Codes:
    """Return the codes with other centres."""
    return _with_positions(codes, means, cell)


def unit_weights(codes: Codes, step: float) -> Float64Array:
    """Return the weight of amplitude 1, ``(N,)``."""
    ndim = codes.radii.shape[1]
    logs = codes.radii / _fineness(codes.amplitudes)[:, None]
    size: Float64Array = math.pi ** (ndim / 4) * np.exp(logs.sum(1) / 2)
    return step / size


def dequantise(codes: Codes, step: float, cell: int) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return means, factors and weights; raise ValueError if codes are out of their ranges."""
    fineness = _fineness(codes.amplitudes)[:, None]
    logs = codes.radii / fineness
    axes = rotations(codes)
    factors = axes * np.exp(-logs)[:, None, :]
    levels = fraction_levels(codes, cell)
    means = (codes.cells + (codes.fractions + 0.5) / levels) * cell - 0.5
    return means, factors, codes.amplitudes * unit_weights(codes, step)


def rotations(codes: Codes) -> Float64Array:
    """Return the principal axes as columns, in the order of the radii, ``(N, D, D)``."""
    fineness = _fineness(codes.amplitudes)
    logs = codes.radii / fineness[:, None]
    if codes.radii.shape[1] == 2:
        levels = _angles(_mixing(logs[:, 0], logs[:, 1]), fineness)
        angle = (codes.orientations[:, 0] + 0.5) * np.pi / levels
        first = np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.stack([first, np.stack([-first[:, 1], first[:, 0]], 1)], 2)
    direction = _directions(codes.orientations[:, 0], _rings(logs, fineness))
    angle = (codes.orientations[:, 1] + 0.5) * np.pi / _twists(logs, fineness)
    one, two = _frame(direction)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    second, third = cos * one + sin * two, cos * two - sin * one
    # A disc's distinct axis is its shortest, the first; a needle's its longest, the last.
    disc = _is_disc(logs)[:, None, None]
    return np.where(disc, np.stack([direction, second, third], 2), np.stack([second, third, direction], 2))


def orientation_sizes(codes: Codes) -> IntArray:
    """Return the number of values of each of `Codes.orientations`, ``(N, 1 or 2)``; needs radii and amplitudes."""
    fineness = _fineness(codes.amplitudes)
    logs = codes.radii / fineness[:, None]
    if codes.radii.shape[1] == 2:
        return _angles(_mixing(logs[:, 0], logs[:, 1]), fineness)[:, None]
    rings, place = np.unique(_rings(logs, fineness), return_inverse=True)
    directions = np.array([_sphere(int(number))[0][-1] for number in rings], np.int64)
    return np.stack([directions[place], _twists(logs, fineness)], 1)


def fraction_levels(codes: Codes, cell: int) -> IntArray:
    """Return the number of parts of a cell along each axis, ``(N, D)``; needs all but cells and fractions."""
    return _levels(_cholesky(codes), codes.amplitudes, cell)


# Orientation ----------------------------------------------------------------------------------------------------------

MOST_RINGS = 768


def _mixing(low: Float64Array, high: Float64Array) -> Float64Array:
    """Return ``r - 1 / r``: the change of shape by a small rotation of two axes of log radii low <= high."""
    return 2 * np.sinh(high - low)


def _angles(mixing: Float64Array, fineness: Float64Array) -> IntArray:
    """Return the number of angles of a half turn."""
    levels = np.ceil(np.pi * mixing * fineness / math.sqrt(2) - 1)
    return np.clip(levels, 1, MOST_LEVELS).astype(np.int64)


def _is_disc(logs: Float64Array) -> NDArray[np.bool_]:
    """Return True where the shortest axis differs more from the others than the longest."""
    return logs[:, 1] - logs[:, 0] >= logs[:, 2] - logs[:, 1]


def _rings(logs: Float64Array, fineness: Float64Array) -> IntArray:
    """Return the number of rings of the hemisphere of directions; 0 for a single direction."""
    return np.clip(_angles(_mixing(logs[:, 0], logs[:, 2]), fineness) // 2, 0, MOST_RINGS)


def _twists(logs: Float64Array, fineness: Float64Array) -> IntArray:
    """Return the number of angles of the half turn about the distinct axis."""
    disc = _is_disc(logs)
    low, high = np.where(disc, logs[:, 1], logs[:, 0]), np.where(disc, logs[:, 2], logs[:, 1])
    return _angles(_mixing(low, high), fineness)


@lru_cache(MOST_RINGS + 1)
def _sphere(rings: int) -> tuple[IntArray, IntArray]:
    """Return the end of each ring in the list of all directions, and its number of directions; rings about axis 0."""
    if rings == 0:
        return np.ones(1, np.int64), np.ones(1, np.int64)
    polar = (np.arange(rings) + 0.5) * np.pi / 2 / rings
    counts = np.maximum(np.rint(4 * rings * np.sin(polar)), 1).astype(np.int64)
    return np.cumsum(counts), counts


def _directions(index: IntArray, rings: IntArray) -> Float64Array:
    """Return unit vectors ``(N, 3)`` of the hemisphere of positive first component."""
    out = np.zeros((len(index), 3))
    for number in np.unique(rings):
        mine = rings == number
        if number == 0:
            out[mine, 0] = 1
            continue
        ends, counts = _sphere(int(number))
        ring = np.searchsorted(ends, index[mine], side="right")
        if len(ring) and ring.max() >= number:
            raise InputError("an orientation is out of range")
        polar = (ring + 0.5) * np.pi / 2 / number
        turn = (index[mine] - (ends - counts)[ring] + 0.5) * 2 * np.pi / counts[ring]
        out[mine] = np.stack([np.cos(polar), np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn)], 1)
    return out


def _direction_code(direction: Float64Array, rings: IntArray) -> IntArray:
    """Return the index of the nearest direction in the ring of the nearest polar angle."""
    d = np.where(direction[:, :1] < 0, -direction, direction)
    polar = np.arccos(np.clip(d[:, 0], 0, 1))
    turn = np.arctan2(d[:, 2], d[:, 1]) % (2 * np.pi)
    out = np.zeros(len(d), np.int64)
    for number in np.unique(rings[rings > 0]):
        mine = rings == number
        ends, counts = _sphere(int(number))
        ring = np.minimum((polar[mine] / (np.pi / 2) * number).astype(np.int64), number - 1)
        place = (turn[mine] / (2 * np.pi) * counts[ring]).astype(np.int64) % counts[ring]
        out[mine] = (ends - counts)[ring] + place
    return out


def _frame(direction: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return two unit vectors normal to each direction and to each other (Duff et al. 2017)."""
    x, y, z = direction.T  # x >= 0
    a = -1 / (1 + x)
    b = y * z * a
    return np.stack([-y, 1 + y * y * a, b], 1), np.stack([-z, b, 1 + z * z * a], 1)


def _orientation_codes(axes: Float64Array, logs: Float64Array, fineness: Float64Array) -> IntArray:
    disc = _is_disc(logs)
    rings = _rings(logs, fineness)
    index = _direction_code(np.where(disc[:, None], axes[:, :, 0], axes[:, :, 2]), rings)
    one, two = _frame(_directions(index, rings))
    second = np.where(disc[:, None], axes[:, :, 1], axes[:, :, 0])
    across = np.stack([(second * one).sum(1), (second * two).sum(1)], 1)
    return np.stack([index, _angle_code(across, _twists(logs, fineness))], 1)


def _angle_code(vector: Float64Array, levels: IntArray) -> IntArray:
    """Return the nearest of `levels` angles of a half turn to the line along a 2D vector."""
    angle = np.arctan2(vector[:, 1], vector[:, 0]) % np.pi
    return (angle / np.pi * levels).astype(np.int64) % levels


# Position -------------------------------------------------------------------------------------------------------------


def _cholesky(codes: Codes) -> Float64Array:
    """Return the lower triangular factor of each covariance, ``(N, D, D)``."""
    logs = codes.radii / _fineness(codes.amplitudes)[:, None]
    half = rotations(codes) * np.exp(logs)[:, None, :]
    # S = half half^T = (Q R)^T (Q R) with Q R = half^T: R^T is the factor, and S itself need not be formed.
    R: Float64Array = np.asarray(np.linalg.qr(half.transpose(0, 2, 1), mode="r"))
    return np.asarray(R.transpose(0, 2, 1) * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None, :])


def _levels(L: Float64Array, amplitudes: IntArray, cell: int) -> IntArray:
    steps = np.diagonal(L, axis1=1, axis2=2) / _fineness(amplitudes)[:, None]
    return np.clip(np.rint(cell / steps), 1, MOST_LEVELS).astype(np.int64)


def _with_positions(codes: Codes, means: Float64Array, cell: int) -> Codes:
    """Return the codes with the positions nearest to `means` in each Gaussian's own metric, axis after axis."""
    L = _cholesky(codes)
    levels = _levels(L, codes.amplitudes, cell)
    wanted = (means + 0.5) / cell
    position = np.zeros_like(levels)
    for axis in range(means.shape[1]):
        position[:, axis] = np.floor(wanted[:, axis] * levels[:, axis]).astype(np.int64)
        error = (position[:, axis] + 0.5) / levels[:, axis] - wanted[:, axis]
        # An error along this axis moves the best place along the later ones with it.
        later = L[:, axis + 1 :, axis] / L[:, axis, axis][:, None]
        wanted[:, axis + 1 :] += error[:, None] * later
    cells = position // levels
    return Codes(cells, codes.amplitudes, codes.radii, codes.orientations, position - cells * levels)
