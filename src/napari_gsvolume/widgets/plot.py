"""PSNR over time, the number of Gaussians, and the terms of the loss, in napari's colours."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style as mplstyle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from napari.viewer import Viewer
from napari_matplotlib.base import BaseNapariMPLWidget

from ..fitting import HistoryPoint

_TERM_COLOURS = ("tab:cyan", "tab:pink", "tab:olive", "tab:purple", "tab:green")


class HistoryPlot(BaseNapariMPLWidget):
    """Curves over seconds: PSNR (left axis) and N (right axis, stepped); below, where there are penalties, all terms.

    Attributes
    ----------
    axes, counts, terms : Axes
        Of PSNR, of N, and of the terms of the loss; the last is visible only if there are other terms than "data".
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self.toolbar.hide()
        self.figure.set_size_inches(2.8, 2.0)
        self.layout().setContentsMargins(0, 0, 0, 0)
        self._grid = self.figure.add_gridspec(2, 1, height_ratios=(3, 2))
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot(self._grid[0])
            self.counts = self.axes.twinx()
            self.terms = self.figure.add_subplot(self._grid[1], sharex=self.axes)
        self.show_history(())

    def show_history(self, history: Sequence[HistoryPoint]) -> None:
        """Draw a history, from its start; without one there is nothing to see."""
        self.setVisible(len(history) > 0)
        seconds = [p.seconds for p in history]
        for axes in (self.axes, self.counts, self.terms):
            axes.clear()
        self.counts.step(seconds, [p.n_gaussians for p in history], where="post", color="tab:orange", lw=1)
        self.axes.plot(seconds, [p.psnr_db for p in history], color="tab:cyan", lw=1.5)
        self.axes.set_ylabel("PSNR (dB)", color="tab:cyan")
        self.counts.set_ylabel("Gaussians", color="tab:orange")
        self.counts.yaxis.set_label_position("right")
        self.counts.yaxis.tick_right()
        self.counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        self._draw_terms(history)
        self.axes.xaxis.set_major_locator(MaxNLocator(5))  # of both: they share it
        self._arrange()
        self._style()
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
        """Give the terms their place, or the rest all of it."""
        both = self.terms.get_visible()
        for axes in (self.axes, self.counts):
            axes.set_subplotspec(self._grid[0] if both else self._grid[:])
        self.axes.tick_params(labelbottom=not both)
        (self.terms if both else self.axes).set_xlabel("seconds")
        # Else the canvas asks for its 640 x 480 and the dock gets wide.
        self.canvas.setMinimumSize(200, 270 if both else 160)
        self.setMaximumHeight(370 if both else 260)

    def _style(self) -> None:
        # The counts' axes lie above the PSNR's: theirs must not hide them.
        self.counts.patch.set_visible(False)
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in (self.axes, self.counts, self.terms):
            axes.tick_params(colors=colour, labelsize=8)
            axes.xaxis.label.set_color(colour)
            for label in (axes.xaxis.label, axes.yaxis.label):
                label.set_size(8)
            for spine in axes.spines.values():
                spine.set_color(colour)
        self.terms.yaxis.label.set_color(colour)
        if self.terms.get_visible():
            self.terms.legend(
                loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=7, frameon=False, labelcolor=colour,
                borderaxespad=0, handlelength=1, columnspacing=1,
            )  # fmt: skip
