"""Differentiable tile rasterizer for the CPU: alpha compositing of projected Gaussians (numba, all cores).

    c = sum_i c_i a_i T_i + background T,    T_i = prod_{j < i} (1 - a_j),    a_i = min(MAX_ALPHA, o_i exp(-q_i / 2))

The image is divided into square tiles, each with a list of the Gaussians that overlap it, sorted front to back. The
exponent of a Gaussian is factored as ``A (x + s y)^2 + D y^2``, in float64 once per row: for elongated Gaussians,
A x^2 + 2 B x y + C y^2 would be a small difference of large numbers. Tile rows have `LANES` pixels, a fixed trip count
that the compiler turns into straight vector code. The backward pass also traverses the lists front to back, in the
same arithmetic, so that it meets the same Gaussians with the same transmittance; the contribution of everything behind
a Gaussian is the remainder of the pixel's total. Each list entry has its own sums, which are added in order afterwards:
no atomics, and the result is deterministic.
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
from .projection import MIN_ALPHA, ProjectedGaussians

MAX_ALPHA = 0.999
"""Maximum alpha of a Gaussian, so that the Gaussians behind it keep a gradient."""
MIN_TRANSMITTANCE = 1e-4
"""Transmittance at which a pixel ends; the Gaussian that would reach it is not drawn."""
LANES = 16  # width and height of a tile, pixels
_RED, _GREEN, _BLUE, _REST = (np.uint64(k * LANES * LANES) for k in (1, 2, 3, 4))  # offsets in a tile's state
_LANES_U = np.uint64(LANES)
f4 = np.float32
_LOG_MIN_ALPHA = log(MIN_ALPHA)


def rasterize(
    projected: ProjectedGaussians,
    colors: Tensor,
    opacities: Tensor,
    size: tuple[int, int],
    background: tuple[float, float, float] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Return the image ``(H, W, 3)`` and the accumulated alpha ``1 - T``, ``(H, W)``; both float32.

    Differentiable with respect to means, conics, colours and opacities; the lists of Gaussians and their order are
    treated as constant.

    Parameters
    ----------
    projected : ProjectedGaussians
        N Gaussians on the CPU, best in float64; Gaussians of equal depth are composited in their order.
    colors : Tensor, (N, 3)
    opacities : Tensor, (N,)
        Opacities, 0 to 1; the same as for the projection.
    size : (int, int)
        Image height and width (H, W) in pixels.
    background : (float, float, float)
    """
    image, alpha = _Rasterize.apply(  # type: ignore[no-untyped-call]
        projected.means, projected.conics, colors, opacities, projected.depths, projected.radii, size, background
    )
    return image, alpha


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        depths: Tensor,
        radii: Tensor,
        size: tuple[int, int],
        background: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        order = _sort_by_depth(depths.numpy(), radii.numpy())
        records = _records(means, conics, opacities, order)
        colors_sorted = np.ascontiguousarray(colors.numpy()[order], np.float32)
        image, alpha = np.empty((*size, 3), np.float32), np.empty(size, np.float32)
        lists = _tile_lists(records, *size)
        tiles_by_thread = _deal_tiles(lists[0])
        with launch_lock:
            _forward(records, colors_sorted, *lists, tiles_by_thread, np.array(background, np.float32), image, alpha)
        ctx.rest = order, records, colors_sorted, lists, tiles_by_thread
        image_tensor, alpha_tensor = torch.from_numpy(image), torch.from_numpy(alpha)
        ctx.save_for_backward(conics, opacities, image_tensor, alpha_tensor)
        return image_tensor, alpha_tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        conics, opacities, image, alpha = ctx.saved_tensors
        order, records, colors_sorted, lists, tiles_by_thread = ctx.rest
        grad_image, grad_alpha = gradients
        # First-order contribution of all Gaussians of a pixel to the loss, through its colour and its alpha.
        total = (grad_image * image).sum(2) - grad_alpha * (1 - alpha)
        pixel_gradients = torch.cat([grad_image, total[:, :, None]], 2).float().contiguous()  # (H, W, 4)
        entries = np.zeros((len(lists[1]), 9), np.float32)
        with launch_lock:
            _backward(records, colors_sorted, *lists, tiles_by_thread, pixel_gradients.numpy(), entries)
        sums = np.zeros((len(conics), 9))
        _sum_entries(lists[1], order, entries, sums)
        # The exponent is -(A u^2 + D y^2) / 2 with u = x + s y: exact for needles, where conics are badly conditioned.
        p, pu, py, puu, puy, pyy = torch.from_numpy(sums[:, :6]).unbind(1)  # (N,) each, float64
        A, s, D = _factor_conics(conics)
        grad_s = -A * puy
        grad_D = -pyy / 2
        grad_means = torch.stack([A * pu, A * s * pu + D * py], 1)
        grad_conics = torch.stack([grad_D * s * s - grad_s * s / A - puu / 2, grad_s / A - 2 * grad_D * s, grad_D], 1)
        grad_opacities = p / opacities.clamp_min(MIN_ALPHA)
        found = grad_means, grad_conics, torch.from_numpy(sums[:, 6:]), grad_opacities
        return *found, None, None, None, None


def _sort_by_depth(depths: NDArray[Any], radii: NDArray[Any]) -> NDArray[np.int64]:
    """Return the indices of the visible Gaussians, sorted by depth."""
    visible = np.flatnonzero(radii[:, 0] > 0)
    return visible[np.argsort(depths[visible], kind="stable")]


def _factor_conics(conics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, s and D, ``(N,)`` each, float64, with ``A (x + s y)^2 + D y^2`` for the conics."""
    A, B, C = conics.double().unbind(1)
    s = B / A
    return A, s, (C - s * B).maximum(1e-15 * C)  # rounding must not make it negative


def _records(means: Tensor, conics: Tensor, opacities: Tensor, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sorted records ``(n, 6)``: the mean (u, v), A, s, D, and the logarithm of the opacity."""
    columns = *means.double().unbind(1), *_factor_conics(conics), opacities.double().log()
    return torch.stack(columns, 1).numpy()[order]


def _deal_tiles(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tiles of each thread, ``(threads, tiles)``, longest lists first; -1 fills the rest."""
    threads = numba.get_num_threads()
    dealt = np.full(-(-(len(starts) - 1) // threads) * threads, -1)
    dealt[: len(starts) - 1] = np.argsort(-np.diff(starts), kind="stable")
    return np.ascontiguousarray(dealt.reshape(-1, threads).T)


@njit(cache=True, nogil=True, error_model="numpy")
def _row_range(record, top, n_rows):  # type: ignore[no-untyped-def]
    """Return the range of rows, of a tile or of the image, that a Gaussian overlaps: first, and last + 1."""
    extent = sqrt(2 * (record[5] - _LOG_MIN_ALPHA) / record[4])
    middle = record[1] - 0.5 - top
    return int(ceil(max(middle - extent, 0.0))), int(floor(min(middle + extent, n_rows - 1.0))) + 1  # noqa: RUF046


@njit(cache=True, nogil=True, error_model="numpy")
def _tile_range(record, y0, y1, width):  # type: ignore[no-untyped-def]
    """Return the first and the last tile that a Gaussian overlaps between the rows y0 and y1; 0, -1 for none."""
    u, v, A, s, D, faint = record
    k2 = 2 * (faint - _LOG_MIN_ALPHA)  # squared radius in standard deviations
    top, bottom = max(y0 - v, -sqrt(k2 / D)), min(y1 - v, sqrt(k2 / D))
    if not bottom >= top:
        return 0, -1
    # The ellipse extends furthest to the right and to the left where its tangent is vertical.
    C = D + A * s * s
    vertical = -A * s / C * sqrt(k2 * C / (A * D))
    y_right, y_left = min(max(vertical, top), bottom), min(max(-vertical, top), bottom)
    right = u - s * y_right + sqrt(max(k2 - D * y_right * y_right, 0.0) / A)
    left = u - s * y_left - sqrt(max(k2 - D * y_left * y_left, 0.0) / A)
    first, last = int(ceil(max(left - 0.5, 0.0))), int(floor(min(right - 0.5, width - 1.0)))  # noqa: RUF046, numba's ceil and floor are floats
    return (first // LANES, last // LANES) if last >= first else (0, -1)


@njit(cache=True, nogil=True, error_model="numpy")
def _append_members(records, height, width, ends, members):  # type: ignore[no-untyped-def]
    """Advance the ends of the tiles' lists by the Gaussians that overlap them; write these if `members` has room."""
    columns = (width + LANES - 1) // LANES
    for i in range(len(records)):
        first, end = _row_range(records[i], 0, height)
        if end > first and records[i, 2] > 0:
            for row in range(first // LANES, (end - 1) // LANES + 1):
                y0 = row * LANES + 0.5
                left, right = _tile_range(records[i], y0, min(y0 + LANES - 1, height - 0.5), width)
                for tile in range(row * columns + left, row * columns + right + 1):
                    if len(members):
                        members[ends[tile]] = i
                    ends[tile] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _tile_lists(records, height, width):  # type: ignore[no-untyped-def]
    """Return the start of each tile's list, ``(tiles + 1,)``, and all lists, concatenated row by row."""
    tiles = ((height + LANES - 1) // LANES) * ((width + LANES - 1) // LANES)
    starts = np.zeros(tiles + 1, np.int64)
    _append_members(records, height, width, starts[1:], np.empty(0, np.int64))
    starts = np.cumsum(starts)
    members = np.empty(starts[-1], np.int64)
    if len(members):
        _append_members(records, height, width, starts[:-1].copy(), members)
    return starts, members


_MIDDLE = -_LOG_MIN_ALPHA / 32
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

    b is 1 if the Gaussian overlaps none of them.
    """
    dy = y - record[1]
    u = x0 - record[0] + record[3] * dy
    b = record[5] - record[4] * dy * dy / 2
    nearest = max(u, -(u + (LANES - 1)), 0.0)
    if b - record[2] * nearest * nearest / 2 < _LOG_MIN_ALPHA:
        return f4(0), f4(0), f4(1), f4(0)
    return f4(record[2] / -32), f4(u), f4(b / 16), f4(dy)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _forward_row(state, start, a, u0, b, red, green, blue):  # type: ignore[no-untyped-def]
    """Composite a Gaussian behind `LANES` pixels and return the number of pixels that are still open.

    `state` holds the transmittance (negative once a pixel has ended), then red, green and blue.
    """
    n = np.int32(0)
    for j in range(_LANES_U):
        k = start + j
        u = u0 + f4(np.int32(j))
        t = a * u * u + b
        reached = t >= f4(_LOG_MIN_ALPHA / 16)
        e = exp16(t if reached else f4(_LOG_MIN_ALPHA / 16))
        e = e if e < f4(MAX_ALPHA) else f4(MAX_ALPHA)
        alpha = e if reached else f4(0)
        transmittance = state[k]
        remaining = transmittance * (f4(1) - alpha)
        open_ = remaining > f4(MIN_TRANSMITTANCE)
        weight = alpha * transmittance if open_ else f4(0)
        state[k] = remaining if open_ else -abs(transmittance)
        state[k + _RED] += weight * red
        state[k + _GREEN] += weight * green
        state[k + _BLUE] += weight * blue
        n += np.int32(1) if open_ else np.int32(0)
    return n


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _backward_row(state, start, a, u0, b, red, green, blue):  # type: ignore[no-untyped-def]
    """Return the gradient sums of one Gaussian over `LANES` pixels, and the number of pixels that are still open.

    `state` holds the transmittance, the gradients of the loss by red, green and blue, and the contribution of the
    remaining Gaussians and of the background to the loss. With p the gradient by ln(alpha) and w the weight of the
    colour, the sums are those of p, p u, p u^2, and of w times the gradients by the colour.
    """
    n = np.int32(0)
    p0, p1, p2, r, g, b_ = f4(0), f4(0), f4(0), f4(0), f4(0), f4(0)
    for j in range(_LANES_U):
        k = start + j
        u = u0 + f4(np.int32(j))
        t = a * u * u + b
        reached = t >= f4(_LOG_MIN_ALPHA / 16)
        e = exp16(t if reached else f4(_LOG_MIN_ALPHA / 16))
        free = e < f4(MAX_ALPHA)
        e = e if free else f4(MAX_ALPHA)
        alpha = e if reached else f4(0)
        transmittance = state[k]
        transmitted = f4(1) - alpha
        remaining = transmittance * transmitted
        open_ = remaining > f4(MIN_TRANSMITTANCE)
        weight = alpha * transmittance if open_ else f4(0)
        state[k] = remaining if open_ else -abs(transmittance)
        n += np.int32(1) if open_ else np.int32(0)
        grad_red, grad_green, grad_blue = state[k + _RED], state[k + _GREEN], state[k + _BLUE]
        own = weight * (red * grad_red + green * grad_green + blue * grad_blue)
        behind = state[k + _REST] - own
        state[k + _REST] = behind
        p = own - behind * alpha / transmitted
        p = p if open_ and free else f4(0)
        p0 += p
        p1 += p * u
        p2 += p * u * u
        r += weight * grad_red
        g += weight * grad_green
        b_ += weight * grad_blue
    return p0, p1, p2, r, g, b_, n


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always")
def _tile_bounds(tile, height, width):  # type: ignore[no-untyped-def]
    """Return the first row and column of a tile, and the numbers of its rows and columns inside the image."""
    columns = (width + LANES - 1) // LANES
    top, left = tile // columns * LANES, tile % columns * LANES
    return top, left, min(LANES, height - top), min(LANES, width - left)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _forward(records, colors_sorted, starts, members, tiles_by_thread, background, image, alpha):  # type: ignore[no-untyped-def]
    height, width = alpha.shape
    for thread in prange(len(tiles_by_thread)):
        state = np.empty(4 * LANES * LANES, np.float32)
        n_open = np.empty(LANES, np.int64)  # open pixels of each row
        for tile in tiles_by_thread[thread]:
            if tile < 0:
                break
            top, left, n_rows, n_columns = _tile_bounds(tile, height, width)
            state[:] = 0
            for y in range(n_rows):
                state[y * LANES : y * LANES + n_columns] = 1
            n_open[:] = n_columns
            in_all = n_columns * n_rows
            for entry in range(starts[tile], starts[tile + 1]):
                i = members[entry]
                record, color = records[i], colors_sorted[i]
                first, last = _row_range(record, top, n_rows)
                for y in range(first, last):
                    if n_open[y]:
                        a, u, b, _ = _exponent(record, y + top + 0.5, left + 0.5)
                        if b <= 0:
                            n = _forward_row(state, np.uint64(y * LANES), a, u, b, color[0], color[1], color[2])
                            in_all += n - n_open[y]
                            n_open[y] = n
                if not in_all:
                    break
            for y in range(n_rows):
                for x in range(n_columns):
                    k = y * LANES + x
                    transmittance = abs(state[k])
                    alpha[top + y, left + x] = 1 - transmittance
                    for c in range(3):
                        image[top + y, left + x, c] = state[k + (c + 1) * LANES * LANES] + transmittance * background[c]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST_MATH, parallel=True)
def _backward(records, colors_sorted, starts, members, tiles_by_thread, pixel_gradients, entries):  # type: ignore[no-untyped-def]
    """Write for each list entry the sums of p, p u, p y, p u^2, p u y, p y^2, and the colour gradients."""
    height, width = pixel_gradients.shape[:2]
    for thread in prange(len(tiles_by_thread)):
        state = np.empty(5 * LANES * LANES, np.float32)
        n_open = np.empty(LANES, np.int64)
        for tile in tiles_by_thread[thread]:
            if tile < 0:
                break
            top, left, n_rows, n_columns = _tile_bounds(tile, height, width)
            state[:] = 0
            for y in range(n_rows):
                for x in range(n_columns):
                    k = y * LANES + x
                    state[k] = 1
                    for c in range(4):
                        state[k + (c + 1) * LANES * LANES] = pixel_gradients[top + y, left + x, c]
            n_open[:] = n_columns
            in_all = n_columns * n_rows
            for entry in range(starts[tile], starts[tile + 1]):
                i = members[entry]
                record, color, sums = records[i], colors_sorted[i], entries[entry]
                first, last = _row_range(record, top, n_rows)
                for y in range(first, last):
                    if n_open[y]:
                        a, u, b, dy = _exponent(record, y + top + 0.5, left + 0.5)
                        if b <= 0:
                            p0, p1, p2, r, g, b_, n = _backward_row(
                                state, np.uint64(y * LANES), a, u, b, color[0], color[1], color[2]
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
def _sum_entries(members, order, entries, sums):  # type: ignore[no-untyped-def]
    for entry in range(len(members)):
        for k in range(entries.shape[1]):
            sums[order[members[entry]], k] += entries[entry, k]
