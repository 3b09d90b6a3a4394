"""Rays through voxels, for `dvr`: the kernels (numba, all cores).

Positions are in voxels (z, y, x), the first one's centre at 0; distances along rays in mm.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numba import njit, prange

BLOCK = 8
"""Voxels along a side of the blocks that are left out where nothing in them can be seen."""
ENTRIES = 1024
"""Of the lookup table."""
AMBIENT, DIFFUSE, SPECULAR, SHININESS = 0.3, 0.7, 0.2, 20.0
"""Phong's shading by a light at the camera."""
OPAQUE = 1e-3
"""Transmittance at which a ray ends."""
# Reassociation lets sums vectorise; infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, parallel=True)
def ranges(volume):  # type: ignore[no-untyped-def]
    """Return the smallest and the largest voxel that the interpolant takes up in each block of cells."""
    nz, ny, nx = volume.shape
    bz, by, bx = (nz + BLOCK - 1) // BLOCK, (ny + BLOCK - 1) // BLOCK, (nx + BLOCK - 1) // BLOCK
    least, most = np.empty((bz, by, bx), np.float32), np.empty((bz, by, bx), np.float32)
    for i in prange(bz):
        for j in range(by):
            for k in range(bx):
                low = high = volume[i * BLOCK, j * BLOCK, k * BLOCK]
                for z in range(i * BLOCK, min((i + 1) * BLOCK + 1, nz)):
                    for y in range(j * BLOCK, min((j + 1) * BLOCK + 1, ny)):
                        for x in range(k * BLOCK, min((k + 1) * BLOCK + 1, nx)):
                            low, high = min(low, volume[z, y, x]), max(high, volume[z, y, x])
                least[i, j, k], most[i, j, k] = low, high
    return least, most


@njit(cache=True, nogil=True, inline="always")
def _clamped(x, n):  # type: ignore[no-untyped-def]
    return min(max(x, 0.0), n - 1.0)


@njit(cache=True, nogil=True, inline="always")
def _sample(volume, z, y, x):  # type: ignore[no-untyped-def]
    """Return the trilinear interpolant, beyond the outermost centres that of the nearest point between them."""
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
def _within(mask, z, y, x):  # type: ignore[no-untyped-def]
    nz, ny, nx = mask.shape
    return mask[int(_clamped(z, nz) + 0.5), int(_clamped(y, ny) + 0.5), int(_clamped(x, nx) + 0.5)]


@njit(cache=True, nogil=True, error_model="numpy")
def _ray(matrix, i, j, orthographic, shape, size, step):  # type: ignore[no-untyped-def]
    """Return where a pixel's ray enters the volume, its steps, in voxels, their number, and their length in mm."""
    start, way = np.empty(3), np.empty(3)
    length = 0.0
    for d in range(3):
        start[d] = matrix[d, 0] * i + matrix[d, 1] * j + matrix[d, 2]
        way[d] = matrix[d, 3] * i + matrix[d, 4] * j + matrix[d, 5]
        length += (way[d] * size[d]) ** 2
    length = np.sqrt(length)
    enter, leave = (-1e30 if orthographic else 0.0), 1e30  # mm; rays of a perspective camera begin there
    for d in range(3):
        way[d] /= length
        if abs(way[d]) > 1e-12:
            first, last = (-0.5 - start[d]) / way[d], (shape[d] - 0.5 - start[d]) / way[d]
            enter, leave = max(enter, min(first, last)), min(leave, max(first, last))
        elif not -0.5 <= start[d] <= shape[d] - 0.5:
            leave = enter
    n = int(ceil((leave - enter) / step - 1e-9)) if leave > enter else 0  # noqa: RUF046
    distance = (leave - enter) / max(n, 1)
    for d in range(3):
        start[d] += enter * way[d]
        way[d] *= distance
    return start, way, n, distance


@njit(cache=True, nogil=True, inline="always")
def _block(start, way, s, shape):  # type: ignore[no-untyped-def]
    """Return the block that a ray is in after s steps, and after how many it leaves it."""
    block = (0, 0, 0)
    leave = 1e9
    for d in range(3):
        b = int(_clamped(start[d] + s * way[d], shape[d])) // BLOCK
        block = (block[1], block[2], b)
        end = b * BLOCK if way[d] < 0 else (b + 1) * BLOCK
        # What is outside of the outermost centres belongs to the outermost blocks.
        if abs(way[d]) > 1e-12 and 0 < end < shape[d]:
            leave = min(leave, (end - start[d]) / way[d])
    return block, leave


@njit(cache=True, nogil=True, inline="always")
def _phong(volume, z, y, x, way, size, distance, tiny):  # type: ignore[no-untyped-def]
    """Return by how much the light at the camera brightens a sample's colour, and the highlight added to it."""
    gz = (_sample(volume, z + 1, y, x) - _sample(volume, z - 1, y, x)) / (2 * size[0])
    gy = (_sample(volume, z, y + 1, x) - _sample(volume, z, y - 1, x)) / (2 * size[1])
    gx = (_sample(volume, z, y, x + 1) - _sample(volume, z, y, x - 1)) / (2 * size[2])
    steep = np.sqrt(gz * gz + gy * gy + gx * gx)
    if steep < 1e-30:
        return 1.0, 0.0
    along = (gz * way[0] * size[0] + gy * way[1] * size[1] + gx * way[2] * size[2]) / distance
    cosine = min(abs(along) / steep, 1.0)
    mirrored = 2 * cosine * cosine - 1  # between the reflected light and the camera
    part = min(1.0, steep / tiny)
    factor = 1 + part * (AMBIENT + DIFFUSE * cosine - 1)
    return factor, part * SPECULAR * mirrored**SHININESS if mirrored > 0 else 0.0


@njit(cache=True, nogil=True, inline="always")
def _entry(table, place, column):  # type: ignore[no-untyped-def]
    """Return a column of the table at a place between its entries, beyond them the first or last one."""
    place = _clamped(place, ENTRIES)
    e = min(int(place), ENTRIES - 2)
    return table[e, column] + (place - e) * (table[e + 1, column] - table[e, column])


@njit(cache=True, nogil=True, inline="always")
def _integral(table, place, column):  # type: ignore[no-untyped-def]
    """Return the integral of a column of the table up to a place, four columns further on."""
    within = _clamped(place, ENTRIES)
    return _entry(table, within, column + 4) + (place - within) * table[int(within), column]


@njit(cache=True, nogil=True, inline="always")
def _mean(table, front, back, column):  # type: ignore[no-untyped-def]
    if abs(back - front) < 1:
        return _entry(table, (front + back) / 2, column)
    return (_integral(table, back, column) - _integral(table, front, column)) / (back - front)


@njit(cache=True, nogil=True, inline="always")
def _place(volume, start, way, s, low, scale):  # type: ignore[no-untyped-def]
    """Return where in the table the intensity after s steps is."""
    return (_sample(volume, start[0] + s * way[0], start[1] + s * way[1], start[2] + s * way[2]) - low) * scale


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _compose_ray(volume, mask, empty, start, way, n, distance, size, table, low, scale, tiny, lit):  # type: ignore[no-untyped-def]
    """Return red, green, blue and the transmittance of one ray."""
    red = green = blue = 0.0
    left, s, end, known = 1.0, 0, 0, False
    back = 0.0
    while s < n and left > OPAQUE:
        if s >= end:
            block, leave = _block(start, way, s, volume.shape)
            end = max(s + 1, int(ceil(leave)))  # noqa: RUF046, numba's ceil is a float
            if empty[block] and end > s + 1:
                s, known = end - 1, False  # the last step may reach where there is something
                continue
        front = back if known else _place(volume, start, way, s, low, scale)
        back, known = _place(volume, start, way, s + 1, low, scale), True
        extinction = _mean(table, front, back, 3)
        s += 1
        if extinction <= 0:
            continue
        z, y, x = start[0] + (s - 0.5) * way[0], start[1] + (s - 0.5) * way[1], start[2] + (s - 0.5) * way[2]
        if mask.size and not _within(mask, z, y, x):
            continue
        factor, highlight = 1.0, 0.0
        if lit:
            factor, highlight = _phong(volume, z, y, x, way, size, distance, tiny)
        through = np.exp(-extinction * distance)
        weight = left * (1 - through)
        left *= through
        factor /= extinction
        red += weight * min(factor * _mean(table, front, back, 0) + highlight, 1.0)
        green += weight * min(factor * _mean(table, front, back, 1) + highlight, 1.0)
        blue += weight * min(factor * _mean(table, front, back, 2) + highlight, 1.0)
    return red, green, blue, left


@njit(cache=True, nogil=True, parallel=True)
def compose(volume, mask, empty, image, rays, orthographic, size, step, table, low, scale, tiny, lit, background):  # type: ignore[no-untyped-def]
    """Fill an image (H, W, 3) with the light of emission and absorption, front to back, over the background."""
    for j in prange(image.shape[0]):
        for i in range(image.shape[1]):
            start, way, n, distance = _ray(rays, i + 0.5, j + 0.5, orthographic, volume.shape, size, step)
            red, green, blue, left = _compose_ray(
                volume, mask, empty, start, way, n, distance, size, table, low, scale, tiny, lit
            )
            image[j, i, 0] = red + left * background[0]
            image[j, i, 1] = green + left * background[1]
            image[j, i, 2] = blue + left * background[2]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _project_ray(volume, mask, highest, start, way, n, distance, mode, nothing):  # type: ignore[no-untyped-def]
    total, most, least, count = 0.0, -np.inf, np.inf, 0
    s = end = 0
    while s < n:
        if mode == 0 and s >= end:
            block, leave = _block(start, way, s + 0.5, volume.shape)
            end = max(s + 1, int(ceil(leave - 0.5)))  # noqa: RUF046
            if highest[block] <= most:
                s = end
                continue
        z, y, x = start[0] + (s + 0.5) * way[0], start[1] + (s + 0.5) * way[1], start[2] + (s + 0.5) * way[2]
        s += 1
        if mask.size and not _within(mask, z, y, x):
            continue
        value = _sample(volume, z, y, x)
        count += 1
        total += value
        most, least = max(most, value), min(least, value)
    if mode == 3:
        return total * distance
    if not count:
        return nothing
    return most if mode == 0 else least if mode == 1 else total / count


@njit(cache=True, nogil=True, parallel=True)
def project(volume, mask, highest, image, rays, orthographic, size, step, mode, nothing):  # type: ignore[no-untyped-def]
    """Fill an image (H, W, 1) with the largest (mode 0), smallest (1) or mean (2) sample, or the line integral (3).

    Where a ray meets nothing there is the intensity `nothing`, or the integral 0.
    """
    for j in prange(image.shape[0]):
        for i in range(image.shape[1]):
            start, way, n, distance = _ray(rays, i + 0.5, j + 0.5, orthographic, volume.shape, size, step)
            image[j, i, 0] = _project_ray(volume, mask, highest, start, way, n, distance, mode, nothing)
