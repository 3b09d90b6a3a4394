"""Plots of singular values, of spectra of all slices, and of singular vectors, in napari's colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.style as mplstyle
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from napari.viewer import Viewer
from numpy.typing import NDArray

from ..shared.plots import ENERGY_COLOR, MODE_COLOR, VALUE_COLOR, DockPlot, MarkedPlot, move_axis_right
from .slice_matrix import Curve, MatrixAnalysis
from .worker import Spectra

_RANK, _THRESHOLD = "tab:pink", "tab:olive"
_LEAST = 1e-12  # relative to the largest singular value: below, there are rounding errors only
_DARKEST = 1e-5  # lower end of the heat map, relative to the largest singular value


class SpectrumPlot(MarkedPlot):
    """Singular values (left axis, logarithmic) and cumulative energy (right axis) over the mode number.

    Attributes
    ----------
    axes, energy : Axes
    rank, mode : Line2D
        Vertical line at the rank, and circle of the selected mode.
    threshold : Line2D or None
        Threshold of Gavish and Donoho, dashed.
    """

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None]) -> None:
        super().__init__(viewer, on_click)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
            self.energy = self.axes.twinx()
        self.threshold: Any = None
        self._values: NDArray[Any] = np.empty(0)
        self._fit_in(160, 230)
        self.canvas.setToolTip("Click on a mode to select it")
        self.setVisible(False)

    def show_spectrum(self, of: MatrixAnalysis | None, rank: int, k: int) -> None:
        """Draw the singular values of a matrix; None hides the plot."""
        self.setVisible(of is not None)
        if of is None:
            return
        values = of.decomposition.values
        self._values = np.where(values > _LEAST * values[0], values, np.nan)
        modes = np.arange(1, len(values) + 1)
        for axes in (self.axes, self.energy):
            axes.clear()
        self.axes.set_yscale("log")
        self.axes.plot(modes, self._values, color=VALUE_COLOR, lw=1.2, marker=".", ms=3)
        self.threshold = None
        if of.threshold is not None and of.threshold > _LEAST * values[0]:
            self.threshold = self.axes.axhline(of.threshold, color=_THRESHOLD, ls="--", lw=1)
        self.energy.plot(modes, of.energy, color=ENERGY_COLOR, lw=1.2)
        self.energy.set_ylim(min(float(of.energy[0]), 0.99) - 0.01, 1.005)
        self.axes.set_xlim(0.5, max(len(values), 2) + 0.5)
        self.axes.set_xlabel("mode")
        self.axes.set_ylabel("singular value", color=VALUE_COLOR)
        self.energy.set_ylabel("energy", color=ENERGY_COLOR)
        move_axis_right(self.energy)
        self.axes.yaxis.set_major_locator(LogLocator(numticks=5))
        self.axes.yaxis.set_minor_formatter(NullFormatter())
        self.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        self.energy.yaxis.set_major_locator(MaxNLocator(4))
        least = float(of.energy[0])
        self.energy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if least < 0.95 else 1))
        self._style(self.axes, self.energy)
        self._marks = []
        self.rank = self.energy.axvline(rank, color=_RANK, lw=1.5)
        [self.mode] = self.axes.plot([k], [self._values[k - 1]], "o", mfc="none", color=MODE_COLOR, ms=7)
        for mark in (self.rank, self.mode):
            self._add_mark(mark)
        self._draw_all()

    def mark(self, rank: int, k: int) -> None:
        """Move the line to a rank and the circle to a mode."""
        if not len(self._values):
            return
        self.rank.set_xdata([rank, rank])
        self.mode.set_data([k], [self._values[k - 1]])
        self._move_marks()


class HeatMap(MarkedPlot):
    """Heat map of the singular values of all slices (logarithmic): one column a slice.

    Attributes
    ----------
    axes : Axes
    picture : AxesImage or None
    slice : Line2D
        Vertical line at the current slice.
    """

    def __init__(self, viewer: Viewer, on_click: Callable[[float], None]) -> None:
        super().__init__(viewer, on_click)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.axes = self.figure.add_subplot()
        self.picture: Any = None
        self._colours: Any = None
        self.slice: Any = None
        self._fit_in(160, 230)
        self.canvas.setToolTip("Click on a slice to go there")
        self.setVisible(False)

    def show_spectra(self, of: Spectra | None, current: int) -> None:
        """Draw the singular values of the slices of a volume; None hides the plot."""
        self.setVisible(of is not None)
        if of is None:
            self.picture = None
            return
        largest = max(float(np.nanmax(of.values)), 1e-300)
        shown = np.log10(np.fmax(of.values / largest, _DARKEST)).T  # fmax: NaN of slices to come becomes dark
        label = of.source.grid.axis_labels[of.axis]
        self.axes.clear()
        self.picture = self.axes.imshow(
            shown,
            aspect="auto",
            cmap="viridis",
            origin="upper",
            interpolation="nearest",
            vmin=float(np.log10(_DARKEST)),
            vmax=0,
            extent=(-0.5, of.count - 0.5, len(shown) + 0.5, 0.5),
        )
        if self._colours is None:
            self._colours = self.figure.colorbar(self.picture, ax=self.axes, fraction=0.06, pad=0.02)
        else:
            self._colours.update_normal(self.picture)
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        self._colours.ax.tick_params(colors=colour, labelsize=8)
        self._colours.ax.set_title("log10", fontsize=8, color=colour)
        self.axes.set_xlabel(f"slice along {label}")
        self.axes.set_ylabel("mode")
        self.axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        self.axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        self._style(self.axes)
        self.axes.yaxis.label.set_color(colour)
        self._marks = []
        self.slice = self.axes.axvline(current, color=_RANK, lw=1.5)
        self._add_mark(self.slice)
        self._draw_all()

    def mark(self, current: int) -> None:
        """Move the line to a slice."""
        if self.picture is not None:
            self.slice.set_xdata([current, current])
            self._move_marks()


class ModePlot(DockPlot):
    """Singular vectors of a mode as samples and as functions; u above v.

    Attributes
    ----------
    panels : tuple of Axes
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.panels = tuple(self.figure.add_subplot(2, 1, row) for row in (1, 2))
        self._fit_in(210, 320)
        self.setVisible(False)

    def show_mode(self, k: int, curves: Sequence[Curve], picture: tuple[str, NDArray[Any]] | None = None) -> None:
        """Draw the vectors of mode k, counted from 1; `picture` is v of an unfolding. No curves hide the plot."""
        self.setVisible(bool(curves))
        names = [f"$u_{{{k}}}$", f"$v_{{{k}}}$"]
        for axes in self.panels:
            axes.clear()
            axes.set_aspect("auto")  # after a picture
        for axes, name, one in zip(self.panels, names, curves, strict=False):
            many = len(one.samples) > 200
            axes.plot(np.arange(len(one.samples)), one.samples, ".", color=ENERGY_COLOR, ms=2 if many else 4)
            axes.plot(one.x, one.function, color=VALUE_COLOR, lw=1)
            axes.set_xlim(one.x[0], one.x[-1])
            axes.axhline(0, color="gray", lw=0.5)
            axes.set_ylabel(f"{name} along {one.label}")
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if picture is not None:
            label, values = picture
            limit = max(float(np.abs(values).max()), 1e-300)
            self.panels[1].imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
            self.panels[1].set_ylabel(f"{names[1]}: {label}")
        self._style(*self.panels)
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in self.panels:
            axes.yaxis.label.set_color(colour)
        self.canvas.draw_idle()
