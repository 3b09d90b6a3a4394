"""Layers that a run adds once and then updates in place."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import numpy as np
from napari.layers import Image, Labels, Layer, Points, Surface
from napari.viewer import Viewer

from ...layers.conversion import LayerData

Key = TypeVar("Key", bound=Hashable)
_CLASSES = {"image": Image, "labels": Labels, "surface": Surface, "points": Points}


class LayerUpdater(Generic[Key]):
    """Layers of one run in a viewer.

    Attributes
    ----------
    layers : dict
        Layers by content; the user may have removed some of them from the viewer since.

    Parameters
    ----------
    viewer : napari.Viewer
    earlier : dict, optional
        Layers of an earlier run, which this run updates in place.
    """

    def __init__(self, viewer: Viewer, earlier: dict[Key, Layer | None] | None = None) -> None:
        self._viewer = viewer
        self.layers: dict[Key, Layer] = {key: layer for key, layer in (earlier or {}).items() if layer is not None}
        self._placed: set[Key] = set()

    def put(self, key: Key, data: LayerData) -> bool:
        """Add a layer, or update it in place; one that the user removed during this run stays away.

        Returns
        -------
        bool
            True if a layer was added.
        """
        array, options, layer_type = data
        layer = self.layers.get(key)
        if layer is not None:
            if layer not in self._viewer.layers:
                return False
            if key not in self._placed:
                _place(layer, options)  # the source may have moved, or be another level
        self._placed.add(key)
        if layer is not None and _update(layer, array, options, layer_type):
            return False
        self.forget(key)
        selected = set(self._viewer.layers.selection)
        self.layers[key] = self._viewer.add_layer(Layer.create(array, options, layer_type))
        self._viewer.layers.selection = selected  # keeps the layer controls that the user sees
        return True

    def forget(self, *keys: Key) -> None:
        """Remove layers that this run will not update."""
        for key in keys:
            layer = self.layers.pop(key, None)
            if layer is not None and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)


def _place(layer: Layer, options: dict[str, Any]) -> None:
    """Move a layer to the position in its options."""
    n = layer.ndim
    nowhere = {
        "scale": np.ones(n),
        "translate": np.zeros(n),
        "rotate": np.eye(n),
        "shear": np.zeros(n * (n - 1) // 2),
        "affine": np.eye(n + 1),
    }
    for name, default in nowhere.items():
        value = options.get(name, default)
        if len(value) == len(default):  # otherwise the layer has another number of axes, and is replaced
            setattr(layer, name, value)
    if len(options["units"]) == n:
        layer.units, layer.axis_labels = options["units"], options["axis_labels"]


def _update(layer: Layer, data: Any, options: dict[str, Any], layer_type: str) -> bool:
    """Give a layer new data of the same kind and shape; return False if it cannot take them."""
    if layer_type not in _CLASSES or not isinstance(layer, _CLASSES[layer_type]):
        return False
    if isinstance(layer, Image):
        if layer.data.shape != data.shape:
            return False
        layer.data = data
        layer.contrast_limits_range = options["contrast_limits"]
        layer.contrast_limits = options["contrast_limits"]
    elif isinstance(layer, Labels):
        if layer.data.shape != data.shape:
            return False
        layer.data = data
        if "colormap" in options:
            layer.colormap = options["colormap"]
    elif isinstance(layer, Surface):
        if layer.ndim != data[0].shape[1]:
            return False
        layer.data = data
        layer.features = options["features"]
    else:
        if layer.ndim != data.shape[1]:
            return False
        layer.data = data
        layer.features = options["features"]
        layer.size = options["size"]
        layer.refresh_colors()
    layer.metadata = options["metadata"]
    return True
