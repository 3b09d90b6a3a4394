"""Conversion of napari layers to arrays and grids, and back; access to the metadata of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from napari.components import LayerList
from napari.layers import Image, Labels, Layer
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...grid import Grid
from ...tomography.scan import Mode

METADATA_KEY = "napari_gsvolume"
PROJECTION_KINDS: dict[Mode, str] = {"xray": "X-rays", "mip": "MIP", "minip": "minIP", "mean": "means"}
"""Titles of projections in names of layers."""
_DIVERGING = "RdBu_r"

LayerData = tuple[Any, dict[str, Any], str]


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """One 2D or 3D volume of an image layer, not yet loaded.

    Attributes
    ----------
    name : str
        Name of the layer.
    array : array_like
        Array ``(Z, Y, X)`` or ``(Y, X)``, possibly lazy (dask): `numpy.asarray` loads this volume only.
    grid : Grid
        Grid of the voxels in the world of the layer.
    placement : dict
        Layer arguments that put the same voxels at the position of the source.
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
        If the layer is RGB, has an unsuitable number of axes, or has no such time point or level.
    """
    if layer.rgb:
        raise InputError(
            f"'{layer.name}' is an RGB image: split its channels (right-click the layer, Split RGB) "
            "and choose one of them."
        )
    shapes = level_shapes(layer)
    if not 0 <= level < len(shapes):
        raise InputError(f"'{layer.name}' has {len(shapes)} levels; there is no level {level}.")
    array, shape = (layer.data[level] if layer.multiscale else layer.data), shapes[level]
    if len(shape) not in (2, 3, 4):
        raise InputError(f"'{layer.name}' has {len(shape)} axes; a fit needs 2 or 3, or 4 with a time point.")
    if len(shape) == 4:
        if time_point is None:
            raise InputError(f"'{layer.name}' has four axes: choose one of its {shape[0]} time points, or all.")
        if not 0 <= time_point < shape[0]:
            raise InputError(f"'{layer.name}' has {shape[0]} time points; there is no {time_point}.")
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
    # The affine of the layer, from its public map: images of the origin and of a step along each axis.
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
    # Voxels of a level are blocks of the finest voxels: their centres are the centres of the blocks.
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
    """Return the layer arguments that place the voxels of a grid in the world."""
    place: dict[str, Any] = {"units": grid.units, "axis_labels": grid.axis_labels}
    matrix = grid.affine[:-1, :-1]
    if np.array_equal(matrix, np.diag(np.diag(matrix))) and (np.diag(matrix) > 0).all():
        # Scale and translate where they suffice: napari's own widgets show and edit them.
        return {"scale": tuple(np.diag(matrix)), "translate": tuple(grid.affine[:-1, -1]), **place}
    return {"affine": np.array(grid.affine), **place}


def series_placement(layer: Image, grid: Grid) -> dict[str, Any]:
    """Return the layer arguments of a ``(T, Z, Y, X)`` array of volumes on `grid`, with the time axis of `layer`."""
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
    """Return the sum of the Gaussians as an image layer "name · density", with the contrast limits of the source."""
    options = {"name": f"{name} · density", "contrast_limits": limits, "colormap": "gray", "blending": "translucent"}
    return density, {**options, **placement, "rgb": False, "metadata": {METADATA_KEY: metadata}}, "image"


def residual_layer(
    name: str, residual: NDArray[np.float32], placement: dict[str, Any], limit: float, metadata: dict[str, Any]
) -> LayerData:
    """Return the residual as an image layer "name · residual", with diverging colours from -limit to `limit`."""
    options = {"name": f"{name} · residual", "contrast_limits": (-limit, limit), "colormap": _DIVERGING}
    return (
        residual,
        {**options, **placement, "rgb": False, "visible": False, "metadata": {METADATA_KEY: metadata}},
        "image",
    )


def layer_colours(layer: Image) -> tuple[NDArray[np.float64], tuple[float, float], float]:
    """Return 256 evenly spaced colours of a layer's colormap, ``(256, 4)``, its contrast limits and its gamma."""
    low, high = (float(v) for v in layer.contrast_limits)
    return np.clip(layer.colormap.map(np.linspace(0, 1, 256)), 0, 1).astype(float), (low, high), float(layer.gamma)


def label_array(layer: Labels, grid: Grid) -> NDArray[np.generic]:
    """Return a copy of the labels of a grid's voxels; raise ValueError if the layer has another shape."""
    labels = layer.data[0] if layer.multiscale else layer.data
    if tuple(labels.shape) != grid.shape:
        raise InputError(
            f"The labels '{layer.name}' have {' x '.join(map(str, labels.shape))} voxels, the image has "
            f"{' x '.join(map(str, grid.shape))}; choose labels of the same shape."
        )
    return np.array(labels)


def value_limits(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the smallest and the largest value as contrast limits, never equal."""
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1e-6


def find_earlier_layer(layers: LayerList, name: str, study: str | None = None) -> Layer | None:
    """Return the layer `name` of an earlier fit or, if given, of an earlier `study`; None if there is none.

    If a layer of other origin has the name, napari has numbered the layer of the fit: "name [1]".
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
    """Return a symmetric contrast limit: the 99.5th percentile of the absolute residual."""
    sample = residual.reshape(-1)[:: max(1, residual.size // 200_000)]
    sample = np.abs(sample[np.isfinite(sample)])
    return max(float(np.percentile(sample, 99.5)) if len(sample) else 0.0, 1e-6)
