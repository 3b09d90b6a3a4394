"""Rays through voxels, for `dvr`, where there is a GPU: the samples of `march`, all pixels at once, by torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ...types import Float64Array
from .ray_marching import AMBIENT, DIFFUSE, ENTRIES, OPAQUE, SHININESS, SPECULAR


class Rays:
    """The rays of all pixels of one view through a volume on a device.

    Parameters
    ----------
    volume, mask : Tensor, (Z, Y, X)
        Intensities, float32; where there is something, bool, or empty.
    matrix : ndarray, (3, 6)
        As `dvr` makes it of a camera.
    pixels : (int, int)
        (H, W).
    orthographic : bool
    size : ndarray, (3,)
        Of a voxel, mm.
    step : float
        mm, at most.
    """

    def __init__(
        self,
        volume: Tensor,
        mask: Tensor,
        matrix: Float64Array,
        pixels: tuple[int, int],
        orthographic: bool,
        size: Float64Array,
        step: float,
    ) -> None:
        self.volume, self.mask, self.pixels = volume, mask, pixels
        shape = np.array(volume.shape)
        j, i = np.meshgrid(*(np.arange(n) + 0.5 for n in pixels), indexing="ij")
        pixel = np.stack([i, j, np.ones_like(i)], -1).reshape(-1, 3)
        start, way = pixel @ matrix[:, :3].T, pixel @ matrix[:, 3:].T  # (P, 3), voxels
        way /= np.linalg.norm(way * size, axis=1, keepdims=True)
        flat = np.abs(way) < 1e-12  # along an axis: in the box all the way, or beside it
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.sort([(-0.5 - start) / way, (shape - 0.5 - start) / way], 0)
        ends[:, flat] = [[-1e30], [1e30]]
        enter, leave = ends[0].max(1), ends[1].min(1)
        missed = (flat & ((start < -0.5) | (start > shape - 0.5))).any(1)
        if not orthographic:
            enter = np.maximum(enter, 0)
        n = np.where((leave > enter) & ~missed, np.ceil((leave - enter) / step - 1e-9), 0)
        distance = np.where(n > 0, (leave - enter) / np.maximum(n, 1), 0)
        enter = np.where(n > 0, enter, 0)

        def tensor(array: Float64Array) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=volume.device)

        self.start, self.way = tensor(start + enter[:, None] * way), tensor(way * distance[:, None])  # (P, 3)
        self.n, self.distance, self.size = tensor(n), tensor(distance), tensor(size)
        self.steps = int(n.max())

    def at(self, s: float) -> Tensor:
        """Return where the rays are after s steps, voxels (z, y, x), ``(P, 3)``."""
        return self.start + s * self.way

    def sample(self, places: Tensor) -> Tensor:
        """Return the interpolant at places (z, y, x), ``(P,)``; beyond the outermost centres that of the border."""
        span = torch.tensor([max(n - 1, 1) for n in self.volume.shape], device=places.device)
        points = (2 * places / span - 1).flip(-1)[None, None, None]
        volume = self.volume[None, None]
        return grid_sample(volume, points, padding_mode="border", align_corners=True)[0, 0, 0, 0]

    def there(self, s: int) -> Tensor:
        """Return which rays have a step s in the volume, and in the mask at its middle, ``(P,)``, bool."""
        inside = s < self.n
        if not self.mask.numel():
            return inside
        last = torch.tensor(self.mask.shape, device=self.n.device) - 1
        z, y, x = (self.at(s + 0.5).clamp_min(0).minimum(last) + 0.5).long().unbind(1)
        return inside & self.mask[z, y, x]


def project(rays: Rays, mode: int, nothing: float) -> Tensor:
    """Return what `march.project` fills an image with, ``(H, W, 1)``."""
    total, count = torch.zeros_like(rays.distance), torch.zeros_like(rays.distance)
    most, least = torch.full_like(total, -torch.inf), torch.full_like(total, torch.inf)
    for s in range(rays.steps):
        there, value = rays.there(s), rays.sample(rays.at(s + 0.5))
        count += there
        total += torch.where(there, value, 0)
        most = torch.where(there, torch.maximum(most, value), most)
        least = torch.where(there, torch.minimum(least, value), least)
    if mode == 3:
        image = total * rays.distance
    else:
        image = most if mode == 0 else least if mode == 1 else total / count.clamp_min(1)
        image = torch.where(count > 0, image, nothing)
    return image.reshape(*rays.pixels, 1)


def compose(
    rays: Rays, lookup: Float64Array, low: float, scale: float, tiny: float, lit: bool, behind: Float64Array
) -> Tensor:
    """Return what `march.compose` fills an image with, ``(H, W, 3)``; `lookup` is `dvr`'s table, (ENTRIES, 8)."""
    table, background = (torch.as_tensor(a, dtype=torch.float32, device=rays.n.device) for a in (lookup, behind))
    light = torch.zeros(len(rays.n), 3, device=table.device)
    left = torch.ones_like(rays.n)
    back = (rays.sample(rays.at(0)) - low) * scale
    for s in range(rays.steps):
        front, back = back, (rays.sample(rays.at(s + 1)) - low) * scale
        means = _means(table, front, back)  # (P, 4)
        extinction = means[:, 3]
        seen = rays.there(s) & (left > OPAQUE) & (extinction > 0)
        through = torch.where(seen, torch.exp(-extinction * rays.distance), 1)
        colours = means[:, :3] / extinction.clamp_min(1e-30)[:, None]
        if lit:
            factor, highlight = _phong(rays, rays.at(s + 0.5), tiny)
            colours = colours * factor[:, None] + highlight[:, None]
        light += (left * (1 - through))[:, None] * colours.clamp_max(1)
        left = left * through
    return (light + left[:, None] * background).reshape(*rays.pixels, 3)


def _means(table: Tensor, front: Tensor, back: Tensor) -> Tensor:
    """Return the means of the table's first four columns between two places, ``(P, 4)``."""
    apart = (back - front)[:, None]
    near = apart.abs() < 1
    exact = (_integrals(table, back) - _integrals(table, front)) / torch.where(near, 1, apart)
    return torch.where(near, _entries(table, (front + back) / 2)[:, :4], exact)


def _entries(table: Tensor, places: Tensor) -> Tensor:
    places = places.clamp(0, ENTRIES - 1)
    e = places.long().clamp_max(ENTRIES - 2)
    return table[e] + (places - e)[:, None] * (table[e + 1] - table[e])


def _integrals(table: Tensor, places: Tensor) -> Tensor:
    within = places.clamp(0, ENTRIES - 1)
    return _entries(table, within)[:, 4:] + (places - within)[:, None] * table[within.long(), :4]


def _phong(rays: Rays, places: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    """Return the factors and highlights of Phong's shading by a light at the camera, ``(P,)`` each."""
    axes = torch.eye(3, device=places.device)
    slopes = [(rays.sample(places + axis) - rays.sample(places - axis)) / 2 for axis in axes]
    gradient = torch.stack(slopes, 1) / rays.size  # (P, 3)
    steep = gradient.norm(dim=1)
    along = (gradient * rays.way * rays.size).sum(1) / rays.distance.clamp_min(1e-30)
    cosine = (along.abs() / steep.clamp_min(1e-30)).clamp_max(1)
    mirrored = (2 * cosine**2 - 1).clamp_min(0)
    part = torch.where(steep < 1e-30, 0, (steep / tiny).clamp_max(1))
    return 1 + part * (AMBIENT + DIFFUSE * cosine - 1), part * SPECULAR * mirrored**SHININESS
