"""Viewer layers of an explanation: concept maps, selections, patches and counterfactuals."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import Colormap, DirectLabelColormap
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

SELECTED, WHAT_IF, CHANGE, PATCHES = "selected", "what if", "what if change", "patches"
"""Suffixes of layer names: selected samples, edited output, its change, and patches."""
_DIVERGING = Colormap(
    [[0, 0.45, 1, 1], [0.2, 0.6, 1, 0.6], [1, 1, 1, 0], [1, 0.5, 0.3, 0.6], [1, 0.15, 0, 1]],
    name="blue to red, clear at 0",
)


def concept_name(source: str, layer: str, mode: int) -> str:
    """Return the layer name of the map of a concept, counted from 1."""
    return f"{source} · {layer} · concept {mode}"


def concept_layer(
    source: SourceVolume, layer: str, mode: int, values: NDArray[np.float32], grid: Grid, about: dict[str, Any]
) -> LayerData:
    """Return the map of a concept, counted from 1, as a translucent image layer with diverging colours."""
    name = concept_name(source.name, layer, mode)
    shown = np.nan_to_num(values)  # transparent outside all inputs
    return _overlay(source, name, shown, grid, residual_limit(shown), _entry("concept", {"layer": layer, **about}))


def selected_layer(source: SourceVolume, labels: NDArray[np.uint8], grid: Grid) -> LayerData:
    """Return the selected voxels as a labels layer "name · selected"."""
    name = f"{source.name} · {SELECTED}"
    orange = DirectLabelColormap(color_dict={None: "orange", 0: "transparent", 1: "orange"})  # as in the plot
    options = {"name": name, **_placement(source, grid), "colormap": orange, "metadata": _entry(SELECTED, {})}
    return labels, options, "labels"


def patches_layer(source: SourceVolume, labels: NDArray[np.uint8], positive: int) -> LayerData:
    """Return patches, numbered from 1, as outlines "name · patches": the first `positive` red, the others blue."""
    last = max(1, int(labels.max()))
    colours: dict[int | None, str] = {n: "red" if n <= positive else "deepskyblue" for n in range(1, last + 1)}
    options = {
        "name": f"{source.name} · {PATCHES}",
        **source.placement,
        "opacity": 1.0,
        "colormap": DirectLabelColormap(color_dict={None: "transparent", **colours}),
        "metadata": _entry(PATCHES, {}),
    }
    return labels, options, "labels"


def what_if_layers(
    source: SourceVolume,
    image: NDArray[np.float32],
    change: NDArray[np.float32],
    grid: Grid,
    limits: tuple[float, float],
    limit: float,
    about: dict[str, Any],
) -> tuple[LayerData, LayerData]:
    """Return an edited output and its change as image layers "name · what if" and "name · what if change"."""
    placement = grid_placement(grid)
    array, options, kind = density_layer(source.name, np.nan_to_num(image), placement, limits, {})
    output = array, options | {"name": f"{source.name} · {WHAT_IF}", "metadata": _entry(WHAT_IF, about)}, kind
    array, options, kind = residual_layer(source.name, np.nan_to_num(change), placement, limit, {})
    name = f"{source.name} · {CHANGE}"
    return output, (array, options | {"name": name, "visible": True, "metadata": _entry(CHANGE, about)}, kind)


def is_part_of_explanation(layer: Layer) -> bool:
    """Return True for layers of an explanation, which are not explained themselves."""
    entry = layer.metadata.get(METADATA_KEY)
    return isinstance(entry, dict) and "explain" in entry


def _overlay(
    source: SourceVolume, name: str, values: NDArray[np.float32], grid: Grid, limit: float, metadata: dict[str, Any]
) -> LayerData:
    array, options, kind = residual_layer(source.name, values, _placement(source, grid), limit, {})
    look = {"name": name, "visible": True, "colormap": _DIVERGING, "blending": "translucent", "metadata": metadata}
    return array, options | look, kind


def _placement(source: SourceVolume, grid: Grid) -> dict[str, Any]:
    return source.placement if grid.shape == source.grid.shape else grid_placement(grid)


def _entry(kind: str, about: dict[str, Any]) -> dict[str, Any]:
    return {METADATA_KEY: {"explain": kind, **about}}
