"""Ray casting of voxels with torch, for GPUs.

The sample positions are those of `voxel_projector`, so that both agree to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from .scan import Mode, Scan

_CHUNK = 1 << 22
"""Number of samples per chunk: 100 MB."""


def project_voxels(volume: Tensor, scan: Scan, mode: Mode, step: float) -> NDArray[np.float32]:
    """Project a volume ``(Z, Y, X)`` on its device, as `voxel_projector.project_voxels`; `step` is in mm."""
    return np.stack([_view(volume, scan, view, mode, step) for view in range(len(scan))])


def _view(volume: Tensor, scan: Scan, view: int, mode: Mode, step: float) -> NDArray[np.float32]:
    shape, size = np.array(volume.shape), scan.voxel_size
    starts, ways = scan.rays(view)  # (V, U, 3), mm
    lengths = np.inf
    if scan.beam != "parallel":  # rays end at the pixel
        across, down = (np.arange(n) - (n - 1) / 2 for n in scan.pixels)
        pixels = scan.centres[view] + across[:, None] * scan.u[view] + down[:, None, None] * scan.v[view]
        lengths = np.linalg.norm(pixels - starts, axis=-1)
    starts, ways = starts / size + (shape - 1) / 2, ways / size * step  # in voxels, and voxels per step
    beyond = 1.0 if mode == "xray" else 0.0  # the interpolant falls to zero within a voxel
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(-beyond - starts) / ways, (shape - 1 + beyond - starts) / ways])
    beside = (np.abs(ways) < 1e-12) & ((starts < -beyond) | (starts > shape - 1 + beyond))
    ends[:, np.abs(ways) < 1e-12] = np.array([[-np.inf], [np.inf]])
    enter = ends.min(0).max(-1)  # (V, U), in steps
    leave = np.minimum(ends.max(0).min(-1), lengths / step)
    if scan.beam != "parallel":
        enter = np.maximum(enter, 0)
    hit = (leave > enter) & ~beside.any(-1)
    counts = np.where(hit, np.ceil(np.where(hit, leave - enter, 0) - 1e-9), 0)
    first = np.where(hit, enter + (leave - enter - counts + 1) / 2, 0)[..., None]
    places, n = starts + first * ways, torch.as_tensor(counts.ravel(), device=volume.device)
    return _sampled(volume, places.reshape(-1, 3), ways.reshape(-1, 3), n, mode, step).reshape(scan.image_shape[1:])


def _sampled(
    volume: Tensor, places: NDArray[np.float64], ways: NDArray[np.float64], n: Tensor, mode: Mode, step: float
) -> NDArray[np.float32]:
    """Return the line integral or the maximum, minimum or mean of the `n` samples of each ray."""
    # grid_sample wants x first, from -1 to 1 between the outermost centres; an axis of one voxel has no such span.
    padded = torch.nn.functional.pad(volume, (1,) * 6)
    span = torch.tensor([(s - 1) / 2 for s in padded.shape], dtype=torch.float64, device=volume.device)
    start = ((torch.as_tensor(places, device=volume.device) + 1) / span - 1).flip(-1)  # (R, 3)
    way = (torch.as_tensor(ways, device=volume.device) / span).flip(-1)
    at_once = max(1, _CHUNK // len(places))
    rays = len(places)
    total = torch.zeros(rays, device=volume.device)
    extreme = torch.full((rays,), -torch.inf if mode == "mip" else torch.inf, device=volume.device)
    for begin in range(0, int(n.max()) if rays else 0, at_once):
        s = torch.arange(begin, min(begin + at_once, int(n.max())), device=volume.device)[:, None]  # (S, 1)
        points = (start + s[..., None] * way).float()  # (S, R, 3)
        values = grid_sample(padded[None, None], points[None, None], align_corners=True)[0, 0, 0]  # (S, R)
        there = s < n
        if mode == "mip":
            extreme = torch.maximum(extreme, values.where(there, -torch.inf).amax(0))
        elif mode == "minip":
            extreme = torch.minimum(extreme, values.where(there, torch.inf).amin(0))
        else:
            total += (values * there).sum(0)
    if mode == "xray":
        image = total * step
    else:
        image = (total / n.clamp_min(1) if mode == "mean" else extreme).where(n > 0, 0.0)
    return image.cpu().numpy().astype(np.float32)
