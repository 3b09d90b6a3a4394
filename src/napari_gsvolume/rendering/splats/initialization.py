"""The first Gaussians: where the volume can be seen, flat on its surfaces."""

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
"""Times as many places as are needed; the cameras choose among them."""
_CLOUD = 0.05  # weight of opacity itself beside its jumps: fog without surfaces is filled, too
_SPREAD, _FLAT = 0.6, 0.25  # standard deviations along a surface and across it, in distances of neighbours
_OPACITIES = 0.02, 0.8
_LIT = 0.85  # of a colour is what shading leaves of it, about


def seeds(scene: Scene, n: int, cameras: Cameras, degree: int, random: np.random.Generator) -> Splats:
    """Return `n` Gaussians at places that the cameras see.

    Parameters
    ----------
    scene : Scene
    n : int
    cameras : Cameras
        Some of those to learn from.
    degree : int
        Of the spherical harmonics, all but the constant one zero.
    random : numpy.random.Generator

    Raises
    ------
    ValueError
        If the transfer function makes all of the volume transparent.
    """
    places, normals, colours, extinctions = _places(scene, _CANDIDATES * n, random)
    many = _splats(places, normals, colours, extinctions, degree)
    seen = contributions(many, cameras).double().numpy()
    seen = np.where(seen > 1e-3 * seen.max(), seen, 0) if seen.max() > 0 else np.ones(len(seen))
    chosen = random.choice(len(seen), min(n, int(np.count_nonzero(seen))), replace=False, p=seen / seen.sum())
    return _splats(places[chosen], normals[chosen], colours[chosen], extinctions[chosen], degree)


def contributions(splats: Splats, cameras: Cameras) -> Tensor:
    """Return how much of the cameras' pixels each Gaussian covers, the sum of its weights, ``(N,)``."""
    # White: the image is the cover.
    leaf = torch.full((len(splats), 1, 3), 0.5 / spherical_harmonics.C0, device=splats.means.device, requires_grad=True)
    white = Splats(splats.means, splats.log_scales, splats.quaternions, splats.logits, leaf)
    for camera in cameras:
        white.render(camera).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad[:, 0, 0] / spherical_harmonics.C0


def _places(
    scene: Scene, n: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return places (x, y, z), mm, unit normals, and colours, ``(n, 3)`` each, and extinctions per mm, ``(n,)``."""
    volume = np.asarray(scene.volume, np.float32)
    size, shape = scene.voxel_size, np.array(volume.shape)
    table = scene.transfer.at(volume.ravel())
    extinction = scene.transfer.extinction(table[:, 3], 2 * scene.radius)
    opacity = (1 - np.exp(-extinction * size.min())).astype(np.float32).reshape(volume.shape)
    if scene.mask is not None:
        opacity *= np.asarray(scene.mask) != 0
    if not opacity.max() > 0:
        raise InputError("The transfer function makes all of this volume transparent; choose another, or its points.")
    slopes = np.stack(np.gradient(np.pad(gaussian_filter(opacity, 0.7), 1), *size))[:, 1:-1, 1:-1, 1:-1]
    jumps = np.sqrt(np.square(slopes).sum(0)) * size.min()
    weight = (np.minimum(jumps, 4 * opacity) + _CLOUD * opacity).ravel().astype(np.float64)
    chosen = np.searchsorted(np.cumsum(weight), random.random(n) * weight.sum())
    chosen = np.minimum(chosen, len(weight) - 1)
    index = np.stack(np.unravel_index(chosen, volume.shape), 1) + random.uniform(-0.5, 0.5, (n, 3))
    places = ((index - (shape - 1) / 2) * size)[:, ::-1]
    normals = slopes.reshape(3, -1).T[chosen][:, ::-1].astype(np.float64)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    anyway = random.normal(size=(n, 3))
    normals = np.where(lengths > 1e-9, normals, anyway)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.ascontiguousarray(places), normals, table[chosen, :3], extinction[chosen]


def _splats(
    places: NDArray[np.float64],
    normals: NDArray[np.float64],
    colours: NDArray[np.float64],
    extinctions: NDArray[np.float64],
    degree: int,
) -> Splats:
    """Return Gaussians of these colours, flat across the normals, as wide and opaque as their neighbours are far."""
    k = min(4, len(places))
    distances = np.asarray(KDTree(places).query(places, k)[0]).reshape(len(places), k)
    apart = np.maximum(distances[:, 1:].mean(1), 1e-3) if k > 1 else np.ones(1)
    scales = apart[:, None] * np.array([_SPREAD, _SPREAD, _FLAT])
    first = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.9, (1.0, 0, 0), (0, 1.0, 0)))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    axes = np.stack([first, np.cross(normals, first), normals], 2)  # (N, 3, 3), columns
    sh = np.zeros((len(places), spherical_harmonics.n_harmonics(degree), 3))
    sh[:, 0] = (_LIT * colours - 0.5) / spherical_harmonics.C0
    opacities = np.clip(-np.expm1(-extinctions * apart), *_OPACITIES)
    logits = np.log(opacities / (1 - opacities))
    quaternions = Rotation.from_matrix(axes).as_quat(scalar_first=True)
    return Splats(*(torch.tensor(a, dtype=torch.float32) for a in (places, np.log(scales), quaternions, logits, sh)))
