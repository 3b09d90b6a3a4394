"""Layers of Gaussians: ellipsoids and centres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...gaussians import GaussianVolume
from ..preferences import most_ellipsoids
from .conversion import METADATA_KEY, LayerData, SourceVolume, density_layer, grid_placement

_ELLIPSOID_SIGMAS = 1.0


def case_layer(
    source: SourceVolume, study: str, case: str, density: NDArray[np.float32], gaussians: GaussianVolume
) -> LayerData:
    """Return the result of a study's case as an image layer "name · case", with its Gaussians in the metadata."""
    _, options, kind = density_layer(source.name, density, source.placement, source.limits, {})
    own = {"name": f"{source.name} · {case}", "metadata": _case_metadata(study, case, gaussians)}
    return density, options | own, kind


def artefact_layer(
    source: SourceVolume, study: str, case: str, artefacts: NDArray[np.float32], gaussians: GaussianVolume
) -> LayerData:
    """Return a map of artefacts as a translucent image layer "name · case · artefacts"."""
    shown = artefacts[artefacts > 0]
    limit = float(np.percentile(shown, 99)) if shown.size else 1e-12  # squares: a few are far larger than the others
    look = {"contrast_limits": (0.0, limit), "colormap": "inferno", "blending": "additive"}
    options = {"name": f"{source.name} · {case} · artefacts", **look, **source.placement, "rgb": False}
    return artefacts, {**options, "metadata": _case_metadata(study, case, gaussians)}, "image"


def _case_metadata(study: str, case: str, gaussians: GaussianVolume) -> dict[str, Any]:
    metadata = _gaussian_metadata(gaussians)
    metadata[METADATA_KEY] |= {"study": study, "case": case}
    return metadata


def gaussian_layer(name: str, gaussians: GaussianVolume, placement: dict[str, Any] | None = None) -> LayerData:
    """Return Gaussians as a layer "name · gaussians".

    The layer is a surface of ellipsoids of one standard deviation, or points for more than `most_ellipsoids`. The
    features of each vertex or point are the parameters of its Gaussian. The `GaussianVolume` itself is in the metadata,
    so that the layer is saved without loss.
    """
    place = grid_placement(gaussians.grid) if placement is None else placement
    if len(gaussians) > most_ellipsoids() or not len(gaussians):
        return points_layer(name, gaussians, place, kind="gaussians")
    vertices, faces, owner = ellipsoids(gaussians)
    features = {key: values[owner] for key, values in gaussian_features(gaussians).items()}
    limit = _weight_limit(gaussians)
    data = (vertices, faces, gaussians.weights.numpy()[owner])
    # Red for positive, blue for negative weights, as in the residual.
    look = {"colormap": "coolwarm", "contrast_limits": (-limit, limit), "opacity": 0.7, "shading": "smooth"}
    options = {"name": f"{name} · gaussians", **place, **look, "features": features}
    return data, {**options, "metadata": _gaussian_metadata(gaussians)}, "surface"


def points_layer(name: str, gaussians: GaussianVolume, placement: dict[str, Any], kind: str = "centres") -> LayerData:
    """Return the centres of the Gaussians as a points layer, with their parameters as features."""
    features = gaussian_features(gaussians)
    limit = _weight_limit(gaussians)
    look: dict[str, Any] = {
        "size": np.clip(features["sigma_mean"], 0.5, None) if len(gaussians) else 1,
        "border_width": 0,
        "opacity": 0.7,
        "projection_mode": "rescale_spherical",  # a ball shows in all slices through it
    }
    if len(gaussians):
        look |= {"face_color": "weight", "face_colormap": "coolwarm", "face_contrast_limits": (-limit, limit)}
    options = {"name": f"{name} · {kind}", **placement, **look, "features": features}
    return gaussians.means.numpy(), {**options, "metadata": _gaussian_metadata(gaussians)}, "points"


def _gaussian_metadata(gaussians: GaussianVolume) -> dict[str, Any]:
    """Return the metadata in which `gaussians_of` finds the Gaussians."""
    return {METADATA_KEY: {"gaussians": gaussians, **gaussians.metadata}}


def _weight_limit(gaussians: GaussianVolume) -> float:
    weights = np.abs(gaussians.weights.numpy())
    return max(float(np.percentile(weights, 95)), 1e-6) if len(weights) else 1.0


def gaussian_features(gaussians: GaussianVolume) -> dict[str, NDArray[Any]]:
    """Return one column per parameter: index, weight, standard deviations (world units, largest first), their mean."""
    covariances = gaussians.covariances.double().numpy()
    A = gaussians.grid.affine[:-1, :-1]
    variances = np.linalg.eigvalsh(A @ covariances @ A.T)[:, ::-1] if len(gaussians) else np.zeros((0, gaussians.ndim))
    sigmas = np.sqrt(np.maximum(variances, 0))
    voxel = np.linalg.eigvalsh(covariances) if len(gaussians) else np.zeros((0, gaussians.ndim))
    return {
        "index": np.arange(len(gaussians)),
        "weight": gaussians.weights.numpy(),
        **{f"sigma_{axis + 1}": sigmas[:, axis].astype(np.float32) for axis in range(gaussians.ndim)},
        # In voxels: sizes of points are in the coordinates of the data.
        "sigma_mean": np.exp(np.log(np.maximum(voxel, 1e-12)).mean(1) / 2).astype(np.float32),
    }


def ellipsoids(gaussians: GaussianVolume) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the one-sigma surfaces of Gaussians as triangles.

    Returns
    -------
    vertices : ndarray, (V, D)
        Vertices in index coordinates.
    faces : ndarray, (F, 3)
        Indices of the vertices of each triangle.
    owner : ndarray, (V,)
        Index of the Gaussian of each vertex.
    """
    unit, triangles = _disc() if gaussians.ndim == 2 else _ball(2 if len(gaussians) <= 500 else 1)
    inverse = np.linalg.inv(gaussians.factors.double().numpy())  # x = mu + W^-T y
    vertices = np.einsum("nba,vb->nva", inverse, _ELLIPSOID_SIGMAS * unit) + gaussians.means.numpy()[:, None]
    n = len(gaussians)
    faces = triangles[None] + len(unit) * np.arange(n)[:, None, None]
    mirrored = np.linalg.det(inverse) < 0  # a reflection turns triangles inside out
    faces[mirrored] = faces[mirrored][:, :, ::-1]
    owner = np.repeat(np.arange(n), len(unit))
    return vertices.reshape(-1, gaussians.ndim).astype(np.float32), faces.reshape(-1, 3), owner


def _disc(corners: int = 24) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    rim = np.stack([np.sin(angles), np.cos(angles)], 1)
    i = np.arange(corners)
    return np.concatenate([[[0.0, 0.0]], rim]), np.stack([np.zeros_like(i), i + 1, (i + 1) % corners + 1], 1)


def _ball(subdivisions: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return a unit sphere: an octahedron with its triangles split in four `subdivisions` times."""
    vertices = [np.array(v, float) for v in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))]
    faces = [(a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5)]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}

        def between(i: int, j: int, middle: dict[tuple[int, int], int] = middle) -> int:
            key = (min(i, j), max(i, j))
            if key not in middle:
                point = vertices[i] + vertices[j]
                middle[key] = len(vertices)
                vertices.append(point / np.linalg.norm(point))
            return middle[key]

        split = []
        for a, b, c in faces:
            ab, bc, ca = between(a, b), between(b, c), between(c, a)
            split += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = split
    points, triangles = np.array(vertices), np.array(faces)
    # Orient all triangles with their normals outwards.
    normal = np.cross(
        points[triangles[:, 1]] - points[triangles[:, 0]], points[triangles[:, 2]] - points[triangles[:, 0]]
    )
    inwards = (normal * points[triangles].mean(1)).sum(1) < 0
    triangles[inwards] = triangles[inwards][:, ::-1]
    return points, triangles


def gaussians_of(metadata: dict[str, Any]) -> GaussianVolume | None:
    """Return the Gaussians in the metadata of a layer; None if there are none."""
    entry = metadata.get(METADATA_KEY)
    found = entry.get("gaussians") if isinstance(entry, dict) else None
    return found if isinstance(found, GaussianVolume) else None
