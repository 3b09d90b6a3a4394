"""Loss of splat training: image loss against the references, and penalties on the Gaussians.

References
----------
Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Transactions on Image Processing 13 (4), 2004.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..settings import SplatTrainingSettings
from .model import Splats
from .reference import covariance_matrices

_SSIM_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2
_NEIGHBOURS = 8


def image_loss(image: Tensor, reference: Tensor, settings: SplatTrainingSettings) -> Tensor:
    """Return the MSE of images ``(H, W, 3)``, plus the weighted mean absolute error and 1 - SSIM."""
    difference = image - reference
    loss = difference.square().mean()
    if settings.l1_weight:
        loss = loss + settings.l1_weight * difference.abs().mean()
    if settings.dssim_weight and min(image.shape[:2]) >= _SSIM_WINDOW:
        loss = loss + settings.dssim_weight * (1 - structural_similarity(image, reference))
    return loss


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean SSIM of images ``(H, W, C)`` with data range 1, with uniform windows of 7 x 7 pixels."""
    a, b = a.permute(2, 0, 1), b.permute(2, 0, 1)
    n = _SSIM_WINDOW**2
    means = avg_pool2d(torch.cat([a, b, a * a, b * b, a * b])[None], _SSIM_WINDOW, 1)[0]
    x, y, xx, yy, xy = means.chunk(5)
    unbiased = n / (n - 1)
    vx, vy, cov = (unbiased * t for t in (xx - x * x, yy - y * y, xy - x * y))
    above = (2 * x * y + _C1) * (2 * cov + _C2)
    below = (x * x + y * y + _C1) * (vx + vy + _C2)
    return (above / below).mean()


class Penalties:
    """Weighted sparsity, overlap and smoothness penalties of splats; lengths are in pixels.

    Sparsity is the mean opacity o. Overlap is the mean over Gaussians of ``sum_j sqrt(o_i o_j) integral G_i G_j /
    sqrt(integral G_i^2 integral G_j^2)`` over the nearest neighbours j, updated at each densification. Smoothness is
    ``o^2 tr(S^-1) / 2``: the squared gradient of a Gaussian, relative to its square.

    Parameters
    ----------
    settings : SplatTrainingSettings
        Weights of the penalties.
    pixel_size : float
        Size of a pixel in the plane of the volume's centre, mm.
    """

    def __init__(self, settings: SplatTrainingSettings, pixel_size: float) -> None:
        self.settings, self.pixel_size = settings, pixel_size
        self._pairs: Tensor | None = None

    def reset_neighbours(self) -> None:
        """Request a new neighbour search, after densification."""
        self._pairs = None

    def __call__(self, splats: Splats) -> Tensor:
        """Return the weighted sum of the penalties."""
        s, opacities = self.settings, splats.opacity_logits.sigmoid()
        total = opacities.new_zeros(())
        if s.sparsity_weight:
            total = total + s.sparsity_weight * opacities.mean()
        if s.smoothness_weight:
            traces = (-2 * splats.log_scales).exp().sum(1) * self.pixel_size**2
            total = total + s.smoothness_weight * (opacities.square() * traces).mean() / 2
        if s.overlap_weight and len(splats) > 1:
            total = total + s.overlap_weight * self._overlap(splats, opacities)
        return total

    def _overlap(self, splats: Splats, opacities: Tensor) -> Tensor:
        if self._pairs is None:
            self._pairs = _neighbours(splats.means.detach())
        i, j = self._pairs
        S = covariance_matrices(splats.log_scales, splats.quaternions)
        both = S[i] + S[j]
        d = splats.means[i] - splats.means[j]
        # integral G_i G_j / sqrt(...) = 8^(1/2) (|S_i| |S_j|)^(1/4) / |S_i + S_j|^(1/2) exp(-d^T (S_i + S_j)^-1 d / 2)
        volumes = splats.log_scales.sum(1)  # log |S|^(1/2)
        chol = torch.linalg.cholesky(both)
        y = torch.linalg.solve_triangular(chol, d[:, :, None], upper=False)[:, :, 0]
        logarithm = (volumes[i] + volumes[j]) / 2 + 1.5 * math.log(2) - chol.diagonal(dim1=1, dim2=2).log().sum(1)
        shared = (logarithm - y.square().sum(1) / 2).exp() * (opacities[i] * opacities[j]).sqrt()
        overlap: Tensor = 2 * shared.sum() / len(splats)
        return overlap


def _neighbours(means: Tensor) -> Tensor:
    """Return the index pairs of neighbouring Gaussians, each once, ``(2, P)``."""
    points = means.cpu().double().numpy()
    k = min(_NEIGHBOURS + 1, len(points))
    near = np.asarray(KDTree(points).query(points, k)[1])[:, 1:]
    pairs = np.stack([np.repeat(np.arange(len(points)), near.shape[1]), near.ravel()])
    pairs = np.unique(np.sort(pairs, 0), axis=1)
    return torch.from_numpy(pairs).to(means.device)
