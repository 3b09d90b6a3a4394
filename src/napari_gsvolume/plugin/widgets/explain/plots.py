"""Plots of an explanation in the theme of napari: singular values, samples, patches, cosines, evolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.style as mplstyle
import numpy as np
from matplotlib import colormaps
from matplotlib.backend_bases import MouseButton
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.widgets import LassoSelector
from napari.viewer import Viewer
from numpy.typing import NDArray

from ....explain.concepts.patches import Patch
from ....explain.decomposition.components import Components
from ....explain.tracking.records import Evolution
from ..shared.plots import ENERGY_COLOR, MODE_COLOR, VALUE_COLOR, DockPlot, MarkedPlot, move_axis_right

_SELECTED = (1.0, 0.55, 0.1)
_CELLS = 240  # largest number along each axis of the plot of samples
_LINES = 12
_LEAST = 1e-6  # relative to the first singular value: smaller values are rounding errors


class LayerPlot(MarkedPlot):
    """Singular values of a layer (left axis) and their energy (right axis); a click selects a concept.

    Attributes
    ----------
    axes, energy : Axes
    """

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None]) -> None:
        super().__init__(viewer, on_click)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
            self.energy = self.axes.twinx()
        self._fit_in(180, 260)
        self.canvas.setToolTip("Click on a concept to select it")
        self.setVisible(False)

    def show_layer(self, components: Components | None, mode: int, others: Sequence[Components] = ()) -> None:
        """Draw the values of a layer, and faintly those of others, relative to the first; None hides the plot."""
        self.setVisible(components is not None and components.k > 0)
        if components is None or not components.k:
            return
        for axes in (self.axes, self.energy):
            axes.clear()
        self.axes.set_yscale("log")
        for other in others:
            if other.k:
                self._draw_values(other, color="gray", lw=0.6, alpha=0.5)
        values = self._draw_values(components, color=VALUE_COLOR, lw=1.3, marker=".", ms=4)
        self.energy.plot(
            np.arange(1, components.k + 1), components.energy, color=ENERGY_COLOR, lw=1.3, marker=".", ms=4
        )
        self.axes.set_xlim(0.5, min(len(values), 4 * components.k) + 0.5)
        self.axes.set_ylim(_LEAST, 2) if values[: 4 * components.k].min() < _LEAST else None
        self.axes.set_xlabel("concept")
        self.axes.set_ylabel("singular value / first", color=VALUE_COLOR)
        self.energy.set_ylabel("energy", color=ENERGY_COLOR)
        self.energy.set_ylim(0, 1.03)
        move_axis_right(self.energy)
        self.axes.yaxis.set_major_locator(LogLocator(numticks=5))
        self.axes.yaxis.set_minor_formatter(NullFormatter())
        self.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        self.energy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        self._style(self.axes, self.energy)
        self._marks = []
        self._shown = values
        [self.mode] = self.axes.plot([mode], [values[mode - 1]], "o", mfc="none", color=MODE_COLOR, ms=8, mew=1.5)
        self._add_mark(self.mode)
        self._draw_all()

    def _draw_values(self, components: Components, **look: Any) -> NDArray[Any]:
        values = components.spectrum / components.spectrum[0]
        self.axes.plot(np.arange(1, len(values) + 1), np.where(values > _LEAST, values, np.nan), **look)
        return np.asarray(values)

    def mark(self, mode: int) -> None:
        """Move the circle to a concept, counted from 1."""
        if self.isVisibleTo(self.parentWidget()) and self._marks:
            self.mode.set_data([mode], [self._shown[mode - 1]])
            self._move_marks()


class SamplesPlot(MarkedPlot):
    """Coordinates of up to 100,000 samples along two concepts; a lasso selects samples.

    Samples are counted in cells of about a pixel once, so that selections are drawn immediately.

    Attributes
    ----------
    axes : Axes
    points : ndarray, (samples, 2)
    picture, marked : AxesImage
        Images of all samples, and of the selected ones.
    """

    def __init__(self, viewer: Viewer, on_lasso: Callable[[NDArray[np.bool_]], None]) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
        self.points: NDArray[np.float64] = np.empty((0, 2))
        self._on_lasso = on_lasso
        self._cell = np.empty(0, np.int64)
        self._cells = 1
        self.picture: Any = None
        self.marked: Any = None
        self.cursor: Any = None
        self._lasso: Any = None
        self._fit_in(260, 420)
        self.canvas.setToolTip("Circle samples to mark their voxels")
        self.setVisible(False)

    def show_samples(
        self,
        points: NDArray[Any] | None,
        names: tuple[str, str],
        groups: NDArray[np.int64] | None = None,
        group_names: Sequence[str] = (),
    ) -> None:
        """Draw samples, (n, 2), coloured by group if groups are given; None hides the plot."""
        self.setVisible(points is not None)
        if points is None:
            return
        self.points = np.asarray(points, dtype=np.float64)
        n = len(points)
        self._cells = cells = int(np.clip(4 * np.sqrt(n), 60, _CELLS))
        low, high = self.points.min(0), self.points.max(0)
        margin = np.maximum(0.04 * (high - low), 1e-9)
        low, high = low - margin, high + margin
        column, row = np.clip((cells * (self.points - low) / (high - low)).astype(np.int64), 0, cells - 1).T
        self._cell = row * cells + column
        self.axes.clear()
        extent = (low[0], high[0], low[1], high[1])
        look: dict[str, Any] = {"origin": "lower", "extent": extent, "aspect": "auto", "interpolation": "nearest"}
        for place, line in ((self.axes.axhline, low[1] < 0 < high[1]), (self.axes.axvline, low[0] < 0 < high[0])):
            if line:
                place(0, color="gray", lw=0.6, alpha=0.6)
        self.picture = self.axes.imshow(self._coloured(groups, len(group_names)), **look)
        self.marked = self.axes.imshow(np.zeros((cells, cells, 4), np.float32), **look)
        [self.cursor] = self.axes.plot([], [], "o", mfc="none", color="white", mec="magenta", ms=9, mew=2)
        self.axes.set_xlim(low[0], high[0])
        self.axes.set_ylim(low[1], high[1])
        self.axes.set_xlabel(names[0])
        self.axes.set_ylabel(names[1])
        self.axes.xaxis.set_major_locator(MaxNLocator(5))
        self._style(self.axes)
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        self.axes.yaxis.label.set_color(colour)
        if groups is not None and len(group_names) > 1:
            for k, name in enumerate(group_names):
                self.axes.plot([], [], "s", color=colormaps["tab10"](k % 10), label=name)
            self.axes.legend(fontsize=7, frameon=False, labelcolor=colour, loc="best")
        self._marks = []
        for mark in (self.marked, self.cursor):
            self._add_mark(mark)
        if self._lasso is not None:  # its line was removed with the content of the axes
            self._lasso.disconnect_events()
        line = {"color": "white", "lw": 1.2}
        self._lasso = LassoSelector(self.axes, self._on_circled, useblit=True, button=MouseButton.LEFT, props=line)
        self._draw_all()

    def _coloured(self, groups: NDArray[np.int64] | None, count: int) -> NDArray[np.float32]:
        """Return the image of the samples: brightness by density; with groups, the mean of their colours."""
        cells = self._cells
        size = cells * cells
        counts = np.bincount(self._cell, minlength=size).reshape(cells, cells)
        part = np.log1p(counts) / np.log1p(max(1, counts.max()))
        if groups is None or count < 2:
            image = colormaps["viridis"](0.25 + 0.75 * part).astype(np.float32)
            image[..., 3] = counts > 0
            return np.asarray(image)
        image = np.zeros((cells, cells, 4), np.float32)
        for k in range(count):
            own = np.bincount(self._cell[groups == k], minlength=size).reshape(cells, cells)
            image[..., :3] += (own / np.maximum(counts, 1))[..., None] * np.array(colormaps["tab10"](k % 10)[:3])
        image[..., 3] = np.where(counts > 0, 0.35 + 0.65 * part, 0)
        return image

    def mark(self, labels: NDArray[Any], colours: NDArray[Any] | None = None) -> None:
        """Mark samples with non-zero labels: in orange, or in the colours, (labels, 3), of their labels."""
        if self.marked is None:
            return
        cells = self._cells
        image = np.zeros((cells * cells, 4), np.float32)
        marked = np.flatnonzero(labels)
        where = self._cell[marked]
        image[where] = (*_SELECTED, 1.0)
        if colours is not None:
            image[where, :3] = colours[labels[marked]]
        self.marked.set_data(image.reshape(cells, cells, 4))
        self._move()

    def point_at(self, sample: int | None) -> None:
        """Draw the ring around a sample; None removes it."""
        if self.cursor is not None:
            x, y = ([], []) if sample is None else self.points[sample][:, None]
            self.cursor.set_data(x, y)
            self._move()

    def _move(self) -> None:
        self._move_marks()
        if self._lasso is not None and self._behind is not None:  # it restores this background
            self._lasso.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def _on_circled(self, vertices: Sequence[tuple[float, float]]) -> None:
        if len(vertices) > 2:
            self._on_lasso(Path(vertices).contains_points(self.points))
        else:
            self._on_lasso(np.zeros(len(self.points), dtype=bool))


class PatchPlot(DockPlot):
    """Thumbnails of the patches at both ends of a concept; a click moves the viewer there.

    Attributes
    ----------
    panels : list of Axes
    """

    def __init__(self, viewer: Viewer, on_click: Callable[[Patch], None]) -> None:
        super().__init__(viewer)
        self._on_click = on_click
        self.panels: list[Any] = []
        self._patches: dict[Any, Patch] = {}
        self.canvas.mpl_connect("button_press_event", self._on_press)
        self.canvas.setToolTip("Click on a patch to go to its slice")
        self._fit_in(190, 280)
        self.setVisible(False)

    def show_patches(self, positive: Sequence[Patch], negative: Sequence[Patch]) -> None:
        """Draw the patches of the positive end above those of the negative one; without any the plot is hidden."""
        self.setVisible(bool(positive or negative))
        self.figure.clear()
        self._patches, self.panels = {}, []
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        columns = max(len(positive), len(negative), 1)
        for row, patches in enumerate((positive, negative)):
            for column, patch in enumerate(patches):
                axes = self.figure.add_subplot(2, columns, row * columns + column + 1)
                image = patch.image[len(patch.image) // 2]
                image = image[len(image) // 2] if image.ndim == 3 else image
                axes.imshow(image, cmap="gray", interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_color("tab:red" if row == 0 else "tab:blue")
                    spine.set_linewidth(1.5)
                axes.set_title(f"{patch.strength:+.3g}", fontsize=7, color=colour, pad=2)
                self._patches[axes] = patch
                self.panels.append(axes)
        self.canvas.draw_idle()

    def _on_press(self, event: Any) -> None:
        if event.inaxes in self._patches:
            self._on_click(self._patches[event.inaxes])


class CosinePlot(DockPlot):
    """Cosines of a painted concept with the components of a layer.

    Attributes
    ----------
    axes : Axes
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
        self._fit_in(150, 220)
        self.setVisible(False)

    def show_cosines(self, cosines: NDArray[Any] | None) -> None:
        """Draw cosines as bars; None hides the plot."""
        self.setVisible(cosines is not None)
        if cosines is None:
            return
        self.axes.clear()
        self.axes.bar(np.arange(1, len(cosines) + 1), cosines, color=np.where(cosines > 0, "tab:red", "tab:blue"))
        self.axes.axhline(0, color="gray", lw=0.8)
        self.axes.set_ylim(-1.05, 1.05)
        self.axes.set_xlabel("component (concept of the layer)")
        self.axes.set_ylabel("cosine")
        self.axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        self._style(self.axes)
        self.axes.yaxis.label.set_color(self.napari_theme_style_sheet.get("axes.labelcolor", "gray"))
        self.canvas.draw_idle()


class EvolutionPlot(DockPlot):
    """Effective ranks of layers over the epochs of a training, and cosines of the components of one layer.

    Attributes
    ----------
    ranks, cosines : Axes
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.ranks = self.figure.add_subplot(2, 1, 1)
            self.cosines = self.figure.add_subplot(2, 1, 2, sharex=self.ranks)
        self._fit_in(300, 420)
        self.setVisible(False)

    def show_layers(self, layers: dict[str, Evolution], layer: str) -> None:
        """Draw a training, with one layer in colour; without layers the plot is hidden."""
        self.setVisible(bool(layers))
        if not layers:
            return
        selected = layers[layer]
        for axes in (self.ranks, self.cosines):
            axes.clear()
        for other in list(layers.values())[: 4 * _LINES]:
            self.ranks.plot(other.epochs, other.effective_ranks, color="gray", lw=0.6, alpha=0.6)
        self.ranks.plot(selected.epochs, selected.effective_ranks, color=VALUE_COLOR, lw=1.5, marker=".", ms=4)
        present = np.flatnonzero(selected.values.max(0) > 0)[:5]
        for number, j in enumerate(present):
            colour = colormaps["tab10"](number)
            self.cosines.plot(
                selected.epochs, selected.to_first[:, j], color=colour, lw=1.2, marker=".", ms=4, label=str(j + 1)
            )
        self.ranks.set_ylabel("effective rank")
        self.ranks.set_ylim(0, None)
        self.ranks.tick_params(labelbottom=False)
        self.cosines.set_ylabel("cosine to first")
        self.cosines.set_ylim(-1.05, 1.05)
        self.cosines.set_xlabel("epoch")
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        self.cosines.legend(
            fontsize=7,
            frameon=False,
            labelcolor=colour,
            ncols=5,
            loc="lower left",
            bbox_to_anchor=(0, 0.98),
            handlelength=1,
            columnspacing=0.8,
            borderaxespad=0,
        )
        self._style(self.ranks, self.cosines)
        for axes in (self.ranks, self.cosines):
            axes.yaxis.label.set_color(colour)
        self.canvas.draw_idle()
