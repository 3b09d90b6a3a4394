"""Gaussians as a camera sees them: elliptical weighted average (EWA) splatting, differentiable.

The perspective is linearised at the centre of each Gaussian (Zwicker et al., "EWA volume splatting", 2001), as
3D Gaussian Splatting does (Kerbl et al. 2023). The constants are those of gsplat 1.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..cameras import Cameras

BLUR = 0.3
"""Added to the variances of a Gaussian in the image, pixels squared: none falls between pixels."""
NEAR = 0.01
"""Nothing closer to the camera's plane than this is seen, mm."""
MIN_ALPHA = 1 / 255
"""Contributions below this are left out."""
_MARGIN = 0.3  # Beyond this part of half the image outside it, the perspective is linearised at its edge instead.


class Projected(NamedTuple):
    """Gaussians in the image of one camera, in pixels.

    Attributes
    ----------
    means : Tensor, (N, 2)
        (u, v): to the right and down; the middle of the first pixel is at (0.5, 0.5).
    conics : Tensor, (N, 3)
        The inverse of the covariance: its entries uu, uv, vv.
    depths : Tensor, (N,)
        Along the camera's axis, mm.
    reach : Tensor, (N, 2)
        How far to either side along u and v its contribution is at least `MIN_ALPHA`; 0 where it is not seen at all.
        Carries no gradient.
    """

    means: Tensor
    conics: Tensor
    depths: Tensor
    reach: Tensor

    @property
    def visible(self) -> Tensor:
        """Which are seen, ``(N,)``, bool."""
        return self.reach[:, 0] > 0


def project(means: Tensor, log_scales: Tensor, quaternions: Tensor, opacities: Tensor, camera: Cameras) -> Projected:
    """Project 3D Gaussians to the image of one camera: mean ``pi(x)``, covariance ``J W S W^T J^T + BLUR I``.

    W turns the world to the camera and J is the derivative of the projection pi at the mean.

    Parameters
    ----------
    means, log_scales : Tensor, (N, 3)
        In mm, (x, y, z) in the world of the camera; natural logarithms of the standard deviations.
    quaternions : Tensor, (N, 4)
        (w, x, y, z), of any length but 0: the principal axes are the columns of the rotation.
    opacities : Tensor, (N,)
        In [0, 1]; they decide how far a Gaussian reaches.
    camera : Cameras
        One camera.

    Returns
    -------
    Projected
        In the precision of the means. Needles lose their thin side to rounding in float32: use float64.
    """
    matrix = torch.as_tensor(camera.matrices[0]).to(means)
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics[0].tolist()
    height, width = camera.size

    x, y, z = (matrix[:3, :3] @ means.T + matrix[:3, 3:]).unbind(0)  # (N,) each, in the camera's frame
    seen = (z > NEAR) & (opacities >= MIN_ALPHA)
    right, down, forward = matrix[:3, :3, None].unbind(0)  # (3, 1), the camera's axes in the world
    if camera.orthographic:
        centre = torch.stack([fx * x + cx, fy * y + cy], 1)
        across, along = fx * right, fy * down  # (3, 1), the rows of J W
    else:
        far = torch.where(seen, z, 1)  # no infinities from what lies in the camera's plane
        u, v = x / far, y / far
        centre = torch.stack([fx * u + cx, fy * v + cy], 1)
        across = fx * (right - _held(u, fx, cx, width) * forward) / far  # (3, N)
        along = fy * (down - _held(v, fy, cy, height) * forward) / far

    axes, scales = _rotations(quaternions), log_scales.T.exp()  # (3, 3, N) and (3, N)
    p = (across[:, None] * axes).sum(0) * scales  # (3, N), the principal axes seen along u
    q = (along[:, None] * axes).sum(0) * scales
    uu, uv, vv = (p * p).sum(0) + BLUR, (p * q).sum(0), (q * q).sum(0) + BLUR
    # By Lagrange's identity: uu vv - uv^2 would be a small difference of large numbers for needles.
    determinant = torch.linalg.cross(p, q, dim=0).square().sum(0) + BLUR * (uu + vv - BLUR)
    conics = torch.stack([vv, -uv, uu], 1) / determinant[:, None]

    with torch.no_grad():
        radius = (2 * (opacities / MIN_ALPHA).clamp_min(1).log()).sqrt()  # in standard deviations
        reach = radius[:, None] * torch.stack([uu, vv], 1).sqrt()
        size = torch.tensor([width, height], dtype=reach.dtype, device=reach.device)
        seen = seen & ((centre + reach > 0) & (centre - reach < size)).all(1) & determinant.isfinite()
        reach = torch.where(seen[:, None], reach, 0)
    return Projected(centre, conics, z, reach)


def _held(slope: Tensor, focal: float, middle: float, n: int) -> Tensor:
    """Return slopes x / z held within what the image shows, and a margin."""
    margin = _MARGIN * n / (2 * focal)
    return slope.clamp(-middle / focal - margin, (n - middle) / focal + margin)


def _rotations(quaternions: Tensor) -> Tensor:
    """Return rotation matrices ``(3, 3, N)`` of quaternions ``(N, 4)``."""
    # The length of sqrt(2) saves the factors of two.
    w, x, y, z = (math.sqrt(2) * functional.normalize(quaternions, dim=1).T).unbind(0)
    rows = [
        [1 - y * y - z * z, x * y - w * z, x * z + w * y],
        [x * y + w * z, 1 - x * x - z * z, y * z - w * x],
        [x * z - w * y, y * z + w * x, 1 - x * x - y * y],
    ]
    return torch.stack([torch.stack(row) for row in rows])
