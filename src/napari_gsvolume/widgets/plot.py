"""PSNR over time, and the number of Gaussians, in napari's colours."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator
from napari.viewer import Viewer
from napari_matplotlib.base import BaseNapariMPLWidget

from ..fitting import HistoryPoint


class HistoryPlot(BaseNapariMPLWidget):
    """Two curves over seconds: PSNR (left axis) and N (right axis, stepped)."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self.toolbar.hide()
        self.canvas.setMinimumSize(200, 160)  # else the canvas asks for its 640 x 480 and the dock gets wide
        self.setMaximumHeight(260)
        self.figure.set_size_inches(2.8, 2.0)
        self.layout().setContentsMargins(0, 0, 0, 0)
        self.add_single_axes()
        self.counts = self.axes.twinx()
        self._style()
        self.show_history(())

    def show_history(self, history: Sequence[HistoryPoint]) -> None:
        """Draw a history, from its start."""
        self.axes.clear()
        self.counts.clear()
        seconds = [p.seconds for p in history]
        self.counts.step(seconds, [p.n_gaussians for p in history], where="post", color="tab:orange", lw=1)
        self.axes.plot(seconds, [p.psnr_db for p in history], color="tab:cyan", lw=1.5)
        self.axes.set_xlabel("seconds")
        self.axes.set_ylabel("PSNR (dB)", color="tab:cyan")
        self.counts.set_ylabel("Gaussians", color="tab:orange")
        self.counts.yaxis.set_label_position("right")
        self.counts.yaxis.tick_right()
        self.counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        self.axes.xaxis.set_major_locator(MaxNLocator(5))
        self._style()
        self.canvas.draw_idle()

    def _style(self) -> None:
        # The counts' axes lie above the PSNR's: theirs must not hide them.
        self.counts.patch.set_visible(False)
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in (self.axes, self.counts):
            axes.tick_params(colors=colour, labelsize=8)
            axes.xaxis.label.set_color(colour)
            axes.xaxis.label.set_size(8)
            axes.yaxis.label.set_size(8)
            for spine in axes.spines.values():
                spine.set_color(colour)
