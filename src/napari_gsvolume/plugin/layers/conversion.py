"""napari layers to arrays and grids, and back. The only module that reads or writes layer metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.components import LayerList
from napari.layers import Image, Labels, Layer
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...grid import Grid
from ...tomography.scan import Mode

if TYPE_CHECKING:
    pass

METADATA_KEY = "napari_gsvolume"
PROJECTION_KINDS: dict[Mode, str] = {"xray": "X-rays", "mip": "MIP", "minip": "minIP", "mean": "means"}
"""What layers of projections are called."""
_DIVERGING = "RdBu_r"

LayerData = tuple[Any, dict[str, Any], str]


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


def layer_colours(layer: Image) -> tuple[NDArray[np.float64], tuple[float, float], float]:
    """Return the colours of a layer's colormap, evenly spread, ``(n, 4)``, its contrast limits and its gamma."""
    low, high = (float(v) for v in layer.contrast_limits)
    return np.clip(layer.colormap.map(np.linspace(0, 1, 256)), 0, 1).astype(float), (low, high), float(layer.gamma)


def label_array(layer: Labels, grid: Grid) -> NDArray[np.generic]:
    """Return a copy of the labels of a grid's voxels; raise ValueError if the layer has others."""
    labels = layer.data[0] if layer.multiscale else layer.data
    if tuple(labels.shape) != grid.shape:
        raise InputError(
            f"The labels '{layer.name}' have {' x '.join(map(str, labels.shape))} voxels, the image has "
            f"{' x '.join(map(str, grid.shape))}; they have to be of the same."
        )
    return np.array(labels)


def _value_limits(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1e-6


def find_earlier_layer(layers: LayerList, name: str, study: str | None = None) -> Layer | None:
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
