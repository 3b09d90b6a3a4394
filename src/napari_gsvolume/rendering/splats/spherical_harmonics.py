"""Real spherical harmonics up to degree 3, with the order and signs of 3D Gaussian Splatting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError

MAX_DEGREE = 3
C0 = 0.28209479177387814
"""Constant basis function, 1 / (2 sqrt(pi)); a uniform colour c has the coefficient (c - 0.5) / C0."""
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def n_coefficients(degree: int) -> int:
    """Return the number of coefficients up to an SH degree (0 to 3; InputError otherwise), ``(degree + 1)^2``."""
    if degree not in range(MAX_DEGREE + 1):
        raise InputError(f"The SH degree has to be 0 to {MAX_DEGREE}; got {degree}.")
    return (degree + 1) ** 2


def evaluate_basis(directions: Tensor, degree: int) -> Tensor:
    """Return the basis functions ``(N, K)``, K = (degree + 1)^2, at unit vectors (x, y, z) of shape ``(N, 3)``.

    The basis is orthonormal over the sphere, ordered by l, then by m = -l..l, with the Condon-Shortley phase.
    """
    K = n_coefficients(degree)
    x, y, z = directions.T.contiguous()  # (N,) each
    xx, yy, zz, xy = x * x, y * y, z * z, x * y
    columns = [torch.full_like(x, C0)]
    if degree > 0:
        columns += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree > 1:
        p, q, r = _C2
        columns += [p * xy, -p * (y * z), q * (3 * zz - 1), -p * (x * z), r * (xx - yy)]
    if degree > 2:
        p, q, r, s, t = _C3
        columns += [-p * y * (3 * xx - yy), q * xy * z, -r * y * (5 * zz - 1), s * z * (5 * zz - 3)]
        columns += [-r * x * (5 * zz - 1), t * z * (xx - yy), -p * x * (xx - 3 * yy)]
    return torch.stack(columns[:K], 1)


def evaluate_colors(sh: Tensor, rays: Tensor, degree: int) -> Tensor:
    """Return the view-dependent colours ``max(0, 0.5 + sum_k Y_k(ray / |ray|) sh_k)``, ``(N, 3)``.

    Parameters
    ----------
    sh : Tensor, (N, K', 3)
        Coefficients of red, green and blue; those above the degree are ignored.
    rays : Tensor, (N, 3) or (1, 3)
        Vectors from the camera to the Gaussians, of any length.
    degree : int
        SH degree, at most that of the coefficients.
    """
    Y = evaluate_basis(functional.normalize(rays, dim=1), degree)  # (N, K)
    return (0.5 + (Y[:, :, None] * sh[:, : Y.shape[1]]).sum(1)).clamp_min(0)
