"""Plots of a super-resolution that is trained, and of what a trained one does, in napari's colours."""

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
_LEAST = 1e-6  # of the largest singular value
_WIDEST = 36  # characters of a legend's line
_BELOW = 0.3  # dB below the spline that are shown in any case
_PANEL = 125  # pixels of a panel's height, at least


class _Panels(DockPlot):
    """Panels one below the other, of which some may be left out."""

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
        self._fit_in(_PANEL * max(len(shown), 1), int(1.5 * _PANEL * max(len(shown), 1)))

    def _finish(self, shown: Sequence[str]) -> None:
        self._style(*(self.panels[name] for name in shown))
        colour = self.napari_theme_style_sheet.get("axes.labelcolor", "gray")
        for axes in (self.panels[name] for name in shown):
            axes.yaxis.label.set_color(colour)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=axes.get_xlabel() == "mode"))
            if axes.get_yscale() == "log":
                axes.yaxis.set_major_locator(LogLocator(numticks=4))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(4))
            if labels := axes.get_legend_handles_labels()[1]:
                columns = 3 if sum(map(len, labels)) < _WIDEST else 2  # else the axes would make room for it
                axes.legend(
                    loc="lower left", bbox_to_anchor=(-0.22, 1), ncols=columns, fontsize=7, frameon=False,
                    labelcolor=colour, borderaxespad=0, handlelength=1, columnspacing=1,
                )  # fmt: skip
        self.canvas.draw_idle()

    def _draw_spectra(self, axes: Axes, spectra: SliceSpectra) -> None:
        curves = ("slice held out", spectra.target, _TARGET), ("spline", spectra.spline, _SPLINE)
        for label, values, colour in (*curves, ("model", spectra.prediction, _MODEL)):
            self._values(axes, values, label=label, color=colour, lw=2.5 if colour == _TARGET else 1.2)
        axes.set_ylabel("singular value")

    def _draw_amplitudes(self, axes: Axes, spectra: SliceSpectra) -> None:
        if spectra.amplitudes is not None and spectra.scaled is not None:
            self._values(axes, spectra.scaled, label="coarse slice, scaled", color=_SPLINE, lw=1.2)
            self._values(axes, np.abs(spectra.amplitudes), label="c, predicted", color=_MODEL, ls="", marker=".", ms=4)
            axes.set_ylabel("amplitude")

    def _values(self, axes: Axes, values: Any, **look: Any) -> None:
        shown = np.where(values > _LEAST * np.max(values, initial=0), values, np.nan)
        axes.plot(np.arange(1, len(values) + 1), shown, **look)
        axes.set_yscale("log")
        axes.set_xlabel("mode")


class SRTrainingPlot(_Panels):
    """PSNR of slices held out with what has to be beaten, losses, spectra, and of scheme a the amplitudes.

    Attributes
    ----------
    panels : dict of Axes
        "psnr", "losses", "spectra" and "amplitudes"; those without anything to show are not visible.
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, ("psnr", "losses", "spectra", "amplitudes"))

    def show_training(
        self, history: Sequence[SRPoint], baselines: Mapping[str, float], spectra: SliceSpectra | None
    ) -> None:
        """Draw a training, from its start; without a history there is nothing to see."""
        self.setVisible(len(history) > 0)
        if not history:
            return
        learnt = any(point.losses for point in history)
        shown = ["psnr", *(["losses"] if learnt else []), *([] if spectra is None else ["spectra"])]
        if spectra is not None and spectra.amplitudes is not None:
            shown.append("amplitudes")
        self._arrange(shown)
        axes = self.panels["psnr"]
        axes.plot([p.seconds for p in history], [p.psnr_db for p in history], color=_MODEL, marker=".", ms=4, lw=1.2,
                  label="model")  # fmt: skip
        plain, projected = list(baselines.items())[:2]
        for (_, psnr), label, colour in ((plain, "spline", _SPLINE), (projected, "+ projection", _PROJECTED)):
            axes.axhline(psnr, color=colour, ls="--", lw=1, label=label)
        lowest = plain[1] - max(_BELOW, max(p.psnr_db for p in history) - plain[1])
        axes.set_ylim(bottom=max(lowest, axes.get_ylim()[0]))  # a training may begin with a fall, which is no matter
        axes.set_ylabel("PSNR (dB)")
        axes.set_xlabel("seconds")
        axes.tick_params(labelbottom=not learnt)
        if learnt:
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


class ExplainedPlot(_Panels):
    """What modes do: spectra, and of scheme a the amplitudes and what the first modes reach together.

    Attributes
    ----------
    panels : dict of Axes
        "spectra", "amplitudes" and "reached".
    """

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer, ("reached", "amplitudes", "spectra"))

    def show_explained(self, spectra: SliceSpectra | None, reached_db: Any) -> None:
        """Draw the modes of a slice; None hides the plot."""
        self.setVisible(spectra is not None)
        if spectra is None:
            return
        a = reached_db is not None
        shown = [*(["reached", "amplitudes"] if a else []), "spectra"]
        self._arrange(shown)
        if a:
            axes = self.panels["reached"]
            axes.plot(np.arange(1, len(reached_db) + 1), reached_db, color=_MODEL, lw=1.2)
            axes.set_ylabel("PSNR (dB)")
            axes.set_xlabel("mode")
            self._draw_amplitudes(self.panels["amplitudes"], spectra)
        self._draw_spectra(self.panels["spectra"], spectra)
        self._finish(shown)
