"""The layers that slices taken as matrices become; beside `layers`, the only module that knows their metadata."""

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

RANK, RESIDUAL, FINER, PREVIEW = "rank", "rank residual", "finer", "preview"
"""What the layers of a truncated image, of what it lacks, of a finer volume, and of what a model in training makes of a
slice are called after the source's name."""
_MODE, _EXPLAINED = "mode", "explained"


def mode_name(k: int) -> str:
    """Return what the layer of a mode, counted from 1, is called after the source's name."""
    return f"mode {k}"


def slab_placement(source: SourceVolume, axis: int | None, index: int) -> dict[str, Any]:
    """Return the layer arguments for one slice of a source, one voxel thick, or for all of it (`axis` None)."""
    return source.placement if axis is None else grid_placement(source.grid.slab(axis, index))


def rank_layers(
    source: SourceVolume, image: NDArray[Any], residual: NDArray[Any], placement: dict[str, Any], about: dict[str, Any]
) -> tuple[LayerData, LayerData]:
    """Return a truncated image and what it lacks as image layers "name · rank" and "name · rank residual".

    The first is in the source's contrast limits, the other in diverging colours.

    Parameters
    ----------
    image, residual : ndarray
        With the axes of the source.
    placement : dict
        Of `slab_placement`.
    about : dict
        What is worth remembering: the rank, of what.
    """
    entry = _entry(RANK, about)
    truncated = density_layer(source.name, np.asarray(image, np.float32), placement, source.limits, entry)
    lacking = np.asarray(residual, np.float32)
    rest = residual_layer(source.name, lacking, placement, residual_limit(lacking), _entry(RESIDUAL, about))
    return _named(truncated, f"{source.name} · {RANK}"), _named(rest, f"{source.name} · {RESIDUAL}")


def mode_layer(
    source: SourceVolume, k: int, image: NDArray[Any], placement: dict[str, Any], about: dict[str, Any]
) -> LayerData:
    """Return the image of rank one of mode k, counted from 1, as an image layer "name · mode k", diverging."""
    values = np.asarray(image, np.float32)
    limit = max(float(np.abs(values).max()), 1e-6)
    layer = residual_layer(source.name, values, placement, limit, _entry(_MODE, {"mode": k, **about}))
    return _named(layer, f"{source.name} · {mode_name(k)}", visible=True)


def super_resolved_layer(
    source: SourceVolume, finer: NDArray[np.float32], grid: Grid, about: dict[str, Any], kind: str = FINER
) -> LayerData:
    """Return a volume, or part of one, on a finer grid as an image layer "name · kind", in the source's limits."""
    layer = density_layer(source.name, finer, grid_placement(grid), source.limits, _entry(kind, about))
    return _named(layer, f"{source.name} · {kind}")


def inspection_layer(
    source: SourceVolume,
    what: str,
    image: NDArray[np.float32],
    placement: dict[str, Any],
    about: dict[str, Any],
    *,
    visible: bool = False,
) -> LayerData:
    """Return what explains a model on a slice, a gradient or its residual, as an image layer "name · what", diverging.

    Parameters
    ----------
    image : ndarray
        With the axes of the source; it may end before the slice does.
    placement : dict
        Of `slab_placement`.
    """
    entry = _entry(_EXPLAINED, {"what": what, **about})
    layer = residual_layer(source.name, image, placement, residual_limit(image), entry)
    return _named(layer, f"{source.name} · {what}", visible=visible)


def is_part_of_svd(layer: Layer) -> bool:
    """Whether a layer is what a slice became, as a truncated image, a mode or a preview, and is none itself."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and entry.get("svd") in (RANK, RESIDUAL, _MODE, PREVIEW, _EXPLAINED)


def _entry(kind: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"svd": kind, **about}


def _named(layer: LayerData, name: str, **options: Any) -> LayerData:
    array, given, kind = layer
    return array, {**given, "name": name, **options}, kind
