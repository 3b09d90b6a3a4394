"""Layers of the SVD widget: truncated images, modes, super-resolved volumes, inspections; and their metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray

from ...grid import Grid
from .conversion import (
    METADATA_KEY,
    LayerData,
    SourceVolume,
    density_layer,
    grid_placement,
    residual_layer,
    residual_limit,
)

RANK, RESIDUAL, SUPER_RESOLVED, PREVIEW = "rank", "rank residual", "super-resolved", "preview"
"""Names, after that of the source, of layers: truncated image, its residual, super-resolved volume, and preview during
a training."""
_MODE, _INSPECTION = "mode", "inspection"


def mode_name(k: int) -> str:
    """Return the name, after that of the source, of the layer of a mode, counted from 1."""
    return f"mode {k}"


def slab_placement(source: SourceVolume, axis: int | None, index: int) -> dict[str, Any]:
    """Return the layer arguments for one slice of a source, one voxel thick, or for all of it (`axis` None)."""
    return source.placement if axis is None else grid_placement(source.grid.slab(axis, index))


def rank_layers(
    source: SourceVolume, image: NDArray[Any], residual: NDArray[Any], placement: dict[str, Any], about: dict[str, Any]
) -> tuple[LayerData, LayerData]:
    """Return a truncated image and its residual as image layers "name · rank" and "name · rank residual".

    The first has the contrast limits of the source, the other diverging colours.

    Parameters
    ----------
    image, residual : ndarray
        Arrays with the axes of the source.
    placement : dict
        Layer arguments from `slab_placement`.
    about : dict
        Metadata: rank, matrix.
    """
    entry = _entry(RANK, about)
    truncated = density_layer(source.name, np.asarray(image, np.float32), placement, source.limits, entry)
    difference = np.asarray(residual, np.float32)
    limit = residual_limit(difference)
    rest = residual_layer(source.name, difference, placement, limit, _entry(RESIDUAL, about))
    return _named(truncated, f"{source.name} · {RANK}"), _named(rest, f"{source.name} · {RESIDUAL}")


def mode_layer(
    source: SourceVolume, k: int, image: NDArray[Any], placement: dict[str, Any], about: dict[str, Any]
) -> LayerData:
    """Return the rank-1 image of mode k, counted from 1, as an image layer "name · mode k" in diverging colours."""
    values = np.asarray(image, np.float32)
    limit = max(float(np.abs(values).max()), 1e-6)
    layer = residual_layer(source.name, values, placement, limit, _entry(_MODE, {"mode": k, **about}))
    return _named(layer, f"{source.name} · {mode_name(k)}", visible=True)


def super_resolved_layer(
    source: SourceVolume, volume: NDArray[np.float32], grid: Grid, about: dict[str, Any], kind: str = SUPER_RESOLVED
) -> LayerData:
    """Return a volume on a fine grid as an image layer "name · kind" with the contrast limits of the source."""
    layer = density_layer(source.name, volume, grid_placement(grid), source.limits, _entry(kind, about))
    return _named(layer, f"{source.name} · {kind}")


def inspection_layer(
    source: SourceVolume,
    content: str,
    image: NDArray[np.float32],
    placement: dict[str, Any],
    about: dict[str, Any],
    *,
    visible: bool = False,
) -> LayerData:
    """Return a loss gradient or residual of a slice as an image layer "name · content" in diverging colours.

    Parameters
    ----------
    image : ndarray
        Array with the axes of the source; it may be smaller than the slice.
    placement : dict
        Layer arguments from `slab_placement`.
    """
    entry = _entry(_INSPECTION, {"content": content, **about})
    layer = residual_layer(source.name, image, placement, residual_limit(image), entry)
    return _named(layer, f"{source.name} · {content}", visible=visible)


def is_part_of_svd(layer: Layer) -> bool:
    """Whether a layer shows a result for a slice: truncated image, mode, preview or inspection."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and entry.get("svd") in (RANK, RESIDUAL, _MODE, PREVIEW, _INSPECTION)


def _entry(kind: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"svd": kind, **about}


def _named(layer: LayerData, name: str, **options: Any) -> LayerData:
    array, given, kind = layer
    return array, {**given, "name": name, **options}, kind
