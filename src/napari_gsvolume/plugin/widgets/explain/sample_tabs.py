"""Tabs of the Explain widget about one layer: singular values and samples; and the state that all tabs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from magicgui.widgets import ComboBox, Container, SpinBox
from napari.layers import Labels, Layer
from napari.viewer import Viewer
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QLabel

from ....explain.concepts.sample_positions import SamplePositions, locate_samples
from ....explain.decomposition.components import Components
from ....explain.explanation import layer_metrics
from ....explain.models.inputs import Place
from ...layers.conversion import find_earlier_layer
from ...layers.explanation import SELECTED, selected_layer
from ..shared.dims import index_at
from ..shared.layer_choice import LayerChoice
from ..shared.layer_updater import LayerUpdater
from ..shared.tabs import Tab
from .plots import LayerPlot, SamplesPlot
from .worker import ExplainedImages, place_at


class Stage:
    """State that the tabs share: viewer, explanation, and the selected layer and concept.

    Attributes
    ----------
    explained : ExplainedImages or None
    layer : str
    mode : int
        Number of the concept, from 1.

    Parameters
    ----------
    viewer : napari.Viewer
    say, start : callable
        Show a message; start a run, unless one is in progress.
    """

    def __init__(self, viewer: Viewer, say: Callable[..., None], start: Callable[..., None]) -> None:
        self.viewer, self.say, self.start = viewer, say, start
        self.explained: ExplainedImages | None = None
        self.layer = ""
        self.mode = 1

    @property
    def decomposition(self) -> Components | None:
        """Decomposition of the layer, if it has any modes."""
        d = None if self.explained is None else self.explained.explanation.layers.get(self.layer)
        return d if d is not None and d.k else None

    def failed(self, error: Exception) -> None:
        """Show an error of a background task."""
        known = isinstance(error, ValueError | MemoryError | OSError)
        self.say(str(error) if known else f"This failed, please report it: {error or type(error).__name__}")

    def place(self) -> Place:
        """Return the location of the input of the first image in the viewer; raise InputError if there is none."""
        assert self.explained is not None
        images, grid = self.explained.explanation.images, self.explained.sources[0].grid
        across = images.layout.across
        index = None
        if across is not None:
            index = index_at(self.viewer, grid, across) if grid.ndim == 3 else 0
        centre = np.array([0.0] * (3 - grid.ndim) + [(n - 1) / 2 for n in grid.shape])
        return place_at(images, 0, index, centre)


class SpectraTab(Tab):
    """Singular values and metrics of the layer."""

    def __init__(self, stage: Stage, on_mode: Callable[[int], None]) -> None:
        self._stage = stage
        self.plot = LayerPlot(stage.viewer, lambda x: on_mode(round(x)))
        self.metrics = QLabel("")
        self.metrics.setWordWrap(True)
        super().__init__(self.plot, self.metrics)

    def renew(self) -> None:
        """Draw the layer."""
        stage = self._stage
        d = stage.decomposition
        others = () if stage.explained is None else tuple(stage.explained.explanation.layers.values())
        self.plot.show_layer(d, min(stage.mode, d.k) if d else 1, others)
        self.metrics.setText("" if d is None else _describe_metrics(d))

    def mark(self) -> None:
        """Mark the concept."""
        self.plot.mark(self._stage.mode)


class SamplesTab(Tab):
    """Samples of the layer along two concepts; a lasso marks their voxels, and labelled voxels mark samples.

    Attributes
    ----------
    other : SpinBox
        Concept along the vertical axis.
    colour : ComboBox
    labels : LayerChoice
        Labels layer that marks samples; that of the selection if none is chosen.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.other = SpinBox(label="Vertical axis", min=1, max=1, value=1, tooltip="Concept along the vertical axis")
        self.colour = ComboBox(
            label="Colours", choices=["density", "image"], tooltip="Colour by the density of samples, or by image"
        )
        self.labels = LayerChoice(
            stage.viewer,
            "Marked by",
            lambda layer: isinstance(layer, Labels),
            "Labels layer that marks the samples under its labels, also while you paint",
            none="selection",
        )
        self._rows: Container[Any] = Container(widgets=[self.other, self.colour, self.labels])
        self._rows.margins = (0, 0, 0, 0)
        self.plot = SamplesPlot(stage.viewer, self.select)
        self.message = QLabel("")
        self.message.setWordWrap(True)
        super().__init__(self._rows.native, self.plot, self.message)
        self._at: dict[int, SamplePositions] = {}
        self._of: Components | None = None
        self._watched: Layer | None = None
        self._own: dict[int, Any] = {}
        self._painted = False  # True if the layers of the selection hold other labels
        self._soon = QTimer(self)  # napari emits its event before it paints
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._show_painted)
        self.chosen: NDArray[Any] = np.empty(0, np.uint8)
        self.other.changed.connect(self._draw)
        self.colour.changed.connect(self._draw)
        self.labels.changed.connect(self._on_labels)
        stage.viewer.cursor.events.position.connect(self._on_cursor)

    def leave(self) -> None:
        """Disconnect from the viewer."""
        self._stage.viewer.cursor.events.position.disconnect(self._on_cursor)
        self._watch(None)

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers."""
        self._rows.reset_choices()

    def renew(self) -> None:
        """Draw the samples of the layer."""
        d = self._stage.decomposition
        if d is not self._of:
            self._of, self._at = d, {}
            self.chosen = np.zeros(0 if d is None else d.samples, np.uint8)
            if d is not None:
                with self.other.changed.blocked():
                    self.other.max = d.k
                    self.other.value = min(2, d.k) if self._stage.mode == 1 else 1
        self._rows.enabled = d is not None
        self._draw()

    def _draw(self, *_: Any) -> None:
        d, explained = self._of, self._stage.explained
        if d is None or explained is None:
            self.plot.show_samples(None, ("", ""))
            self.message.setText("")
            return
        modes = [min(self._stage.mode, d.k) - 1, min(int(self.other.value), d.k) - 1]
        points = d.scores[:, modes] * d.values[modes]
        groups = None
        names = [volume.name for volume in explained.explanation.images.volumes]
        if self.colour.value == "image" and d.places is not None and (d.places.inputs >= 0).all():
            volume_of = np.array([place.volume for place in explained.explanation.images.places])
            groups = volume_of[d.places.input]
        self.plot.show_samples(points, (f"concept {modes[0] + 1}", f"concept {modes[1] + 1}"), groups, names)
        self.message.setText(f"{d.samples:,} samples. Circle some to mark their voxels, or move over the image.")
        if self.chosen.any():
            self.plot.mark(self.chosen)

    def positions(self, volume: int) -> SamplePositions | None:
        """Return the voxels of the samples in an image; None without any."""
        explained = self._stage.explained
        if self._of is None or explained is None:
            return None
        if volume not in self._at:
            try:
                self._at[volume] = locate_samples(self._of, explained.explanation.images, volume)
            except ValueError:
                return None
        return self._at[volume]

    # From the plot to the viewer --------------------------------------------------------------------------------------

    def select(self, mask: NDArray[np.bool_]) -> None:
        """Mark samples in the plot, and their voxels in a layer for each image."""
        explained = self._stage.explained
        if explained is None or self._of is None:
            return
        self.chosen = mask.astype(np.uint8)
        self.plot.mark(self.chosen)
        marked = ""
        for volume, source in enumerate(explained.sources):
            at = self.positions(volume)
            if at is None:
                continue
            marked = marked or f"Their voxels are marked in '{source.name} · {SELECTED}'."
            layer = self._selected(volume, at)
            at.mark(layer.data, self.chosen)
            layer.refresh()
        self._painted = False
        self._soon.stop()  # caused by this method
        count = int(mask.sum())
        where = marked or "They have no location in the image."
        self.message.setText(f"{count:,} of {len(mask):,} samples selected. {where}")

    def _selected(self, volume: int, at: SamplePositions) -> Any:
        """Return the layer of the selection in an image, created if missing."""
        assert self._stage.explained is not None
        source, viewer = self._stage.explained.sources[volume], self._stage.viewer
        shape = at.samples.shape
        own: Any = self._own.get(volume)
        if own is None or own not in viewer.layers or own.data.shape != shape:
            shown = LayerUpdater(viewer, {SELECTED: find_earlier_layer(viewer.layers, f"{source.name} · {SELECTED}")})
            shown.put(SELECTED, selected_layer(source, np.zeros(shape, np.uint8), at.grid))
            own = self._own[volume] = shown.layers[SELECTED]
            if self.labels.value is None:
                self._watch(self._own.get(0))
        elif self._painted:
            own.data[...] = 0  # also outside the samples
        return own

    # From the viewer to the plot --------------------------------------------------------------------------------------

    def _on_labels(self, layer: Layer | None) -> None:
        self._watch(layer if layer is not None else self._own.get(0))
        if layer is not None:
            self._on_painted()

    def _watch(self, layer: Layer | None) -> None:
        if self._watched is not None:
            for event in (self._watched.events.paint, self._watched.events.data):
                event.disconnect(self._on_painted)
        self._watched = layer
        if layer is not None:
            for event in (layer.events.paint, layer.events.data):
                event.connect(self._on_painted)

    def _on_painted(self, *_: Any) -> None:
        self._soon.start(0)

    def _show_painted(self) -> None:
        """Mark the samples under the labels."""
        layer: Any = self._watched
        at = self.positions(0)
        if layer is None or at is None or self._of is None or not self.isVisible():
            return
        labels, source = np.asarray(layer.data), self._stage.explained.sources[0]  # type: ignore[union-attr]
        if labels.shape not in (source.grid.shape, at.samples.shape):
            self.message.setText(f"'{layer.name}' and '{source.name}' differ in shape, so no samples are marked.")
            return
        found = at.sample_labels(labels, self._of.samples)
        numbers = np.unique(found)
        colours = np.zeros((int(numbers.max()) + 1, 3)) if numbers.max() < 2**16 else None
        if colours is not None:
            for number in numbers[numbers > 0]:
                colours[number] = layer.get_color(int(number))[:3]
        self.chosen, self._painted = found, True
        self.plot.mark(found, colours)
        self.message.setText(f"{np.count_nonzero(found):,} of {len(found):,} samples lie under '{layer.name}'.")

    def _on_cursor(self, *_: Any) -> None:
        """Draw a ring around the sample under the cursor."""
        if not self.isVisible() or self._of is None:
            return
        at = self.positions(0)
        if at is not None:
            world = np.asarray(self._stage.viewer.cursor.position[-at.grid.ndim :], dtype=float)
            self.plot.point_at(at.at(world) if len(world) == at.grid.ndim else None)


def _describe_metrics(d: Components) -> str:
    f = layer_metrics(d)
    about = "" if f["complete"] else "at least "
    return (
        f"{d.layer}: {d.features:,} features, {d.samples:,} samples; effective rank {about}{f['effective_rank']:.2f}, "
        f"stable rank {f['stable_rank']:.2f}, participation ratio {f['participation_ratio']:.2f}; the first "
        f"{d.k} concepts hold {100 * f['energy']:.1f} % of the energy."
    )
