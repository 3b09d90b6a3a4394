"""Initialization of splats: flat Gaussians on the visible surfaces of a volume."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from ...errors import InputError
from ..cameras import Cameras
from ..scene import Scene
from . import spherical_harmonics
from .model import Splats

_CANDIDATES = 4
"""Number of candidate positions per Gaussian; visibility selects among them."""
_DENSITY_WEIGHT = 0.05  # sampling weight of the opacity itself: translucent regions without surfaces are filled, too
_TANGENTIAL_SCALE, _NORMAL_SCALE = 0.6, 0.25  # standard deviations along surface and normal, in neighbour distances
_OPACITY_RANGE = 0.02, 0.8
_SHADING_FACTOR = 0.85  # mean factor of shading on a colour


def initialize_splats(scene: Scene, n: int, cameras: Cameras, sh_degree: int, random: np.random.Generator) -> Splats:
    """Return `n` splats on surfaces that the cameras see.

    Parameters
    ----------
    scene : Scene
        Volume, transfer function and mask.
    n : int
        Number of Gaussians.
    cameras : Cameras
        Some of the training cameras; they determine the visibility.
    sh_degree : int
        Degree of the spherical harmonics; all coefficients but the constant one are zero.
    random : numpy.random.Generator
        Random numbers, which select the positions.

    Raises
    ------
    InputError
        If the transfer function makes the whole volume transparent.
    """
    positions, normals, colors, extinctions = _sample_surface(scene, _CANDIDATES * n, random)
    candidates = _make_splats(positions, normals, colors, extinctions, sh_degree)
    contributions = pixel_contributions(candidates, cameras).double().numpy()
    maximum = contributions.max()
    weights = np.where(contributions > 1e-3 * maximum, contributions, 0) if maximum > 0 else np.ones(len(contributions))
    count = min(n, int(np.count_nonzero(weights)))
    selected = random.choice(len(weights), count, replace=False, p=weights / weights.sum())
    return _make_splats(positions[selected], normals[selected], colors[selected], extinctions[selected], sh_degree)


def pixel_contributions(splats: Splats, cameras: Cameras) -> Tensor:
    """Return the contribution of each Gaussian to the images: the sum of its blending weights, ``(N,)``."""
    # With white Gaussians the image is the sum of the weights, and its gradient by a colour a Gaussian's share.
    white_coefficient, device = 0.5 / spherical_harmonics.C0, splats.means.device
    coefficients = torch.full((len(splats), 1, 3), white_coefficient, device=device, requires_grad=True)
    white = Splats(splats.means, splats.log_scales, splats.quaternions, splats.opacity_logits, coefficients)
    for camera in cameras:
        white.render(camera).sum().backward()  # type: ignore[no-untyped-call]
    assert coefficients.grad is not None
    return coefficients.grad[:, 0, 0] / spherical_harmonics.C0


def _sample_surface(
    scene: Scene, n: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return positions (x, y, z) in mm, unit normals and colours, ``(n, 3)`` each, and extinctions per mm, ``(n,)``."""
    volume = np.asarray(scene.volume, np.float32)
    size, shape = scene.voxel_size, np.array(volume.shape)
    table = scene.transfer_function.evaluate(volume.ravel())
    extinction = scene.transfer_function.extinction(table[:, 3], 2 * scene.radius)
    opacity = (1 - np.exp(-extinction * size.min())).astype(np.float32).reshape(volume.shape)
    if scene.mask is not None:
        opacity *= np.asarray(scene.mask) != 0
    if not opacity.max() > 0:
        raise InputError(
            "The transfer function makes the whole volume transparent; choose another one or move its points."
        )
    slopes = np.stack(np.gradient(np.pad(gaussian_filter(opacity, 0.7), 1), *size))[:, 1:-1, 1:-1, 1:-1]
    opacity_jumps = np.sqrt(np.square(slopes).sum(0)) * size.min()
    weight = (np.minimum(opacity_jumps, 4 * opacity) + _DENSITY_WEIGHT * opacity).ravel().astype(np.float64)
    selected = np.searchsorted(np.cumsum(weight), random.random(n) * weight.sum())
    selected = np.minimum(selected, len(weight) - 1)
    index = np.stack(np.unravel_index(selected, volume.shape), 1) + random.uniform(-0.5, 0.5, (n, 3))
    positions = ((index - (shape - 1) / 2) * size)[:, ::-1]
    normals = slopes.reshape(3, -1).T[selected][:, ::-1].astype(np.float64)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    random_normals = random.normal(size=(n, 3))
    normals = np.where(lengths > 1e-9, normals, random_normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.ascontiguousarray(positions), normals, table[selected, :3], extinction[selected]


def _make_splats(
    positions: NDArray[np.float64],
    normals: NDArray[np.float64],
    colors: NDArray[np.float64],
    extinctions: NDArray[np.float64],
    sh_degree: int,
) -> Splats:
    """Return splats that are flat along their normals, with scales and opacities from the neighbour distances."""
    k = min(4, len(positions))
    distances = np.asarray(KDTree(positions).query(positions, k)[0]).reshape(len(positions), k)
    spacing = np.maximum(distances[:, 1:].mean(1), 1e-3) if k > 1 else np.ones(1)
    scales = spacing[:, None] * np.array([_TANGENTIAL_SCALE, _TANGENTIAL_SCALE, _NORMAL_SCALE])
    first = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.9, (1.0, 0, 0), (0, 1.0, 0)))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    axes = np.stack([first, np.cross(normals, first), normals], 2)  # (N, 3, 3), columns
    sh = np.zeros((len(positions), spherical_harmonics.n_coefficients(sh_degree), 3))
    sh[:, 0] = (_SHADING_FACTOR * colors - 0.5) / spherical_harmonics.C0
    opacities = np.clip(-np.expm1(-extinctions * spacing), *_OPACITY_RANGE)
    opacity_logits = np.log(opacities / (1 - opacities))
    quaternions = Rotation.from_matrix(axes).as_quat(scalar_first=True)
    return Splats(
        *(torch.tensor(a, dtype=torch.float32) for a in (positions, np.log(scales), quaternions, opacity_logits, sh))
    )
