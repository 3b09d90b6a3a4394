"""Plots of the training and of the inspection of super-resolution models, in napari's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style as mplstyle
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from napari.viewer import Viewer

from ....super_resolution.training import SRPoint
from ..shared.plots import DockPlot
from .training_worker import SliceSpectra

_MODEL, _SPLINE, _PROJECTED, _TARGET = "tab:cyan", "tab:orange", "tab:pink", "gray"
_TERMS = ("tab:cyan", "tab:orange", "tab:olive", "tab:purple", "tab:green", "tab:pink", "tab:brown", "tab:red")
_SMALLEST = 1e-6  # relative to the largest singular value
_LEGEND_WIDTH = 36  # characters of a legend line
_MARGIN_BELOW = 0.3  # dB below the spline that are always shown
_PANEL_HEIGHT = 125  # pixels, at least


class _Panels(DockPlot):
    """Panels one below the other, some of which may be hidden."""

    def __init__(self, viewer: Viewer, names: Sequence[str]) -> None:
        super().__init__(viewer)
        with mplstyle.context(self.napari_theme_style_sheet):
            self.panels: dict[str, Axes] = {
                name: self.figure.add_subplot(len(names), 1, row) for row, name in enumerate(names, 1)
            }
        self.setVisible(False)

    def _arrange(self, shown: Sequence[str]) -> None:
        grid = self.figure.add_gridspec(max(len(shown), 1), 1)
        for name, axes in self.panels.items():
            axes.clear()
            axes.set_visible(name in shown)
            if name in shown:
                axes.set_subplotspec(grid[shown.index(name)])
        self._fit_in(_PANEL_HEIGHT * max(len(shown), 1), int(1.5 * _PANEL_HEIGHT * max(len(shown), 1)))

    def _finish(self, shown: Sequence[str]) -> None:
        self._style(*(self.panels[name] for name in shown))
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in (self.panels[name] for name in shown):
            axes.yaxis.label.set_color(colour)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer="mode" in axes.get_xlabel()))
            if axes.get_yscale() == "log":
                axes.yaxis.set_major_locator(LogLocator(numticks=4))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(4))
            if labels := axes.get_legend_handles_labels()[1]:
                columns = 3 if sum(map(len, labels)) < _LEGEND_WIDTH else 2  # wide legends would shrink the axes
                axes.legend(
                    loc="lower left",
                    bbox_to_anchor=(-0.22, 1),
                    ncols=columns,
                    fontsize=7,
                    frameon=False,
                    labelcolor=colour,
                    borderaxespad=0,
                    handlelength=1,
                    columnspacing=1,
                )
        self.canvas.draw_idle()

    def _draw_spectra(self, axes: Axes, spectra: SliceSpectra) -> None:
        curves = ("validation slice", spectra.target, _TARGET), ("spline", spectra.spline, _SPLINE)
        for label, values, colour in (*curves, ("model", spectra.prediction, _MODEL)):
            self._plot_values(axes, values, label=label, color=colour, lw=2.5 if colour == _TARGET else 1.2)
        axes.set_ylabel("singular value")

    def _draw_amplitudes(self, axes: Axes, spectra: SliceSpectra) -> None:
        if spectra.amplitudes is not None and spectra.scaled is not None:
            self._plot_values(axes, spectra.scaled, label="low-resolution slice, scaled", color=_SPLINE, lw=1.2)
            self._plot_values(
                axes, np.abs(spectra.amplitudes), label="predicted", color=_MODEL, ls="", marker=".", ms=4
            )
            axes.set_ylabel("amplitude")

    def _plot_values(self, axes: Axes, values: Any, **style: Any) -> None:
        shown = np.where(values > _SMALLEST * np.max(values, initial=0), values, np.nan)
        axes.plot(np.arange(1, len(values) + 1), shown, **style)
        axes.set_yscale("log")
        axes.set_xlabel("mode")


class SRTrainingPlot(_Panels):
    """Validation PSNR with baselines, losses, spectra, and amplitudes of scheme A.

    Attributes
    ----------
    panels : dict of Axes
        "psnr", "losses", "spectra" and "amplitudes"; empty ones are hidden.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, ("psnr", "losses", "spectra", "amplitudes"))

    def show_training(
        self, history: Sequence[SRPoint], baselines: Mapping[str, float], spectra: SliceSpectra | None
    ) -> None:
        """Draw a training from its start; an empty history hides the plot."""
        self.setVisible(len(history) > 0)
        if not history:
            return
        has_losses = any(point.losses for point in history)
        shown = ["psnr", *(["losses"] if has_losses else []), *([] if spectra is None else ["spectra"])]
        if spectra is not None and spectra.amplitudes is not None:
            shown.append("amplitudes")
        self._arrange(shown)
        axes = self.panels["psnr"]
        axes.plot(
            [p.seconds for p in history],
            [p.psnr_db for p in history],
            color=_MODEL,
            marker=".",
            ms=4,
            lw=1.2,
            label="model",
        )
        plain, projected = list(baselines.items())[:2]
        for (_, psnr), label, colour in ((plain, "spline", _SPLINE), (projected, "+ projection", _PROJECTED)):
            axes.axhline(psnr, color=colour, ls="--", lw=1, label=label)
        lowest = plain[1] - max(_MARGIN_BELOW, max(p.psnr_db for p in history) - plain[1])
        axes.set_ylim(bottom=max(lowest, axes.get_ylim()[0]))  # an initial drop of a training does not matter
        axes.set_ylabel("validation PSNR (dB)")
        axes.set_xlabel("seconds")
        axes.tick_params(labelbottom=not has_losses)
        if has_losses:
            axes.set_xlabel("")
            self._draw_losses(self.panels["losses"], history)
        if spectra is not None:
            self._draw_spectra(self.panels["spectra"], spectra)
            self._draw_amplitudes(self.panels["amplitudes"], spectra)
        self._finish(shown)

    def _draw_losses(self, axes: Axes, history: Sequence[SRPoint]) -> None:
        coefficients = history[-1].coefficients
        names = list(dict.fromkeys(name for point in history for name in point.losses))
        for k, name in enumerate(names):
            points = [(p.seconds, p.losses[name]) for p in history if p.losses.get(name, 0) > 0]
            if points:
                label = f"{coefficients.get(name, 1):.3g} × {name}"
                axes.plot(
                    *zip(*points, strict=True), label=label, color=_TERMS[k % len(_TERMS)], marker=".", ms=4, lw=1.2
                )
        axes.set_xlim(self.panels["psnr"].get_xlim())  # one above the other
        axes.set_yscale("log")
        axes.set_ylabel("loss")
        axes.set_xlabel("seconds")


class InspectionPlot(_Panels):
    """Spectra of a slice; for scheme A also amplitudes, and PSNR of the sum of the first modes.

    Attributes
    ----------
    panels : dict of Axes
        "spectra", "amplitudes" and "cumulative".
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, ("cumulative", "amplitudes", "spectra"))

    def show_modes(self, spectra: SliceSpectra | None, cumulative_db: Any) -> None:
        """Draw the modes of a slice; None hides the plot."""
        self.setVisible(spectra is not None)
        if spectra is None:
            return
        has_modes = cumulative_db is not None
        shown = [*(["cumulative", "amplitudes"] if has_modes else []), "spectra"]
        self._arrange(shown)
        if has_modes:
            axes = self.panels["cumulative"]
            axes.plot(np.arange(1, len(cumulative_db) + 1), cumulative_db, color=_MODEL, lw=1.2)
            axes.set_ylabel("PSNR (dB)")
            axes.set_xlabel("number of modes")
            self._draw_amplitudes(self.panels["amplitudes"], spectra)
        self._draw_spectra(self.panels["spectra"], spectra)
        self._finish(shown)
