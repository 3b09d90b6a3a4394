"""Which Gaussians go and which are split while splats are trained (adaptive density control, Kerbl et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model import Splats
from .reference import rotations

_UNSEEN = 1e-3
"""Of the mean contribution; a Gaussian below is removed."""
_FAINT = 0.01
"""Opacity below which a Gaussian is removed."""
_GROWTH = 0.15
"""Of the most Gaussians there may be: how many are born at once, at most."""
_SHRINK = 1.6
_NAMES = ("means", "log_scales", "quaternions", "logits", "sh")


def renewed(
    splats: Splats, pulls: Tensor, contributed: Tensor, most: int, random: torch.Generator
) -> tuple[Splats, Tensor]:
    """Return splats without those that are not seen, with those that are pulled most split in two.

    Parameters
    ----------
    splats : Splats
    pulls : Tensor, (N,)
        How strongly their places in images are pulled, on average.
    contributed : Tensor, (N,)
        How much of the images each covers.
    most : int
        So many there may be.
    random : torch.Generator

    Returns
    -------
    Splats
        Those kept, in their order, then those that are born.
    Tensor, (K,), int
        Which were kept as they are.
    """
    useful = (contributed > _UNSEEN * contributed.mean()) & (splats.logits.sigmoid() > _FAINT)
    room = max(most - int(useful.sum()), 0)
    n = min(room, math.ceil(_GROWTH * most), int(useful.sum()))
    score = torch.where(useful, pulls, 0).double()
    n = min(n, int((score > 0).sum()))
    split = torch.multinomial(score.cpu(), n, generator=random) if n else torch.zeros(0, dtype=torch.long)
    split = split.to(score.device)
    kept = useful.clone()
    kept[split] = False
    parents = [getattr(splats, name).detach()[split] for name in _NAMES]
    means, log_scales, quaternions, logits, sh = parents
    # Two children a standard deviation apart along the widest axis.
    widest = log_scales.argmax(1)
    axis = rotations(quaternions).gather(2, widest[:, None, None].expand(n, 3, 1))[:, :, 0]  # (n, 3)
    reach = 0.5 * log_scales.gather(1, widest[:, None]).exp() * axis
    smaller = log_scales.clone()
    smaller.scatter_(1, widest[:, None], log_scales.gather(1, widest[:, None]) - math.log(_SHRINK))
    born = [
        torch.cat([means - reach, means + reach]),
        *(torch.cat([t, t]) for t in (smaller, quaternions, logits, sh)),
    ]
    stay = torch.nonzero(kept)[:, 0]
    return Splats(*(torch.cat([getattr(splats, n).detach()[stay], b]) for n, b in zip(_NAMES, born, strict=True))), stay
