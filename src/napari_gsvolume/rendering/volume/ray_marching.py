"""Ray marching through voxels: the numba kernels of `dvr` (all cores).

Positions are voxel coordinates (z, y, x) with the first voxel's centre at 0; distances along rays are in mm.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numba import njit, prange

BLOCK_SIZE = 8
"""Side, in voxels, of the blocks that are skipped where no voxel is visible."""
TABLE_SIZE = 1024
"""Number of entries of the lookup table."""
AMBIENT, DIFFUSE, SPECULAR, SHININESS = 0.3, 0.7, 0.2, 20.0
"""Coefficients and exponent of Phong shading with a light at the camera."""
MIN_TRANSMITTANCE = 1e-3
"""Transmittance below which a ray ends (early ray termination)."""
# Reassociation lets the compiler vectorise sums; infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, parallel=True)
def block_ranges(volume):  # type: ignore[no-untyped-def]
    """Return the minimum and the maximum of the interpolant in each block of cells."""
    nz, ny, nx = volume.shape
    bz, by, bx = (
        (nz + BLOCK_SIZE - 1) // BLOCK_SIZE,
        (ny + BLOCK_SIZE - 1) // BLOCK_SIZE,
        (nx + BLOCK_SIZE - 1) // BLOCK_SIZE,
    )
    least, most = np.empty((bz, by, bx), np.float32), np.empty((bz, by, bx), np.float32)
    for i in prange(bz):
        for j in range(by):
            for k in range(bx):
                low = high = volume[i * BLOCK_SIZE, j * BLOCK_SIZE, k * BLOCK_SIZE]
                for z in range(i * BLOCK_SIZE, min((i + 1) * BLOCK_SIZE + 1, nz)):
                    for y in range(j * BLOCK_SIZE, min((j + 1) * BLOCK_SIZE + 1, ny)):
                        for x in range(k * BLOCK_SIZE, min((k + 1) * BLOCK_SIZE + 1, nx)):
                            low, high = min(low, volume[z, y, x]), max(high, volume[z, y, x])
                least[i, j, k], most[i, j, k] = low, high
    return least, most


@njit(cache=True, nogil=True, inline="always")
def _clamped(x, n):  # type: ignore[no-untyped-def]
    return min(max(x, 0.0), n - 1.0)


@njit(cache=True, nogil=True, inline="always")
def _sample(volume, z, y, x):  # type: ignore[no-untyped-def]
    """Return the trilinear interpolant, constant beyond the outermost voxel centres."""
    nz, ny, nx = volume.shape
    z, y, x = _clamped(z, nz), _clamped(y, ny), _clamped(x, nx)
    z0, y0, x0 = int(z), int(y), int(x)
    z1, y1, x1 = min(z0 + 1, nz - 1), min(y0 + 1, ny - 1), min(x0 + 1, nx - 1)
    fz, fy, fx = z - z0, y - y0, x - x0
    a = volume[z0, y0, x0] + fx * (volume[z0, y0, x1] - volume[z0, y0, x0])
    b = volume[z0, y1, x0] + fx * (volume[z0, y1, x1] - volume[z0, y1, x0])
    c = volume[z1, y0, x0] + fx * (volume[z1, y0, x1] - volume[z1, y0, x0])
    d = volume[z1, y1, x0] + fx * (volume[z1, y1, x1] - volume[z1, y1, x0])
    a += fy * (b - a)
    return a + fz * (c + fy * (d - c) - a)


@njit(cache=True, nogil=True, inline="always")
def _is_visible(mask, z, y, x):  # type: ignore[no-untyped-def]
    nz, ny, nx = mask.shape
    return mask[int(_clamped(z, nz) + 0.5), int(_clamped(y, ny) + 0.5), int(_clamped(x, nx) + 0.5)]


@njit(cache=True, nogil=True, error_model="numpy")
def _ray(matrix, i, j, orthographic, shape, size, step):  # type: ignore[no-untyped-def]
    """Return the entry point of a pixel's ray and its step, in voxels, the number of steps, and their length in mm."""
    start, direction = np.empty(3), np.empty(3)
    length = 0.0
    for d in range(3):
        start[d] = matrix[d, 0] * i + matrix[d, 1] * j + matrix[d, 2]
        direction[d] = matrix[d, 3] * i + matrix[d, 4] * j + matrix[d, 5]
        length += (direction[d] * size[d]) ** 2
    length = np.sqrt(length)
    enter, leave = (-1e30 if orthographic else 0.0), 1e30  # mm; rays of a perspective camera start at the camera
    for d in range(3):
        direction[d] /= length
        if abs(direction[d]) > 1e-12:
            first, last = (-0.5 - start[d]) / direction[d], (shape[d] - 0.5 - start[d]) / direction[d]
            enter, leave = max(enter, min(first, last)), min(leave, max(first, last))
        elif not -0.5 <= start[d] <= shape[d] - 0.5:
            leave = enter
    n = int(ceil((leave - enter) / step - 1e-9)) if leave > enter else 0  # noqa: RUF046
    distance = (leave - enter) / max(n, 1)
    for d in range(3):
        start[d] += enter * direction[d]
        direction[d] *= distance
    return start, direction, n, distance


@njit(cache=True, nogil=True, inline="always")
def _block(start, direction, s, shape):  # type: ignore[no-untyped-def]
    """Return the block that a ray is in after s steps, and the number of steps after which it leaves the block."""
    block = (0, 0, 0)
    leave = 1e9
    for d in range(3):
        b = int(_clamped(start[d] + s * direction[d], shape[d])) // BLOCK_SIZE
        block = (block[1], block[2], b)
        end = b * BLOCK_SIZE if direction[d] < 0 else (b + 1) * BLOCK_SIZE
        # The margin beyond the outermost centres belongs to the outermost blocks.
        if abs(direction[d]) > 1e-12 and 0 < end < shape[d]:
            leave = min(leave, (end - start[d]) / direction[d])
    return block, leave


@njit(cache=True, nogil=True, inline="always")
def _phong(volume, z, y, x, direction, size, distance, min_gradient):  # type: ignore[no-untyped-def]
    """Return the factor on a sample's colour (ambient and diffuse) and the specular highlight to add."""
    gz = (_sample(volume, z + 1, y, x) - _sample(volume, z - 1, y, x)) / (2 * size[0])
    gy = (_sample(volume, z, y + 1, x) - _sample(volume, z, y - 1, x)) / (2 * size[1])
    gx = (_sample(volume, z, y, x + 1) - _sample(volume, z, y, x - 1)) / (2 * size[2])
    magnitude = np.sqrt(gz * gz + gy * gy + gx * gx)
    if magnitude < 1e-30:
        return 1.0, 0.0
    slope = (gz * direction[0] * size[0] + gy * direction[1] * size[1] + gx * direction[2] * size[2]) / distance
    cosine = min(abs(slope) / magnitude, 1.0)
    reflected = 2 * cosine * cosine - 1  # between the reflected light and the camera
    part = min(1.0, magnitude / min_gradient)
    factor = 1 + part * (AMBIENT + DIFFUSE * cosine - 1)
    return factor, part * SPECULAR * reflected**SHININESS if reflected > 0 else 0.0


@njit(cache=True, nogil=True, inline="always")
def _entry(table, position, column):  # type: ignore[no-untyped-def]
    """Return a column of the table by linear interpolation, constant beyond the first and the last entry."""
    position = _clamped(position, TABLE_SIZE)
    e = min(int(position), TABLE_SIZE - 2)
    return table[e, column] + (position - e) * (table[e + 1, column] - table[e, column])


@njit(cache=True, nogil=True, inline="always")
def _integral(table, position, column):  # type: ignore[no-untyped-def]
    """Return the integral of a column of the table up to a position, from the column four further on."""
    within = _clamped(position, TABLE_SIZE)
    return _entry(table, within, column + 4) + (position - within) * table[int(within), column]


@njit(cache=True, nogil=True, inline="always")
def _mean(table, front, back, column):  # type: ignore[no-untyped-def]
    if abs(back - front) < 1:
        return _entry(table, (front + back) / 2, column)
    return (_integral(table, back, column) - _integral(table, front, column)) / (back - front)


@njit(cache=True, nogil=True, inline="always")
def _table_position(volume, start, direction, s, low, scale):  # type: ignore[no-untyped-def]
    """Return the table position of the intensity after s steps."""
    return (
        _sample(volume, start[0] + s * direction[0], start[1] + s * direction[1], start[2] + s * direction[2]) - low
    ) * scale


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _composite_ray(volume, mask, empty, start, direction, n, distance, size, table, low, scale, min_gradient, shaded):  # type: ignore[no-untyped-def]
    """Return red, green, blue and the final transmittance of one ray."""
    red = green = blue = 0.0
    transmittance, s, end, back_known = 1.0, 0, 0, False
    back = 0.0
    while s < n and transmittance > MIN_TRANSMITTANCE:
        if s >= end:
            block, leave = _block(start, direction, s, volume.shape)
            end = max(s + 1, int(ceil(leave)))  # noqa: RUF046, numba's ceil is a float
            if empty[block] and end > s + 1:
                s, back_known = end - 1, False  # the last step may reach into a block that is not empty
                continue
        front = back if back_known else _table_position(volume, start, direction, s, low, scale)
        back, back_known = _table_position(volume, start, direction, s + 1, low, scale), True
        extinction = _mean(table, front, back, 3)
        s += 1
        if extinction <= 0:
            continue
        z, y, x = (
            start[0] + (s - 0.5) * direction[0],
            start[1] + (s - 0.5) * direction[1],
            start[2] + (s - 0.5) * direction[2],
        )
        if mask.size and not _is_visible(mask, z, y, x):
            continue
        factor, highlight = 1.0, 0.0
        if shaded:
            factor, highlight = _phong(volume, z, y, x, direction, size, distance, min_gradient)
        transmitted = np.exp(-extinction * distance)
        weight = transmittance * (1 - transmitted)
        transmittance *= transmitted
        factor /= extinction
        red += weight * min(factor * _mean(table, front, back, 0) + highlight, 1.0)
        green += weight * min(factor * _mean(table, front, back, 1) + highlight, 1.0)
        blue += weight * min(factor * _mean(table, front, back, 2) + highlight, 1.0)
    return red, green, blue, transmittance


@njit(cache=True, nogil=True, parallel=True)
def composite_image(  # type: ignore[no-untyped-def]
    volume, mask, empty, image, rays, orthographic, size, step, table, low, scale, min_gradient, shaded, background
):
    """Fill an image (H, W, 3) by emission and absorption, composited front to back over the background."""
    for j in prange(image.shape[0]):
        for i in range(image.shape[1]):
            start, direction, n, distance = _ray(rays, i + 0.5, j + 0.5, orthographic, volume.shape, size, step)
            red, green, blue, transmittance = _composite_ray(
                volume, mask, empty, start, direction, n, distance, size, table, low, scale, min_gradient, shaded
            )
            image[j, i, 0] = red + transmittance * background[0]
            image[j, i, 1] = green + transmittance * background[1]
            image[j, i, 2] = blue + transmittance * background[2]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _project_ray(volume, mask, highest, start, direction, n, distance, mode, missed):  # type: ignore[no-untyped-def]
    total, most, least, count = 0.0, -np.inf, np.inf, 0
    s = end = 0
    while s < n:
        if mode == 0 and s >= end:
            block, leave = _block(start, direction, s + 0.5, volume.shape)
            end = max(s + 1, int(ceil(leave - 0.5)))  # noqa: RUF046
            if highest[block] <= most:
                s = end
                continue
        z, y, x = (
            start[0] + (s + 0.5) * direction[0],
            start[1] + (s + 0.5) * direction[1],
            start[2] + (s + 0.5) * direction[2],
        )
        s += 1
        if mask.size and not _is_visible(mask, z, y, x):
            continue
        value = _sample(volume, z, y, x)
        count += 1
        total += value
        most, least = max(most, value), min(least, value)
    if mode == 3:
        return total * distance
    if not count:
        return missed
    return most if mode == 0 else least if mode == 1 else total / count


@njit(cache=True, nogil=True, parallel=True)
def project_image(volume, mask, highest, image, rays, orthographic, size, step, mode, missed):  # type: ignore[no-untyped-def]
    """Fill an image (H, W, 1) with the maximum (mode 0), minimum (1) or mean (2) of the samples, or the integral (3).

    Rays that miss the volume or its mask get the intensity `missed`, or the integral 0.
    """
    for j in prange(image.shape[0]):
        for i in range(image.shape[1]):
            start, direction, n, distance = _ray(rays, i + 0.5, j + 0.5, orthographic, volume.shape, size, step)
            image[j, i, 0] = _project_ray(volume, mask, highest, start, direction, n, distance, mode, missed)
