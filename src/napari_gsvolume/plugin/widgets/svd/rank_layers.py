"""Layers of the truncated image and its residual, updated with slice and rank."""

from __future__ import annotations

from typing import Any

from napari.layers import Layer
from napari.viewer import Viewer

from ...layers.conversion import LayerData, find_earlier_layer
from ...layers.svd import RANK, RESIDUAL, mode_layer, mode_name, rank_layers, slab_placement
from ..shared.layer_updater import LayerUpdater
from .slice_matrix import Matrix, MatrixAnalysis, RankApproximation


class RankLayers:
    """Layers that are added once and then updated; one that the user removes stays away until `restart`.

    Contrast limits are set when a layer is added; those that the user sets later are left as they are.

    Parameters
    ----------
    viewer : napari.Viewer
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._shown: LayerUpdater[str] | None = None
        self._matrix: Matrix | None = None
        self._limits: dict[str, tuple[float, float]] = {}  # last limits set here

    @property
    def exist(self) -> bool:
        """Whether there are layers that are updated."""
        layers = {} if self._shown is None else self._shown.layers
        return any(layer in self._viewer.layers for layer in layers.values())

    def restart(self) -> None:
        """Stop updating the present layers; the next image gets new ones, or existing ones of its own name."""
        self._shown = self._matrix = None

    def show(self, approximation: RankApproximation) -> None:
        """Show an image of a rank and its residual."""
        matrix = approximation.analysis.matrix
        source = matrix.source
        if self._shown is None:
            names = {kind: f"{source.name} · {kind}" for kind in (RANK, RESIDUAL)}
            self._shown = LayerUpdater(
                self._viewer, {kind: find_earlier_layer(self._viewer.layers, name) for kind, name in names.items()}
            )
            self._limits = {}
        elif matrix is not self._matrix:  # places them anew
            self._shown = LayerUpdater(self._viewer, dict(self._shown.layers))
        same, self._matrix = matrix is self._matrix, matrix
        placement = slab_placement(source, matrix.slab, matrix.index)
        about = {"rank": approximation.rank, **matrix_metadata(matrix)}
        both = rank_layers(source, approximation.image, approximation.residual, placement, about)
        for kind, data in zip((RANK, RESIDUAL), both, strict=True):
            self._put(self._shown, kind, data, same)

    def _put(self, shown: LayerUpdater[str], kind: str, data: LayerData, same: bool) -> None:
        layer: Any = shown.layers.get(kind)
        limits = tuple(data[1]["contrast_limits"])
        ours = layer is None or tuple(layer.contrast_limits) == self._limits.get(kind, limits)
        if same and layer in self._viewer.layers and layer.data.shape == data[0].shape:
            # Each move of a slider updates only this: the rest would take as long again.
            layer.data, layer.metadata = data[0], data[1]["metadata"]
            if ours and limits != tuple(layer.contrast_limits):
                layer.contrast_limits_range = layer.contrast_limits = limits
        else:
            kept = None if ours else (tuple(layer.contrast_limits_range), tuple(layer.contrast_limits))
            shown.put(kind, data)
            layer = shown.layers.get(kind)
            if layer is not None and kept is not None:
                layer.contrast_limits_range, layer.contrast_limits = kept
        if layer is not None and ours:
            self._limits[kind] = tuple(layer.contrast_limits)


def put_mode(viewer: Viewer, analysis: MatrixAnalysis, k: int) -> Layer | None:
    """Add the image of a mode, counted from 1, as a layer, or update the existing one."""
    matrix, name = analysis.matrix, f"{analysis.matrix.source.name} · {mode_name(k)}"
    shown = LayerUpdater(viewer, {name: find_earlier_layer(viewer.layers, name)})
    image = matrix.folded(analysis.decomposition.mode(k - 1))
    placement = slab_placement(matrix.source, matrix.slab, matrix.index)
    shown.put(name, mode_layer(matrix.source, k, image, placement, matrix_metadata(matrix)))
    return shown.layers.get(name)


def matrix_metadata(matrix: Matrix) -> dict[str, Any]:
    """Return the metadata of a matrix."""
    if matrix.flat:
        return {"of": "slice"}
    which = {"slice": matrix.index} if matrix.kind == "slice" else {}
    return {"of": matrix.kind, "axis": matrix.source.grid.axis_labels[matrix.axis], **which}
