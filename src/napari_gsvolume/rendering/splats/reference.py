"""The pictures of Gaussians as the formulas read: every Gaussian at every pixel, torch, differentiable. Slow."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras
from .projection import BLUR, MIN_ALPHA, NEAR
from .rasterizer import MAX_ALPHA, MIN_LEFT


def rotations(quaternions: Tensor) -> Tensor:
    """Return rotation matrices ``(N, 3, 3)`` of quaternions ``(N, 4)``, (w, x, y, z), of any length."""
    w, v = quaternions[:, 0, None, None], quaternions[:, 1:]
    cross = torch.linalg.cross(v[:, None], torch.eye(3).to(v)[None]).mT  # (N, 3, 3): cross @ a is v x a
    outer, square = v[:, :, None] * v[:, None, :], (v * v).sum(1)[:, None, None]
    R: Tensor = ((w * w - square) * torch.eye(3).to(v) + 2 * outer + 2 * w * cross) / (w * w + square)
    return R


def covariances(log_scales: Tensor, quaternions: Tensor) -> Tensor:
    """Return ``R diag(scales^2) R^T``, ``(N, 3, 3)``."""
    R = rotations(quaternions)
    return R @ torch.diag_embed((2 * log_scales).exp()) @ R.mT


def project(means: Tensor, log_scales: Tensor, quaternions: Tensor, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Return means ``(N, 2)`` and covariances ``(N, 2, 2)`` in the image of one camera, and depths ``(N,)``."""
    matrix, K = (torch.as_tensor(a[0]).to(means) for a in (camera.matrices, camera.intrinsics))
    focal, middle, size = K.diagonal()[:2], K[:2, 2], torch.tensor(camera.size[::-1]).to(means)
    W = matrix[:3, :3]
    places = means @ W.T + matrix[:3, 3]  # (N, 3), in the camera's frame
    z = places[:, 2]
    J = torch.diag(torch.cat([focal, focal.new_zeros(1)]))[:2].expand(len(means), 2, 3)
    slopes = places[:, :2]
    if not camera.orthographic:
        slopes = slopes / z[:, None]
        margin = 0.3 * size / 2 / focal
        held = slopes.maximum(-middle / focal - margin).minimum((size - middle) / focal + margin)
        J = torch.cat([torch.diag(focal).expand(len(means), 2, 2), -(focal * held)[:, :, None]], 2) / z[:, None, None]
    S = J @ W @ covariances(log_scales, quaternions) @ W.T @ J.mT
    return slopes * focal + middle, S + BLUR * torch.eye(2).to(S), z


def alphas(means: Tensor, covariances: Tensor, opacities: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``o exp(-d^T S^-1 d / 2)`` at all pixels, ``(N, H, W)``; nothing is cut off yet."""
    v, u = torch.meshgrid(*(torch.arange(n).to(means) + 0.5 for n in size), indexing="ij")
    d = torch.stack([u, v], -1) - means[:, None, None]  # (N, H, W, 2)
    q = torch.einsum("nhwi,nij,nhwj->nhw", d, torch.linalg.inv(covariances), d)
    return opacities[:, None, None] * torch.exp(-q / 2)


def rasterise(
    means: Tensor,
    covariances: Tensor,
    depths: Tensor,
    colours: Tensor,
    opacities: Tensor,
    size: tuple[int, int],
    background: tuple[float, float, float] = (0, 0, 0),
) -> tuple[Tensor, Tensor]:
    """Return the image ``(H, W, 3)`` and its cover ``(H, W)``, as `rasterizer.rasterise` does."""
    seen = torch.nonzero(depths > NEAR)[:, 0]
    order = seen[torch.argsort(depths[seen], stable=True)]
    a = alphas(means[order], covariances[order], opacities[order], size)
    a = torch.where(a < MIN_ALPHA, 0, a.clamp_max(MAX_ALPHA))
    # Light only gets less, so that what comes after the end of a pixel is left out too.
    a = torch.where((1 - a).cumprod(0) > MIN_LEFT, a, 0)
    after = (1 - a).cumprod(0)  # (N, H, W)
    light = torch.cat([after.new_ones(1, *size), after])
    image = torch.einsum("nhw,nc->hwc", a * light[:-1], colours[order])
    return image + light[-1][:, :, None] * torch.tensor(background).to(image), 1 - light[-1]
