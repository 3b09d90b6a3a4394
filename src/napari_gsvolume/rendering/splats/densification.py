"""Densification: Gaussians are pruned and split during training (adaptive density control).

References
----------
B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM
Transactions on Graphics 42 (4), 2023.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model import Splats
from .reference import rotation_matrices

_MIN_CONTRIBUTION = 1e-3
"""Pruning threshold of the contribution, relative to the mean contribution."""
_MIN_OPACITY = 0.01
"""Pruning threshold of the opacity."""
_MAX_GROWTH = 0.15
"""Maximum number of splits at once, relative to the maximum number of Gaussians."""
_SHRINK = 1.6  # ratio of a parent's largest scale to that of its children
_NAMES = ("means", "log_scales", "quaternions", "opacity_logits", "sh")


def densify_and_prune(
    splats: Splats, gradients: Tensor, contributions: Tensor, max_gaussians: int, generator: torch.Generator
) -> tuple[Splats, Tensor]:
    """Prune invisible Gaussians, and split those with the largest positional gradient in two.

    Parameters
    ----------
    splats : Splats
        N splats.
    gradients : Tensor, (N,)
        Mean norms of the gradients by the projected centres; probability weights of a split.
    contributions : Tensor, (N,)
        Contributions to the images, see `initialization.pixel_contributions`.
    max_gaussians : int
        Maximum number of Gaussians.
    generator : torch.Generator
        Random numbers, which select the Gaussians to split.

    Returns
    -------
    Splats
        Kept Gaussians in their order, then the children of split ones.
    Tensor, (K,), int
        Indices of the kept Gaussians.
    """
    visible = contributions > _MIN_CONTRIBUTION * contributions.mean()
    useful = visible & (splats.opacity_logits.sigmoid() > _MIN_OPACITY)
    room = max(max_gaussians - int(useful.sum()), 0)
    n = min(room, math.ceil(_MAX_GROWTH * max_gaussians), int(useful.sum()))
    score = torch.where(useful, gradients, 0).double()
    n = min(n, int((score > 0).sum()))
    split = torch.multinomial(score.cpu(), n, generator=generator) if n else torch.zeros(0, dtype=torch.long)
    split = split.to(score.device)
    kept = useful.clone()
    kept[split] = False
    parents = [getattr(splats, name).detach()[split] for name in _NAMES]
    means, log_scales, quaternions, opacity_logits, sh = parents
    # Two children, one standard deviation apart along the longest axis.
    widest = log_scales.argmax(1)
    axis = rotation_matrices(quaternions).gather(2, widest[:, None, None].expand(n, 3, 1))[:, :, 0]  # (n, 3)
    offset = 0.5 * log_scales.gather(1, widest[:, None]).exp() * axis
    smaller = log_scales.clone()
    smaller.scatter_(1, widest[:, None], log_scales.gather(1, widest[:, None]) - math.log(_SHRINK))
    children = [
        torch.cat([means - offset, means + offset]),
        *(torch.cat([t, t]) for t in (smaller, quaternions, opacity_logits, sh)),
    ]
    kept_indices = torch.nonzero(kept)[:, 0]
    remaining = [getattr(splats, name).detach()[kept_indices] for name in _NAMES]
    return Splats(*(torch.cat(pair) for pair in zip(remaining, children, strict=True))), kept_indices
