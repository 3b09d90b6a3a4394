"""Ray marching with torch, for GPUs: the samples of `ray_marching`, all pixels at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ...types import Float64Array
from .ray_marching import AMBIENT, DIFFUSE, MIN_TRANSMITTANCE, SHININESS, SPECULAR, TABLE_SIZE


class Rays:
    """Rays of all pixels of one view, through a volume on a device.

    Parameters
    ----------
    volume, mask : Tensor, (Z, Y, X)
        Intensities, float32; visible voxels, bool (empty: all are visible).
    matrix : ndarray, (3, 6)
        Map from pixels to rays, from `dvr`.
    image_size : (int, int)
        Image height and width (H, W) in pixels.
    orthographic : bool
        Parallel rays.
    size : ndarray, (3,)
        Voxel size along z, y, x, mm.
    step : float
        Maximum step length, mm.
    """

    def __init__(
        self,
        volume: Tensor,
        mask: Tensor,
        matrix: Float64Array,
        image_size: tuple[int, int],
        orthographic: bool,
        size: Float64Array,
        step: float,
    ) -> None:
        self.volume, self.mask, self.image_size = volume, mask, image_size
        shape = np.array(volume.shape)
        j, i = np.meshgrid(*(np.arange(n) + 0.5 for n in image_size), indexing="ij")
        pixel = np.stack([i, j, np.ones_like(i)], -1).reshape(-1, 3)
        start, direction = pixel @ matrix[:, :3].T, pixel @ matrix[:, 3:].T  # (P, 3), voxels
        direction /= np.linalg.norm(direction * size, axis=1, keepdims=True)
        parallel = np.abs(direction) < 1e-12  # to the box sides of an axis: inside or outside along the whole ray
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.sort([(-0.5 - start) / direction, (shape - 0.5 - start) / direction], 0)
        ends[:, parallel] = [[-1e30], [1e30]]
        enter, leave = ends[0].max(1), ends[1].min(1)
        missed = (parallel & ((start < -0.5) | (start > shape - 0.5))).any(1)
        if not orthographic:
            enter = np.maximum(enter, 0)
        n = np.where((leave > enter) & ~missed, np.ceil((leave - enter) / step - 1e-9), 0)
        distance = np.where(n > 0, (leave - enter) / np.maximum(n, 1), 0)
        enter = np.where(n > 0, enter, 0)

        def tensor(array: Float64Array) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=volume.device)

        self.start, self.direction = (
            tensor(start + enter[:, None] * direction),
            tensor(direction * distance[:, None]),
        )  # (P, 3)
        self.n, self.distance, self.size = tensor(n), tensor(distance), tensor(size)
        self.steps = int(n.max())

    def positions_at(self, s: float) -> Tensor:
        """Return the ray positions after s steps, voxels (z, y, x), ``(P, 3)``."""
        return self.start + s * self.direction

    def sample(self, positions: Tensor) -> Tensor:
        """Return the interpolant at positions (z, y, x), ``(P,)``, constant beyond the outermost voxel centres."""
        span = torch.tensor([max(n - 1, 1) for n in self.volume.shape], device=positions.device)
        points = (2 * positions / span - 1).flip(-1)[None, None, None]
        volume = self.volume[None, None]
        return grid_sample(volume, points, padding_mode="border", align_corners=True)[0, 0, 0, 0]

    def is_inside(self, s: int) -> Tensor:
        """Return True for rays with a step s inside the volume and a midpoint inside the mask, ``(P,)``, bool."""
        inside = s < self.n
        if not self.mask.numel():
            return inside
        last = torch.tensor(self.mask.shape, device=self.n.device) - 1
        z, y, x = (self.positions_at(s + 0.5).clamp_min(0).minimum(last) + 0.5).long().unbind(1)
        return inside & self.mask[z, y, x]


def project_image(rays: Rays, mode: int, missed: float) -> Tensor:
    """Return the image ``(H, W, 1)`` of `ray_marching.project_image`."""
    total, count = torch.zeros_like(rays.distance), torch.zeros_like(rays.distance)
    most, least = torch.full_like(total, -torch.inf), torch.full_like(total, torch.inf)
    for s in range(rays.steps):
        inside, value = rays.is_inside(s), rays.sample(rays.positions_at(s + 0.5))
        count += inside
        total += torch.where(inside, value, 0)
        most = torch.where(inside, torch.maximum(most, value), most)
        least = torch.where(inside, torch.minimum(least, value), least)
    if mode == 3:
        image = total * rays.distance
    else:
        image = most if mode == 0 else least if mode == 1 else total / count.clamp_min(1)
        image = torch.where(count > 0, image, missed)
    return image.reshape(*rays.image_size, 1)


def composite_image(
    rays: Rays,
    lookup: Float64Array,
    low: float,
    scale: float,
    min_gradient: float,
    shaded: bool,
    background: Float64Array,
) -> Tensor:
    """Return the image ``(H, W, 3)`` of `ray_marching.composite_image`; `lookup` is a table ``(TABLE_SIZE, 8)``."""
    table, color = (torch.as_tensor(a, dtype=torch.float32, device=rays.n.device) for a in (lookup, background))
    light = torch.zeros(len(rays.n), 3, device=table.device)
    transmittance = torch.ones_like(rays.n)
    back = (rays.sample(rays.positions_at(0)) - low) * scale
    for s in range(rays.steps):
        front, back = back, (rays.sample(rays.positions_at(s + 1)) - low) * scale
        means = _means(table, front, back)  # (P, 4)
        extinction = means[:, 3]
        visible = rays.is_inside(s) & (transmittance > MIN_TRANSMITTANCE) & (extinction > 0)
        transmitted = torch.where(visible, torch.exp(-extinction * rays.distance), 1)
        colors = means[:, :3] / extinction.clamp_min(1e-30)[:, None]
        if shaded:
            factor, highlight = _phong(rays, rays.positions_at(s + 0.5), min_gradient)
            colors = colors * factor[:, None] + highlight[:, None]
        light += (transmittance * (1 - transmitted))[:, None] * colors.clamp_max(1)
        transmittance = transmittance * transmitted
    return (light + transmittance[:, None] * color).reshape(*rays.image_size, 3)


def _means(table: Tensor, front: Tensor, back: Tensor) -> Tensor:
    """Return the means of the table's first four columns between two positions, ``(P, 4)``."""
    apart = (back - front)[:, None]
    near = apart.abs() < 1
    exact = (_integrals(table, back) - _integrals(table, front)) / torch.where(near, 1, apart)
    return torch.where(near, _entries(table, (front + back) / 2)[:, :4], exact)


def _entries(table: Tensor, positions: Tensor) -> Tensor:
    positions = positions.clamp(0, TABLE_SIZE - 1)
    e = positions.long().clamp_max(TABLE_SIZE - 2)
    return table[e] + (positions - e)[:, None] * (table[e + 1] - table[e])


def _integrals(table: Tensor, positions: Tensor) -> Tensor:
    within = positions.clamp(0, TABLE_SIZE - 1)
    return _entries(table, within)[:, 4:] + (positions - within)[:, None] * table[within.long(), :4]


def _phong(rays: Rays, positions: Tensor, min_gradient: float) -> tuple[Tensor, Tensor]:
    """Return the factors and specular highlights of Phong shading with a light at the camera, ``(P,)`` each."""
    axes = torch.eye(3, device=positions.device)
    slopes = [(rays.sample(positions + axis) - rays.sample(positions - axis)) / 2 for axis in axes]
    gradient = torch.stack(slopes, 1) / rays.size  # (P, 3)
    magnitude = gradient.norm(dim=1)
    along = (gradient * rays.direction * rays.size).sum(1) / rays.distance.clamp_min(1e-30)
    cosine = (along.abs() / magnitude.clamp_min(1e-30)).clamp_max(1)
    reflected = (2 * cosine**2 - 1).clamp_min(0)
    part = torch.where(magnitude < 1e-30, 0, (magnitude / min_gradient).clamp_max(1))
    return 1 + part * (AMBIENT + DIFFUSE * cosine - 1), part * SPECULAR * reflected**SHININESS
