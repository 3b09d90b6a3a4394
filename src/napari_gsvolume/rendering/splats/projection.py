"""Differentiable projection of 3D Gaussians to an image: elliptical weighted average (EWA) splatting.

The perspective is linearised at the centre of each Gaussian, as in 3D Gaussian Splatting. The constants are those of
gsplat 1.5.

References
----------
M. Zwicker, H. Pfister, J. van Baar, M. Gross, "EWA volume splatting", IEEE Visualization, 2001.
B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM
Transactions on Graphics 42 (4), 2023.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..cameras import Cameras

BLUR = 0.3
"""Low-pass filter: variance added to projected Gaussians, pixels squared, so that none falls between pixels."""
NEAR_PLANE = 0.01
"""Minimum depth of visible Gaussians, mm."""
MIN_ALPHA = 1 / 255
"""Minimum alpha of a contribution; smaller ones are skipped."""
_MARGIN = 0.3  # of half the image size; beyond it, the perspective is linearised at the edge of the margin


class ProjectedGaussians(NamedTuple):
    """Projected Gaussians in the image of one camera, in pixels.

    Attributes
    ----------
    means : Tensor, (N, 2)
        Centres (u, v): to the right and down; the centre of the first pixel is at (0.5, 0.5).
    conics : Tensor, (N, 3)
        Entries uu, uv and vv of the inverse covariance.
    depths : Tensor, (N,)
        Depths along the camera's z axis, mm.
    radii : Tensor, (N, 2)
        Half extents along u and v of the region where alpha is at least `MIN_ALPHA`; 0 for invisible Gaussians. No
        gradient.
    """

    means: Tensor
    conics: Tensor
    depths: Tensor
    radii: Tensor

    @property
    def visible(self) -> Tensor:
        """Gaussians with a contribution to the image, ``(N,)``, bool."""
        return self.radii[:, 0] > 0


def project(
    means: Tensor, log_scales: Tensor, quaternions: Tensor, opacities: Tensor, camera: Cameras
) -> ProjectedGaussians:
    """Project 3D Gaussians to the image of one camera: mean ``pi(x)``, covariance ``J W S W^T J^T + BLUR I``.

    W is the rotation from world to camera coordinates, and J the Jacobian of the projection pi at the mean.

    Parameters
    ----------
    means, log_scales : Tensor, (N, 3)
        Centres (x, y, z) in world coordinates, mm; natural logarithms of the standard deviations (mm).
    quaternions : Tensor, (N, 4)
        Rotations (w, x, y, z), of any nonzero length; the columns of the matrix are the principal axes.
    opacities : Tensor, (N,)
        Opacities, 0 to 1; they determine the radii.
    camera : Cameras
        Set of one camera.

    Returns
    -------
    ProjectedGaussians
        Projected Gaussians in the precision of the means; very elongated Gaussians need float64.
    """
    matrix = torch.as_tensor(camera.matrices[0]).to(means)
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics[0].tolist()
    height, width = camera.image_size

    x, y, z = (matrix[:3, :3] @ means.T + matrix[:3, 3:]).unbind(0)  # (N,) each, camera coordinates
    visible = (z > NEAR_PLANE) & (opacities >= MIN_ALPHA)
    right, down, forward = matrix[:3, :3, None].unbind(0)  # (3, 1) each, camera axes in the world
    if camera.orthographic:
        centre = torch.stack([fx * x + cx, fy * y + cy], 1)
        row_u, row_v = fx * right, fy * down  # (3, 1), the rows of J W
    else:
        depth = torch.where(visible, z, 1)  # avoids infinities in the camera plane
        u, v = x / depth, y / depth
        centre = torch.stack([fx * u + cx, fy * v + cy], 1)
        row_u = fx * (right - _clamped_slope(u, fx, cx, width) * forward) / depth  # (3, N)
        row_v = fy * (down - _clamped_slope(v, fy, cy, height) * forward) / depth

    axes, scales = _rotation_matrices(quaternions), log_scales.T.exp()  # (3, 3, N) and (3, N)
    p = (row_u[:, None] * axes).sum(0) * scales  # (3, N), the principal axes projected to u
    q = (row_v[:, None] * axes).sum(0) * scales
    uu, uv, vv = (p * p).sum(0) + BLUR, (p * q).sum(0), (q * q).sum(0) + BLUR
    # By Lagrange's identity: uu vv - uv^2 would be a small difference of large numbers for needles.
    determinant = torch.linalg.cross(p, q, dim=0).square().sum(0) + BLUR * (uu + vv - BLUR)
    conics = torch.stack([vv, -uv, uu], 1) / determinant[:, None]

    with torch.no_grad():
        radius = (2 * (opacities / MIN_ALPHA).clamp_min(1).log()).sqrt()  # in standard deviations
        radii = radius[:, None] * torch.stack([uu, vv], 1).sqrt()
        size = torch.tensor([width, height], dtype=radii.dtype, device=radii.device)
        visible = visible & ((centre + radii > 0) & (centre - radii < size)).all(1) & determinant.isfinite()
        radii = torch.where(visible[:, None], radii, 0)
    return ProjectedGaussians(centre, conics, z, radii)


def _clamped_slope(slope: Tensor, focal: float, centre: float, n: int) -> Tensor:
    """Return slopes x / z clamped to the image and a margin around it."""
    margin = _MARGIN * n / (2 * focal)
    return slope.clamp(-centre / focal - margin, (n - centre) / focal + margin)


def _rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return rotation matrices ``(3, 3, N)`` of quaternions ``(N, 4)``."""
    # The length of sqrt(2) saves the factors of two.
    w, x, y, z = (math.sqrt(2) * functional.normalize(quaternions, dim=1).T).unbind(0)
    rows = [
        [1 - y * y - z * z, x * y - w * z, x * z + w * y],
        [x * y + w * z, 1 - x * x - z * z, y * z - w * x],
        [x * z - w * y, y * z + w * x, 1 - x * x - y * y],
    ]
    return torch.stack([torch.stack(row) for row in rows])
