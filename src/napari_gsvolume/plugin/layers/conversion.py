"""napari layers to arrays and grids, and back. The only module that reads or writes layer metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from napari.components import LayerList
from napari.layers import Image, Labels, Layer
from numpy.typing import ArrayLike, NDArray

from ...gaussians import GaussianVolume
from ...grid import Grid
from ...tomography.scan import Mode, Scan, voxel_size_mm

if TYPE_CHECKING:
    from ...rendering.cameras import Cameras
    from ...tomography.projections import Projections

METADATA_KEY = "napari_gsvolume"
PROJECTION_KINDS: dict[Mode, str] = {"xray": "X-rays", "mip": "MIP", "minip": "minIP", "mean": "means"}
"""What layers of projections are called."""
MOST_ELLIPSOIDS = 5000
"""More Gaussians than this are shown as points: a surface of them would make the viewer slow."""
_ELLIPSOID_SIGMAS = 1.0
_DIVERGING = "RdBu_r"

LayerData = tuple[Any, dict[str, Any], str]


class PictureFrame(Protocol):
    """Where pictures were taken."""

    @property
    def cameras(self) -> Cameras:
        """One for each picture."""

    @property
    def mirrored(self) -> bool:
        """Whether the pictures are the mirror images of what the cameras see."""

    @property
    def centre(self) -> tuple[float, float, float]:
        """What is in the middle of the picture, in the world's last three axes."""

    @property
    def pixel(self) -> float:
        """Side of a pixel there, in the unit of the world."""


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """One 2D or 3D volume of an image layer, not loaded yet.

    Attributes
    ----------
    name : str
        The layer's name.
    array : array_like
        ``(Z, Y, X)`` or ``(Y, X)``, maybe lazy (dask): `numpy.asarray` loads it, and only it.
    grid : Grid
        Its voxels in the layer's world.
    placement : dict
        Arguments that put a layer of the same voxels where the source is.
    limits : tuple of float
        Contrast limits of the source.
    """

    name: str
    array: ArrayLike
    grid: Grid
    placement: dict[str, Any]
    limits: tuple[float, float]


def level_shapes(layer: Image) -> list[tuple[int, ...]]:
    """Return the shape of each level of a multiscale layer, finest first; of an ordinary layer, its one shape."""
    return [tuple(level.shape) for level in layer.data] if layer.multiscale else [tuple(layer.data.shape)]


def source_volume(layer: Image, *, time_point: int | None = None, level: int = 0) -> SourceVolume:
    """Return a volume of an image layer.

    Parameters
    ----------
    layer : napari.layers.Image
        2D or 3D, or 4D with a time point.
    time_point : int, optional
        Position along the first axis of a 4D layer.
    level : int
        Level of a multiscale layer, 0 the finest.

    Raises
    ------
    ValueError
        If the layer is RGB, has an unsuitable number of axes, or lacks a time point or level.
    """
    if layer.rgb:
        raise ValueError(
            f"'{layer.name}' is an RGB image: split its channels (right-click the layer, Split RGB) "
            "and choose one of them."
        )
    shapes = level_shapes(layer)
    if not 0 <= level < len(shapes):
        raise ValueError(f"'{layer.name}' has {len(shapes)} levels; there is no level {level}.")
    array, shape = (layer.data[level] if layer.multiscale else layer.data), shapes[level]
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"'{layer.name}' has {len(shape)} axes; a fit needs 2 or 3, or 4 with a time point.")
    if len(shape) == 4:
        if time_point is None:
            raise ValueError(f"'{layer.name}' has four axes: choose one of its {shape[0]} time points, or all.")
        if not 0 <= time_point < shape[0]:
            raise ValueError(f"'{layer.name}' has {shape[0]} time points; there is no {time_point}.")
        array = array[time_point]
    ndim = min(len(shape), 3)
    grid = _grid(layer, shapes[0][-ndim:], shape[-ndim:])
    same_voxels = len(shape) <= 3 and level == 0
    placement = _copied_placement(layer) if same_voxels else grid_placement(grid)
    low, high = (float(v) for v in layer.contrast_limits)
    return SourceVolume(layer.name, array, grid, placement, (low, high))


def _grid(layer: Image, finest: Sequence[int], shape: Sequence[int]) -> Grid:
    """Return the grid of the last axes of a layer, with voxels of a level of `shape`."""
    ndim = len(shape)
    # What the layer does to its data, asked through its public map: the origin's and each axis's image.
    origin = np.zeros(layer.ndim)
    start = np.asarray(layer.data_to_world(origin), dtype=np.float64)
    affine = np.eye(ndim + 1)
    affine[:-1, -1] = start[-ndim:]
    for column, axis in enumerate(range(layer.ndim - ndim, layer.ndim)):
        step = origin.copy()
        step[axis] = 1
        affine[:-1, column] = (np.asarray(layer.data_to_world(step)) - start)[-ndim:]
    full = Grid(finest, affine, [str(u) for u in layer.units[-ndim:]], layer.axis_labels[-ndim:])
    if tuple(shape) == full.shape:
        return full
    # Voxels of a level are blocks of finest ones: their centres are the blocks' centres.
    factors = np.array(finest) / np.array(shape)
    to_finest = np.eye(ndim + 1)
    to_finest[:-1, :-1] = np.diag(factors)
    to_finest[:-1, -1] = (factors - 1) / 2
    return Grid(shape, full.affine @ to_finest, full.units, full.axis_labels)


def _copied_placement(layer: Layer) -> dict[str, Any]:
    return {
        "scale": tuple(layer.scale),
        "translate": tuple(layer.translate),
        "rotate": np.asarray(layer.rotate),
        "shear": np.asarray(layer.shear),
        "affine": np.asarray(layer.affine.affine_matrix),
        "units": tuple(str(u) for u in layer.units),
        "axis_labels": tuple(layer.axis_labels),
    }


def grid_placement(grid: Grid) -> dict[str, Any]:
    """Return the layer arguments that put the voxels of a grid in the world."""
    place: dict[str, Any] = {"units": grid.units, "axis_labels": grid.axis_labels}
    matrix = grid.affine[:-1, :-1]
    if np.array_equal(matrix, np.diag(np.diag(matrix))) and (np.diag(matrix) > 0).all():
        # The plain case in the plain words, which napari's own widgets show and edit.
        return {"scale": tuple(np.diag(matrix)), "translate": tuple(grid.affine[:-1, -1]), **place}
    return {"affine": np.array(grid.affine), **place}


def series_placement(layer: Image, grid: Grid) -> dict[str, Any]:
    """Return the layer arguments for a ``(T, Z, Y, X)`` array whose volumes lie on `grid`, in time like `layer`."""
    affine = np.eye(5)
    affine[1:, 1:] = grid.affine
    start = layer.data_to_world(np.zeros(4))[0]
    affine[0, 0], affine[0, 4] = layer.data_to_world(np.array([1.0, 0, 0, 0]))[0] - start, start
    return {
        "affine": affine,
        "units": (str(layer.units[0]), *grid.units),
        "axis_labels": (layer.axis_labels[0], *grid.axis_labels),
    }


def density_layer(
    name: str,
    density: NDArray[np.float32],
    placement: dict[str, Any],
    limits: tuple[float, float],
    metadata: dict[str, Any],
) -> LayerData:
    """Return f on the source's voxels as an image layer "name · density", in the source's contrast limits."""
    options = {"name": f"{name} · density", "contrast_limits": limits, "colormap": "gray", "blending": "translucent"}
    return density, {**options, **placement, "rgb": False, "metadata": {METADATA_KEY: metadata}}, "image"


def residual_layer(
    name: str, residual: NDArray[np.float32], placement: dict[str, Any], limit: float, metadata: dict[str, Any]
) -> LayerData:
    """Return source - f as an image layer "name · residual": diverging colours from -limit to `limit`."""
    options = {"name": f"{name} · residual", "contrast_limits": (-limit, limit), "colormap": _DIVERGING}
    return (
        residual,
        {**options, **placement, "rgb": False, "visible": False, "metadata": {METADATA_KEY: metadata}},
        "image",
    )


def recovered_layer(
    name: str, volume: NDArray[np.float32], grid: Grid, limits: tuple[float, float], metadata: dict[str, Any]
) -> LayerData:
    """Return a volume recovered on a grid as an image layer "name · recovered"."""
    _, options, kind = density_layer(name, volume, grid_placement(grid), limits, metadata)
    return volume, options | {"name": f"{name} · recovered"}, kind


def reprojected_layers(
    stack: SourceVolume, scan: Scan, reprojected: NDArray[np.float32], residual: NDArray[np.float32]
) -> tuple[LayerData, LayerData]:
    """Return what a recovered volume's projections are, and measured - reprojected, where the measured stack is.

    Image layers "name · reprojected", in the stack's contrast limits and with its geometry, and "name · projection
    residual", diverging.
    """
    _, options, kind = density_layer(
        stack.name, reprojected, stack.placement, stack.limits, _projection_metadata(scan, "xray")
    )
    again = reprojected, options | {"name": f"{stack.name} · reprojected"}, kind
    _, options, kind = residual_layer(stack.name, residual, stack.placement, residual_limit(residual), {})
    return again, (residual, options | {"name": f"{stack.name} · projection residual"}, kind)


def case_layer(
    source: SourceVolume, study: str, case: str, density: NDArray[np.float32], gaussians: GaussianVolume
) -> LayerData:
    """Return what a study's case came to as an image layer "name · case"; its Gaussians are in the metadata."""
    _, options, kind = density_layer(source.name, density, source.placement, source.limits, {})
    own = {"name": f"{source.name} · {case}", "metadata": _case_metadata(study, case, gaussians)}
    return density, options | own, kind


def artefact_layer(
    source: SourceVolume, study: str, case: str, artefacts: NDArray[np.float32], gaussians: GaussianVolume
) -> LayerData:
    """Return a map of artefacts as an image layer "name · case · artefacts", to be seen through."""
    shown = artefacts[artefacts > 0]
    limit = float(np.percentile(shown, 99)) if shown.size else 1e-12  # squares: a few are far larger than the others
    look = {"contrast_limits": (0.0, limit), "colormap": "inferno", "blending": "additive"}
    options = {"name": f"{source.name} · {case} · artefacts", **look, **source.placement, "rgb": False}
    return artefacts, {**options, "metadata": _case_metadata(study, case, gaussians)}, "image"


def projection_layer(name: str, projections: Projections, grid: Grid) -> LayerData:
    """Return a stack of views as an image layer "name · X-rays", around the middle of the voxels that it is of.

    Its axes are view, v and u. The views are spread over the extent of the voxels' first axis, so that they take all of
    the slider. The geometry is in the metadata (`scan_of`).
    """
    images, scan = projections.images, projections.scan
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    world = corners @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]
    mm = float((voxel_size_mm(grid) / grid.voxel_size)[0])  # a unit of the world
    pixel = np.linalg.norm([scan.v[0], scan.u[0]], axis=1) / mm
    scale = np.array([np.ptp(world[:, 0]) / len(images), *pixel])
    options = {
        "name": f"{name} · {PROJECTION_KINDS[projections.kind]}",
        "contrast_limits": _value_limits(images),
        "colormap": "gray",
        "scale": tuple(scale),
        "translate": tuple((world.min(0) + world.max(0)) / 2 - scale * (np.array(images.shape) - 1) / 2),
        "units": grid.units,
        "axis_labels": ("view", "v", "u"),
        "rgb": False,
    }
    return images, {**options, "metadata": {METADATA_KEY: _projection_metadata(scan, projections.kind)}}, "image"


def _projection_metadata(scan: Scan, kind: Mode) -> dict[str, Any]:
    return {"scan": scan.to_dict(), "kind": kind}


def scan_of(metadata: dict[str, Any]) -> Scan | None:
    """Return the geometry of the projections whose metadata this is; None if it has none."""
    entry = metadata.get(METADATA_KEY)
    found = entry.get("scan") if isinstance(entry, dict) else None
    return None if found is None else Scan.from_dict(found)


def projection_kind(metadata: dict[str, Any]) -> Mode:
    """Return what the pixels of projections are whose metadata this is; line integrals if it does not say."""
    entry = metadata.get(METADATA_KEY)
    kind: Mode = entry.get("kind", "xray") if isinstance(entry, dict) else "xray"
    return kind


def picture_layer(
    name: str,
    kind: str,
    images: NDArray[Any],
    seen: PictureFrame,
    units: Sequence[str],
    about: dict[str, Any],
) -> LayerData:
    """Return pictures of a volume as an image layer "name · kind", where the canvas showed what they show.

    Parameters
    ----------
    name : str
        Of the volume.
    kind : str
        "view", "turntable", "difference" or "DVR".
    images : ndarray, ([V,] H, W, 3), uint8, or ([V,] H, W), float32
        In colours or grey; of a difference the absolute values, which are shown as heat.
    seen : PictureFrame
        Where the pictures were taken.
    units : sequence of str
        Of the world's last three axes.
    about : dict
        What is worth remembering of how they were made: settings, metrics.
    """
    rgb = images.dtype == np.uint8
    shape = np.array(images.shape[:-1] if rgb else images.shape)
    n = len(shape)
    height = float(shape[-2] * seen.pixel)
    scale = np.array([height / shape[0], seen.pixel, seen.pixel])[-n:]  # the slider over views is as long
    limits = (0.0, 255.0) if rgb else (0.0, residual_limit(images)) if kind == "difference" else _value_limits(images)
    cameras = seen.cameras
    camera = {
        "matrices": cameras.matrices.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
        "size": list(cameras.size),
        "orthographic": cameras.orthographic,
        "mirrored": seen.mirrored,
    }
    options = {
        "name": f"{name} · {kind}",
        "contrast_limits": limits,
        **({} if rgb else {"colormap": "inferno" if kind == "difference" else "gray"}),
        "scale": tuple(scale),
        "translate": tuple(np.array(seen.centre)[-n:] - scale * (shape - 1) / 2),
        "units": tuple(units)[-n:],
        "axis_labels": ("view", "v", "u")[-n:],
        "rgb": rgb,
        "metadata": {METADATA_KEY: {"picture": kind, "camera": camera, **about}},
    }
    return images, options, "image"


def is_picture(layer: Layer) -> bool:
    """Whether a layer is pictures of a volume that this plugin took."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and "picture" in entry


def layer_colours(layer: Image) -> tuple[NDArray[np.float64], tuple[float, float], float]:
    """Return the colours of a layer's colormap, evenly spread, ``(n, 4)``, its contrast limits and its gamma."""
    low, high = (float(v) for v in layer.contrast_limits)
    return np.clip(layer.colormap.map(np.linspace(0, 1, 256)), 0, 1).astype(float), (low, high), float(layer.gamma)


def label_array(layer: Labels, grid: Grid) -> NDArray[np.generic]:
    """Return a copy of the labels of a grid's voxels; raise ValueError if the layer has others."""
    labels = layer.data[0] if layer.multiscale else layer.data
    if tuple(labels.shape) != grid.shape:
        raise ValueError(
            f"The labels '{layer.name}' have {' x '.join(map(str, labels.shape))} voxels, the image has "
            f"{' x '.join(map(str, grid.shape))}; they have to be of the same."
        )
    return np.array(labels)


def _value_limits(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1e-6


def _case_metadata(study: str, case: str, gaussians: GaussianVolume) -> dict[str, Any]:
    metadata = _gaussian_metadata(gaussians)
    metadata[METADATA_KEY] |= {"study": study, "case": case}
    return metadata


def made_before(layers: LayerList, name: str, study: str | None = None) -> Layer | None:
    """Return the layer `name` that an earlier fit or, if given, an earlier `study` made.

    Where another maker's layer has the name, napari has numbered ours: "name [1]".
    """
    for number in count():
        numbered = f"{name} [{number}]" if number else name
        if numbered not in layers:
            return None
        entry = layers[numbered].metadata.get(METADATA_KEY)
        if isinstance(entry, dict) and entry.get("study") == study:
            return layers[numbered]
    raise AssertionError("there are finitely many layers")


def residual_limit(residual: NDArray[np.float32]) -> float:
    """Return a symmetric contrast limit that all but the largest half percent of the residuals lie within."""
    sample = residual.reshape(-1)[:: max(1, residual.size // 200_000)]
    sample = np.abs(sample[np.isfinite(sample)])
    return max(float(np.percentile(sample, 99.5)) if len(sample) else 0.0, 1e-6)


def gaussian_layer(name: str, gaussians: GaussianVolume, placement: dict[str, Any] | None = None) -> LayerData:
    """Return Gaussians as a layer "name · gaussians".

    Ellipsoids of one standard deviation as a surface, or points where there are more than `MOST_ELLIPSOIDS`. Each
    vertex or point carries the parameters of its Gaussian as features; the `GaussianVolume` itself is in the
    metadata, so that saving the layer loses nothing.
    """
    place = grid_placement(gaussians.grid) if placement is None else placement
    if len(gaussians) > MOST_ELLIPSOIDS or not len(gaussians):
        return points_layer(name, gaussians, place, kind="gaussians")
    vertices, faces, owner = ellipsoids(gaussians)
    features = {key: values[owner] for key, values in gaussian_features(gaussians).items()}
    limit = _weight_limit(gaussians)
    data = (vertices, faces, gaussians.weights.numpy()[owner])
    # Red adds, blue takes away, as in the residual.
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
        "projection_mode": "rescale_spherical",  # a ball is seen in every slice it reaches into, cut to size
    }
    if len(gaussians):
        look |= {"face_color": "weight", "face_colormap": "coolwarm", "face_contrast_limits": (-limit, limit)}
    options = {"name": f"{name} · {kind}", **placement, **look, "features": features}
    return gaussians.means.numpy(), {**options, "metadata": _gaussian_metadata(gaussians)}, "points"


def _gaussian_metadata(gaussians: GaussianVolume) -> dict[str, Any]:
    """Return what `gaussians_of` finds the Gaussians by."""
    return {METADATA_KEY: {"gaussians": gaussians, **gaussians.metadata}}


def _weight_limit(gaussians: GaussianVolume) -> float:
    weights = np.abs(gaussians.weights.numpy())
    return max(float(np.percentile(weights, 95)), 1e-6) if len(weights) else 1.0


def gaussian_features(gaussians: GaussianVolume) -> dict[str, NDArray[Any]]:
    """Return a column a parameter: index, weight, standard deviations (world units, largest first), their mean."""
    covariances = gaussians.covariances.double().numpy()
    A = gaussians.grid.affine[:-1, :-1]
    variances = np.linalg.eigvalsh(A @ covariances @ A.T)[:, ::-1] if len(gaussians) else np.zeros((0, gaussians.ndim))
    sigmas = np.sqrt(np.maximum(variances, 0))
    voxel = np.linalg.eigvalsh(covariances) if len(gaussians) else np.zeros((0, gaussians.ndim))
    return {
        "index": np.arange(len(gaussians)),
        "weight": gaussians.weights.numpy(),
        **{f"sigma_{axis + 1}": sigmas[:, axis].astype(np.float32) for axis in range(gaussians.ndim)},
        # In voxels: sizes of points are in the data's coordinates.
        "sigma_mean": np.exp(np.log(np.maximum(voxel, 1e-12)).mean(1) / 2).astype(np.float32),
    }


def ellipsoids(gaussians: GaussianVolume) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the one-sigma surfaces of Gaussians as triangles.

    Returns
    -------
    vertices : ndarray, (V, D)
        In index coordinates.
    faces : ndarray, (F, 3)
    owner : ndarray, (V,)
        The Gaussian each vertex belongs to.
    """
    unit, triangles = _disc() if gaussians.ndim == 2 else _ball(2 if len(gaussians) <= 500 else 1)
    inverse = np.linalg.inv(gaussians.factors.double().numpy())  # x = mu + W^-T y
    vertices = np.einsum("nba,vb->nva", inverse, _ELLIPSOID_SIGMAS * unit) + gaussians.means.numpy()[:, None]
    n = len(gaussians)
    faces = triangles[None] + len(unit) * np.arange(n)[:, None, None]
    mirrored = np.linalg.det(inverse) < 0  # turns triangles inside out
    faces[mirrored] = faces[mirrored][:, :, ::-1]
    owner = np.repeat(np.arange(n), len(unit))
    return vertices.reshape(-1, gaussians.ndim).astype(np.float32), faces.reshape(-1, 3), owner


def _disc(corners: int = 24) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    rim = np.stack([np.sin(angles), np.cos(angles)], 1)
    i = np.arange(corners)
    return np.concatenate([[[0.0, 0.0]], rim]), np.stack([np.zeros_like(i), i + 1, (i + 1) % corners + 1], 1)


def _ball(subdivisions: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return an octahedron whose triangles are split in four `subdivisions` times, on the unit sphere."""
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
    # All triangles turn the same way, normals outwards.
    normal = np.cross(
        points[triangles[:, 1]] - points[triangles[:, 0]], points[triangles[:, 2]] - points[triangles[:, 0]]
    )
    inwards = (normal * points[triangles].mean(1)).sum(1) < 0
    triangles[inwards] = triangles[inwards][:, ::-1]
    return points, triangles


def gaussians_of(metadata: dict[str, Any]) -> GaussianVolume | None:
    """Return the Gaussians that a layer's metadata holds, if it is one of ours."""
    entry = metadata.get(METADATA_KEY)
    found = entry.get("gaussians") if isinstance(entry, dict) else None
    return found if isinstance(found, GaussianVolume) else None
