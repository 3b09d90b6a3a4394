"""Gaussians in an image laid over one another by depth, on the CPU: numba, all cores, a row of a tile at a time.

    c = sum_i c_i a_i T_i + background T,    T_i = prod_{j < i} (1 - a_j),    a_i = min(MAX_ALPHA, o_i exp(-q_i / 2))

The image is cut into square tiles. Each has a list of the Gaussians that reach it, from front to back. A Gaussian's
exponent is taken apart into ``A (x + s y)^2 + D y^2``, in float64 once a row: for needles, A x^2 + 2 B x y + C y^2
would be a small difference of large numbers. The rows of a tile are `LANES` pixels, a fixed trip count that the
compiler turns into straight vector code. The backward pass walks the lists from front to back too, in the same
arithmetic, so that it meets the same Gaussians in the same light; what lies behind one is what is left of the whole
pixel. Each entry of a list has its own sums, added up in order afterwards: no atomics, the same result every time.
"""

from __future__ import annotations

from math import ceil, exp, floor, log, sqrt
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.numba_support import FAST_MATH, launch_lock
from .projection import MIN_ALPHA, Projected

MAX_ALPHA = 0.999
"""No Gaussian covers more than this, so that what is behind it keeps a gradient."""
MIN_LEFT = 1e-4
"""A pixel ends with the Gaussian that would leave no more light than this, which is left out itself."""
LANES = 16  # also the rows of a tile
_RED, _GREEN, _BLUE, _REST = (np.uint64(k * LANES * LANES) for k in (1, 2, 3, 4))  # the planes of a tile's state
_LANES_U = np.uint64(LANES)
f4 = np.float32
_CUT = log(MIN_ALPHA)


def rasterise(
    projected: Projected,
    colours: Tensor,
    opacities: Tensor,
    size: tuple[int, int],
    background: tuple[float, float, float] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Return an image ``(H, W, 3)`` and how far each pixel is covered, ``1 - T``, ``(H, W)``; both float32.

    Differentiable with respect to means, conics, colours and opacities. Which Gaussians reach a pixel, and their
    order, count as given.

    Parameters
    ----------
    projected : Projected
        N Gaussians on the CPU, best in float64. Those of equal depth lie in the order in which they come.
    colours : Tensor, (N, 3)
    opacities : Tensor, (N,)
        In [0, 1], those that `projected` was made with.
    size : (int, int)
        Pixels (H, W).
    background : (float, float, float)
    """
    image, alpha = _Rasterise.apply(  # type: ignore[no-untyped-call]
        projected.means, projected.conics, colours, opacities, projected.depths, projected.reach, size, background
    )
    return image, alpha


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        conics: Tensor,
        colours: Tensor,
        opacities: Tensor,
        depths: Tensor,
        reach: Tensor,
        size: tuple[int, int],
        background: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        order = _front_to_back(depths.numpy(), reach.numpy())
        records = _records(means, conics, opacities, order)
        paints = np.ascontiguousarray(colours.numpy()[order], np.float32)
        image, alpha = np.empty((*size, 3), np.float32), np.empty(size, np.float32)
        lists = _lists(records, *size)
        turns = _turns(lists[0])
        with launch_lock:
            _compose(records, paints, *lists, turns, np.array(background, np.float32), image, alpha)
        ctx.rest = order, records, paints, lists, turns
        shown, cover = torch.from_numpy(image), torch.from_numpy(alpha)
        ctx.save_for_backward(conics, opacities, shown, cover)
        return shown, cover

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        conics, opacities, shown, cover = ctx.saved_tensors
        order, records, paints, lists, turns = ctx.rest
        by_image, by_alpha = gradients
        # What all the Gaussians of a pixel add to the loss, to first order: its colour and its cover.
        whole = (by_image * shown).sum(2) - by_alpha * (1 - cover)
        light = torch.cat([by_image, whole[:, :, None]], 2).float().contiguous()  # (H, W, 4)
        entries = np.zeros((len(lists[1]), 9), np.float32)
        with launch_lock:
            _trace(records, paints, *lists, turns, light.numpy(), entries)
        sums = np.zeros((len(conics), 9))
        _add_up(lists[1], order, entries, sums)
        # The exponent is -(A u^2 + D y^2) / 2 with u = x + s y: exact for needles, where conics are badly conditioned.
        p, pu, py, puu, puy, pyy = torch.from_numpy(sums[:, :6]).unbind(1)  # (N,) each, float64
        A, s, D = _squares(conics)
        by_s = -A * puy
        by_D = -pyy / 2
        by_means = torch.stack([A * pu, A * s * pu + D * py], 1)
        by_conics = torch.stack([by_D * s * s - by_s * s / A - puu / 2, by_s / A - 2 * by_D * s, by_D], 1)
        by_opacities = p / opacities.clamp_min(MIN_ALPHA)
        found = by_means, by_conics, torch.from_numpy(sums[:, 6:]), by_opacities
        return *found, None, None, None, None


def _front_to_back(depths: NDArray[Any], reach: NDArray[Any]) -> NDArray[np.int64]:
    """Return which Gaussians are seen, by depth."""
    seen = np.flatnonzero(reach[:, 0] > 0)
    return seen[np.argsort(depths[seen], kind="stable")]


def _squares(conics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, s and D, ``(N,)`` each, float64, with ``A (x + s y)^2 + D y^2`` for the conics."""
    A, B, C = conics.double().unbind(1)
    s = B / A
    return A, s, (C - s * B).maximum(1e-15 * C)  # not negative, by rounding


def _records(means: Tensor, conics: Tensor, opacities: Tensor, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (n, 6), in their order: the mean (u, v), A, s, D, and the logarithm of opacity."""
    columns = *means.double().unbind(1), *_squares(conics), opacities.double().log()
    return torch.stack(columns, 1).numpy()[order]


def _turns(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tiles dealt to the threads, ``(threads, tiles of each)``, the longest lists first; -1 is none."""
    threads = numba.get_num_threads()
    dealt = np.full(-(-(len(starts) - 1) // threads) * threads, -1)
    dealt[: len(starts) - 1] = np.argsort(-np.diff(starts), kind="stable")
    return np.ascontiguousarray(dealt.reshape(-1, threads).T)


@njit(cache=True, nogil=True, error_model="numpy")
def _rows(record, top, n_rows):  # type: ignore[no-untyped-def]
    """Return the first row of a tile, or of the image, that a Gaussian reaches, and one past the last."""
    reach = sqrt(2 * (record[5] - _CUT) / record[4])
    middle = record[1] - 0.5 - top
    return int(ceil(max(middle - reach, 0.0))), int(floor(min(middle + reach, n_rows - 1.0))) + 1  # noqa: RUF046


@njit(cache=True, nogil=True, error_model="numpy")
def _tiles(record, y0, y1, width):  # type: ignore[no-untyped-def]
    """Return the first and last tile that a Gaussian reaches between the pixel centres y0 and y1; 0, -1 for none."""
    u, v, A, s, D, faint = record
    k2 = 2 * (faint - _CUT)  # its squared radius
    top, bottom = max(y0 - v, -sqrt(k2 / D)), min(y1 - v, sqrt(k2 / D))
    if not bottom >= top:
        return 0, -1
    # The ellipse is widest to the right where its tangent is upright, to the left opposite to that.
    C = D + A * s * s
    upright = -A * s / C * sqrt(k2 * C / (A * D))
    y_right, y_left = min(max(upright, top), bottom), min(max(-upright, top), bottom)
    right = u - s * y_right + sqrt(max(k2 - D * y_right * y_right, 0.0) / A)
    left = u - s * y_left - sqrt(max(k2 - D * y_left * y_left, 0.0) / A)
    first, last = int(ceil(max(left - 0.5, 0.0))), int(floor(min(right - 0.5, width - 1.0)))  # noqa: RUF046, numba's ceil and floor are floats
    return (first // LANES, last // LANES) if last >= first else (0, -1)


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(records, height, width, ends, members):  # type: ignore[no-untyped-def]
    """Advance the end of the list of every tile by the Gaussians that reach it, and write these unless it is empty."""
    columns = (width + LANES - 1) // LANES
    for i in range(len(records)):
        first, end = _rows(records[i], 0, height)
        if end > first and records[i, 2] > 0:
            for row in range(first // LANES, (end - 1) // LANES + 1):
                y0 = row * LANES + 0.5
                left, right = _tiles(records[i], y0, min(y0 + LANES - 1, height - 0.5), width)
                for tile in range(row * columns + left, row * columns + right + 1):
                    if len(members):
                        members[ends[tile]] = i
                    ends[tile] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _lists(records, height, width):  # type: ignore[no-untyped-def]
    """Return where the list of each tile starts, ``(tiles + 1,)``, and all lists, row by row of tiles."""
    tiles = ((height + LANES - 1) // LANES) * ((width + LANES - 1) // LANES)
    starts = np.zeros(tiles + 1, np.int64)
    _walk(records, height, width, starts[1:], np.empty(0, np.int64))
    starts = np.cumsum(starts)
    members = np.empty(starts[-1], np.int64)
    if len(members):
        _walk(records, height, width, starts[:-1].copy(), members)
    return starts, members


_MIDDLE = -_CUT / 32
_Q0 = exp(-_MIDDLE)
_Q2, _Q3, _Q4, _Q5 = _Q0 / 2, _Q0 / 6, _Q0 / 24, _Q0 / 120


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def exp16(t):  # type: ignore[no-untyped-def]
    """Return exp(16 t) for 16 t in [ln MIN_ALPHA, 0], relative error 2e-6: a quintic, squared four times."""
    s = t + f4(_MIDDLE)
    p = f4(_Q5)
    p = f4(_Q4) + s * p
    p = f4(_Q3) + s * p
    p = f4(_Q2) + s * p
    p = f4(_Q0) + s * p
    p = f4(_Q0) + s * p
    p = p * p
    p = p * p
    p = p * p
    return p * p


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _exponent(record, y, x0):  # type: ignore[no-untyped-def]
    """Return a, u, b, y - v with ln(alpha) = 16 (a (u + j)^2 + b) at the pixels j of the row at y from x0 on.

    b is 1 where the Gaussian misses all of them.
    """
    dy = y - record[1]
    u = x0 - record[0] + record[3] * dy
    b = record[5] - record[4] * dy * dy / 2
    nearest = max(u, -(u + (LANES - 1)), 0.0)
    if b - record[2] * nearest * nearest / 2 < _CUT:
        return f4(0), f4(0), f4(1), f4(0)
    return f4(record[2] / -32), f4(u), f4(b / 16), f4(dy)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _compose_row(state, start, a, u0, b, red, green, blue):  # type: ignore[no-untyped-def]
    """Lay a Gaussian under `LANES` pixels and return how many of these are still open.

    `state` holds the light that is left (negative once a pixel has ended), then red, green and blue.
    """
    n = np.int32(0)
    for j in range(_LANES_U):
        k = start + j
        u = u0 + f4(np.int32(j))
        t = a * u * u + b
        reached = t >= f4(_CUT / 16)
        e = exp16(t if reached else f4(_CUT / 16))
        e = e if e < f4(MAX_ALPHA) else f4(MAX_ALPHA)
        alpha = e if reached else f4(0)
        light = state[k]
        left = light * (f4(1) - alpha)
        open_ = left > f4(MIN_LEFT)
        weight = alpha * light if open_ else f4(0)
        state[k] = left if open_ else -abs(light)
        state[k + _RED] += weight * red
        state[k + _GREEN] += weight * green
        state[k + _BLUE] += weight * blue
        n += np.int32(1) if open_ else np.int32(0)
    return n


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _trace_row(state, start, a, u0, b, red, green, blue):  # type: ignore[no-untyped-def]
    """Return the sums of one Gaussian over `LANES` pixels, and how many of these are still open.

    `state` holds the light that is left, then the gradient by red, green and blue, then what the Gaussians not yet
    passed and the background add to the loss. With p the gradient by ln(alpha) and w the weight of the colour, the
    sums are those of p, p u, p u^2, and of w times the gradients by the colour.
    """
    n = np.int32(0)
    p0, p1, p2, r, g, b_ = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
    for j in range(_LANES_U):
        k = start + j
        u = u0 + f4(np.int32(j))
        t = a * u * u + b
        reached = t >= f4(_CUT / 16)
        e = exp16(t if reached else f4(_CUT / 16))
        free = e < f4(MAX_ALPHA)
        e = e if free else f4(MAX_ALPHA)
        alpha = e if reached else f4(0)
        light = state[k]
        through = f4(1) - alpha
        left = light * through
        open_ = left > f4(MIN_LEFT)
        weight = alpha * light if open_ else f4(0)
        state[k] = left if open_ else -abs(light)
        n += np.int32(1) if open_ else np.int32(0)
        by_red, by_green, by_blue = state[k + _RED], state[k + _GREEN], state[k + _BLUE]
        own = weight * (red * by_red + green * by_green + blue * by_blue)
        behind = state[k + _REST] - own
        state[k + _REST] = behind
        p = own - behind * alpha / through
        p = p if open_ and free else f4(0)
        p0 += p
        p1 += p * u
        p2 += p * u * u
        r += weight * by_red
        g += weight * by_green
        b_ += weight * by_blue
    return p0, p1, p2, r, g, b_, n


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _place(tile, height, width):  # type: ignore[no-untyped-def]
    """Return the first row and column of a tile, and how many of both are inside the image."""
    columns = (width + LANES - 1) // LANES
    top, left = tile // columns * LANES, tile % columns * LANES
    return top, left, min(LANES, height - top), min(LANES, width - left)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _compose(records, paints, starts, members, turns, background, image, alpha):  # type: ignore[no-untyped-def]
    height, width = alpha.shape
    for thread in prange(len(turns)):
        state = np.empty(4 * LANES * LANES, np.float32)
        n_open = np.empty(LANES, np.int64)  # pixels of each row
        for tile in turns[thread]:
            if tile < 0:
                break
            top, left, n_rows, n_columns = _place(tile, height, width)
            state[:] = 0
            for y in range(n_rows):
                state[y * LANES : y * LANES + n_columns] = 1
            n_open[:] = n_columns
            in_all = n_columns * n_rows
            for entry in range(starts[tile], starts[tile + 1]):
                i = members[entry]
                record, paint = records[i], paints[i]
                first, last = _rows(record, top, n_rows)
                for y in range(first, last):
                    if n_open[y]:
                        a, u, b, _ = _exponent(record, y + top + 0.5, left + 0.5)
                        if b <= 0:
                            n = _compose_row(state, np.uint64(y * LANES), a, u, b, paint[0], paint[1], paint[2])
                            in_all += n - n_open[y]
                            n_open[y] = n
                if not in_all:
                    break
            for y in range(n_rows):
                for x in range(n_columns):
                    k = y * LANES + x
                    light = abs(state[k])
                    alpha[top + y, left + x] = 1 - light
                    for c in range(3):
                        image[top + y, left + x, c] = state[k + (c + 1) * LANES * LANES] + light * background[c]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _trace(records, paints, starts, members, turns, light, entries):  # type: ignore[no-untyped-def]
    """Write for every entry of the lists the sums of p, p u, p y, p u^2, p u y, p y^2, and of the colours."""
    height, width = light.shape[:2]
    for thread in prange(len(turns)):
        state = np.empty(5 * LANES * LANES, np.float32)
        n_open = np.empty(LANES, np.int64)
        for tile in turns[thread]:
            if tile < 0:
                break
            top, left, n_rows, n_columns = _place(tile, height, width)
            state[:] = 0
            for y in range(n_rows):
                for x in range(n_columns):
                    k = y * LANES + x
                    state[k] = 1
                    for c in range(4):
                        state[k + (c + 1) * LANES * LANES] = light[top + y, left + x, c]
            n_open[:] = n_columns
            in_all = n_columns * n_rows
            for entry in range(starts[tile], starts[tile + 1]):
                i = members[entry]
                record, paint, sums = records[i], paints[i], entries[entry]
                first, last = _rows(record, top, n_rows)
                for y in range(first, last):
                    if n_open[y]:
                        a, u, b, dy = _exponent(record, y + top + 0.5, left + 0.5)
                        if b <= 0:
                            p0, p1, p2, r, g, b_, n = _trace_row(
                                state, np.uint64(y * LANES), a, u, b, paint[0], paint[1], paint[2]
                            )
                            in_all += n - n_open[y]
                            n_open[y] = n
                            sums[0] += p0
                            sums[1] += p1
                            sums[2] += p0 * dy
                            sums[3] += p2
                            sums[4] += p1 * dy
                            sums[5] += p0 * dy * dy
                            sums[6] += r
                            sums[7] += g
                            sums[8] += b_
                if not in_all:
                    break


@njit(cache=True, nogil=True, error_model="numpy")
def _add_up(members, order, entries, sums):  # type: ignore[no-untyped-def]
    for entry in range(len(members)):
        for k in range(entries.shape[1]):
            sums[order[members[entry]], k] += entries[entry, k]
