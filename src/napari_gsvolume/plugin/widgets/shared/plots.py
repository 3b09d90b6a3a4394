"""Plots of curves over time, in napari's colours: fits, reconstructions, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.style as mplstyle
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from napari.viewer import Viewer
from napari_matplotlib.base import BaseNapariMPLWidget

from ....fitting import HistoryPoint
from ....reconstruction import ReconstructPoint
from ....rendering.splats.training import SplatTrainingPoint

VALUE_COLOR = "tab:cyan"
ENERGY_COLOR = "tab:orange"
MODE_COLOR = "tab:purple"


_TERM_COLOURS = ("tab:cyan", "tab:pink", "tab:olive", "tab:purple", "tab:green")


class DockPlot(BaseNapariMPLWidget):
    """Plot that is small enough for a dock; pairs of axes share a place."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self.toolbar.hide()
        self.figure.set_size_inches(2.8, 2.0)
        self.layout().setContentsMargins(0, 0, 0, 0)

    def _style(self, *shown: Axes) -> None:
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in shown:
            axes.tick_params(colors=colour, labelsize=8)
            axes.xaxis.label.set_color(colour)
            for label in (axes.xaxis.label, axes.yaxis.label):
                label.set_fontsize(8)
            for spine in axes.spines.values():
                spine.set_color(colour)

    def _fit_in(self, least: int, most: int) -> None:
        # Otherwise the canvas asks for 640 x 480 pixels, and the dock gets wide.
        self.canvas.setMinimumSize(200, least)
        self.setMaximumHeight(most)


def move_axis_right(axes: Axes) -> None:
    """Move the labels of the second of two axes in one place to the right."""
    axes.yaxis.set_label_position("right")
    axes.yaxis.tick_right()
    axes.patch.set_visible(False)  # it lies above the other axes, and must not hide their curves


class HistoryPlot(DockPlot):
    """Plot of a fit over seconds: PSNR (left axis), number of Gaussians (right axis), and, with penalties, all terms.

    Attributes
    ----------
    axes, counts, terms : Axes
        Axes of PSNR, number of Gaussians, and terms of the loss; the last is visible if there are penalties.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self._grid = self.figure.add_gridspec(2, 1, height_ratios=(3, 2))
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot(self._grid[0])
            self.counts = self.axes.twinx()
            self.terms = self.figure.add_subplot(self._grid[1], sharex=self.axes)
        self.show_history(())

    def show_history(self, history: Sequence[HistoryPoint]) -> None:
        """Draw a history; an empty one hides the plot."""
        self.setVisible(len(history) > 0)
        seconds = [p.seconds for p in history]
        for axes in (self.axes, self.counts, self.terms):
            axes.clear()
        self.counts.step(seconds, [p.n_gaussians for p in history], where="post", color="tab:orange", lw=1)
        self.axes.plot(seconds, [p.psnr_db for p in history], color="tab:cyan", lw=1.5)
        self.axes.set_ylabel("PSNR (dB)", color="tab:cyan")
        self.counts.set_ylabel("Gaussians", color="tab:orange")
        move_axis_right(self.counts)
        self.counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        self._draw_terms(history)
        self.axes.xaxis.set_major_locator(MaxNLocator(5))  # both axes share it
        self._arrange()
        self._style(self.axes, self.counts, self.terms)
        self._style_terms()
        self.canvas.draw_idle()

    def _draw_terms(self, history: Sequence[HistoryPoint]) -> None:
        names = list(dict.fromkeys(name for point in history for name in point.terms))
        self.terms.set_visible(len(names) > 1)
        if not self.terms.get_visible():
            return
        self.terms.set_yscale("log")
        for name, colour in zip(names, _TERM_COLOURS, strict=False):
            # A term may be absent, or zero as long as there are no Gaussians: a logarithm shows neither.
            shown = [(p.seconds, p.terms[name]) for p in history if p.terms.get(name, 0) > 0]
            self.terms.plot(*zip(*shown, strict=True), label=name, color=colour, lw=1.2) if shown else None
        self.terms.yaxis.set_major_locator(LogLocator(numticks=4))
        self.terms.yaxis.set_minor_locator(NullLocator())
        self.terms.set_ylabel("terms")

    def _arrange(self) -> None:
        """Split the figure between both plots, or give all of it to the first."""
        both = self.terms.get_visible()
        for axes in (self.axes, self.counts):
            axes.set_subplotspec(self._grid[0] if both else self._grid[:])
        self.axes.tick_params(labelbottom=not both)
        (self.terms if both else self.axes).set_xlabel("seconds")
        self._fit_in(270 if both else 160, 370 if both else 260)

    def _style_terms(self) -> None:
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        self.terms.yaxis.label.set_color(colour)
        if self.terms.get_visible():
            self.terms.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=3,
                fontsize=7,
                frameon=False,
                labelcolor=colour,
                borderaxespad=0,
                handlelength=1,
                columnspacing=1,
            )


class _TwoCurves(DockPlot):
    """Plot of a falling quantity (left axis, logarithmic) and PSNR (right axis) over seconds.

    Attributes
    ----------
    axes, quality : Axes
        Axes of the falling quantity and of PSNR; the latter is visible if there are values.
    """

    _FALLING = ""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
            self.quality = self.axes.twinx()
        self._fit_in(160, 260)
        self._draw([], [])

    def _draw(self, falling: list[tuple[float, float]], levels: list[tuple[float, float]]) -> None:
        self.setVisible(bool(falling or levels))
        for axes in (self.axes, self.quality):
            axes.clear()
        self.axes.set_yscale("log")
        self.axes.plot(*zip(*falling, strict=True), color="tab:orange", lw=1.5) if falling else None
        self.axes.set_ylabel(self._FALLING, color="tab:orange")
        self.axes.yaxis.set_minor_formatter(NullFormatter())
        self.axes.yaxis.set_major_locator(LogLocator(numticks=5))
        self.quality.set_visible(bool(levels))
        self.quality.plot(*zip(*levels, strict=True), color="tab:cyan", lw=1.5) if levels else None
        self.quality.set_ylabel("PSNR (dB)", color="tab:cyan")
        move_axis_right(self.quality)
        self.axes.set_xlabel("seconds")
        self.axes.xaxis.set_major_locator(MaxNLocator(5))
        self._style(self.axes, self.quality)
        self.canvas.draw_idle()


class DataFidelityPlot(_TwoCurves):
    """Plot of data fidelity (left axis) and PSNR against a true volume (right axis) over seconds.

    A dotted line marks the start of the Gaussian fit, whose data fidelity is computed at its end only.
    """

    _FALLING = "data fidelity"

    def show_history(self, history: Sequence[ReconstructPoint]) -> None:
        """Draw a history; an empty one hides the plot."""
        fidelity = [(p.seconds, p.data_fidelity) for p in history if p.data_fidelity]
        self._draw(fidelity, [(p.seconds, p.psnr_db) for p in history if p.psnr_db is not None])
        self.setVisible(len(history) > 0)
        first = next((p.seconds for p in history if p.n_gaussians), None)
        if first is not None:
            self.axes.axvline(first, color="gray", ls=":", lw=1)


class LossPlot(_TwoCurves):
    """Plot of the training loss (left axis) and the PSNR of held-out views (right axis) over seconds."""

    _FALLING = "loss"

    def show_history(self, history: Sequence[SplatTrainingPoint]) -> None:
        """Draw a history; an empty one hides the plot."""
        losses = [(p.seconds, p.loss) for p in history if p.loss > 0]
        self._draw(losses, [(p.seconds, p.psnr_db) for p in history if p.psnr_db is not None])


class MarkedPlot(DockPlot):
    """Plot with marks that move over it without drawing all of it again, which would be too slow for a slider.

    Parameters
    ----------
    viewer : napari.Viewer
    on_click : callable, optional
        Called with the x coordinate of a click on the plot.
    """

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None] | None = None) -> None:
        super().__init__(viewer)
        self._marks: list[Artist] = []
        self._behind: Any = None
        self.canvas.mpl_connect("draw_event", self._on_draw)
        self._on_click = on_click
        if on_click is not None:
            self.canvas.mpl_connect("button_press_event", self._on_press)

    def _add_mark(self, mark: Artist) -> None:
        mark.set_animated(True)
        self._marks.append(mark)

    def _draw_all(self) -> None:
        self._behind = None
        self.canvas.draw_idle()

    def _on_draw(self, _: Any) -> None:
        self._behind = self.canvas.copy_from_bbox(self.figure.bbox)
        self._draw_marks()

    def _draw_marks(self) -> None:
        for mark in self._marks:
            self.figure.draw_artist(mark)

    def _move_marks(self) -> None:
        if self._behind is None:  # a drawing is due anyway
            return
        self.canvas.restore_region(self._behind)
        self._draw_marks()
        self.canvas.update()  # not blit, which paints at once, and once more than the screen does

    def _on_press(self, event: Any) -> None:
        if event.xdata is not None and event.button == 1 and self._on_click is not None:
            self._on_click(float(event.xdata))
