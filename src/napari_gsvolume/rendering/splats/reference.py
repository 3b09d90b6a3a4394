"""Reference rasterizer: every Gaussian at every pixel in torch, differentiable and slow; the test oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from .projection import BLUR, MIN_ALPHA, NEAR_PLANE
from .rasterizer import MAX_ALPHA, MIN_TRANSMITTANCE


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return rotation matrices ``(N, 3, 3)`` of quaternions ``(N, 4)``, (w, x, y, z), of any length."""
    w, v = quaternions[:, 0, None, None], quaternions[:, 1:]
    cross = torch.linalg.cross(v[:, None], torch.eye(3).to(v)[None]).mT  # (N, 3, 3): cross @ a is v x a
    outer, square = v[:, :, None] * v[:, None, :], (v * v).sum(1)[:, None, None]
    R: Tensor = ((w * w - square) * torch.eye(3).to(v) + 2 * outer + 2 * w * cross) / (w * w + square)
    return R


def covariance_matrices(log_scales: Tensor, quaternions: Tensor) -> Tensor:
    """Return ``R diag(scales^2) R^T``, ``(N, 3, 3)``."""
    R = rotation_matrices(quaternions)
    return R @ torch.diag_embed((2 * log_scales).exp()) @ R.mT


def project(means: Tensor, log_scales: Tensor, quaternions: Tensor, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Return means ``(N, 2)`` and covariances ``(N, 2, 2)`` in the image of one camera, and depths ``(N,)``."""
    matrix, K = (torch.as_tensor(a[0]).to(means) for a in (camera.matrices, camera.intrinsics))
    focal, centre, size = K.diagonal()[:2], K[:2, 2], torch.tensor(camera.image_size[::-1]).to(means)
    W = matrix[:3, :3]
    points = means @ W.T + matrix[:3, 3]  # (N, 3), camera coordinates
    z = points[:, 2]
    J = torch.diag(torch.cat([focal, focal.new_zeros(1)]))[:2].expand(len(means), 2, 3)
    slopes = points[:, :2]
    if not camera.orthographic:
        slopes = slopes / z[:, None]
        margin = 0.3 * size / 2 / focal
        clamped = slopes.maximum(-centre / focal - margin).minimum((size - centre) / focal + margin)
        J = (
            torch.cat([torch.diag(focal).expand(len(means), 2, 2), -(focal * clamped)[:, :, None]], 2)
            / z[:, None, None]
        )
    S = J @ W @ covariance_matrices(log_scales, quaternions) @ W.T @ J.mT
    return slopes * focal + centre, S + BLUR * torch.eye(2).to(S), z


def alphas(means: Tensor, covariances: Tensor, opacities: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``o exp(-d^T S^-1 d / 2)`` at all pixels, ``(N, H, W)``, without any cut-off."""
    v, u = torch.meshgrid(*(torch.arange(n).to(means) + 0.5 for n in size), indexing="ij")
    d = torch.stack([u, v], -1) - means[:, None, None]  # (N, H, W, 2)
    q = torch.einsum("nhwi,nij,nhwj->nhw", d, torch.linalg.inv(covariances), d)
    return opacities[:, None, None] * torch.exp(-q / 2)


def rasterize(
    means: Tensor,
    covariances: Tensor,
    depths: Tensor,
    colors: Tensor,
    opacities: Tensor,
    size: tuple[int, int],
    background: tuple[float, float, float] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Return image ``(H, W, 3)`` and alpha ``(H, W)``, as `rasterizer.rasterize` does."""
    in_front = torch.nonzero(depths > NEAR_PLANE)[:, 0]
    order = in_front[torch.argsort(depths[in_front], stable=True)]
    a = alphas(means[order], covariances[order], opacities[order], size)
    a = torch.where(a < MIN_ALPHA, 0, a.clamp_max(MAX_ALPHA))
    # The transmittance only decreases, so this also drops all Gaussians behind the last one of a pixel.
    a = torch.where((1 - a).cumprod(0) > MIN_TRANSMITTANCE, a, 0)
    after = (1 - a).cumprod(0)  # (N, H, W)
    transmittance = torch.cat([after.new_ones(1, *size), after])
    image = torch.einsum("nhw,nc->hwc", a * transmittance[:-1], colors[order])
    return image + transmittance[-1][:, :, None] * torch.tensor(background).to(image), 1 - transmittance[-1]
