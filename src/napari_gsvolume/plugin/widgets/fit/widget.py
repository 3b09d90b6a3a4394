"""The dock widget that fits Gaussians to an image layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from magicgui.widgets import CheckBox
from napari.layers import Layer
from napari.utils.notifications import show_info
from napari.viewer import Viewer
from qtpy.QtCore import QTimer

from ....devices import devices, gpu_problem
from ....fitting import FitResult, FitSettings
from ....gaussians import GaussianVolume
from ....grid import Grid
from ...layers.conversion import SourceVolume, density_layer, residual_layer, residual_limit, series_placement
from ...layers.gaussians import points_layer
from ..shared.base import time_left
from ..shared.form import ChoicesFound, LazyChoices, SettingsForm
from ..shared.gaussian_base import GaussianWidget
from ..shared.layer_updater import LayerUpdater
from ..shared.plots import HistoryPlot
from ..shared.worker import PreviewThrottle
from .worker import Preview, fit_previews

_MAIN = ("gaussians", "target_psnr", "ratio", "time_limit", "solver")
_FOLDED: dict[str, tuple[str, ...]] = {
    "Objective": (
        *("data_term", "normalised", "neighbourhood_radius", "ellipsoid_radius"),
        *("sparsity_weight", "overlap_weight", "smoothness_weight", "spacing_weight", "spacing", "spacing_radius"),
    ),
    "Growth and file size": ("growth", "rounds", "target_bytes"),
}
_KINDS = ("density", "residual", "gaussians", "centres")
_SUGGESTIONS = {
    "gaussians": 2000,
    "target_psnr": 30.0,
    "ratio": 100.0,
    "target_bytes": 20_000,
    "time_limit": 60.0,
    "iterations": 150,
}


def _devices() -> ChoicesFound:
    """Return the compute devices, and why there is no GPU among them; starts CUDA where there is a GPU."""
    problem = gpu_problem()
    return devices(), f"No GPU can be used: {problem}" if problem else ""


_LATE: dict[str, LazyChoices] = {"device": (("auto", "cpu"), _devices)}


class FitWidget(GaussianWidget):
    """Dock widget that fits Gaussians to an image layer, with live previews; Stop keeps the current Gaussians.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._results: list[tuple[SourceVolume, FitResult]] = []
        self.keep = CheckBox(
            text="Keep earlier results", tooltip="Add new layers instead of updating the layers of the last run"
        )
        form = SettingsForm(FitSettings, _MAIN, _SUGGESTIONS, {"gaussians": 2000}, _FOLDED, "Solver", _LATE)
        plot = HistoryPlot(napari_viewer)
        super().__init__(napari_viewer, form, plot, after=[self.keep], whole_series=True)
        for size in ("ratio", "target_bytes"):
            self.form.fields[size].on.changed.connect(self._on_size)
        QTimer.singleShot(0, _load_points)

    def _on_size(self, asked: bool) -> None:
        """Let the number of Gaussians follow from the file size; a user who wants both switches it on again."""
        if asked:
            self.form.fields["gaussians"].value = None

    @property
    def results(self) -> list[FitResult]:
        """Results of the last run, one per volume."""
        return [result for _, result in self._results]

    @property
    def _named_gaussians(self) -> list[tuple[str, GaussianVolume]]:
        return [(source.name, result.gaussians) for source, result in self._results]

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings, sources = self.form.settings(), self._sources()
        self._results = []
        self._shown = LayerUpdater(
            self._viewer, {} if self.keep.value else self._earlier_layers(sources[0].name, _KINDS)
        )
        self._series = self.image.value if len(sources) > 1 else None
        if self._series is not None:  # Gaussians of one volume do not belong to the layers of all
            self._shown.forget("gaussians", "centres")
        self.save.enabled = False
        self._throttle = PreviewThrottle()
        self._start(fit_previews, sources, settings, self._throttle)

    def _end(self) -> None:
        self.save.enabled = bool(self._results)
        if self._results and not self._error_shown:
            self.progress.value = self.progress.max

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show_step(self, preview: Preview) -> None:
        step = preview.fit
        self.progress.value = round(1000 * preview.fraction)
        which = f"Volume {preview.index + 1} of {preview.count}: " if preview.count > 1 else ""
        if preview.density is None:
            self._say(which + step.message)
            return
        self._say(which + _figures(preview))
        if preview.result is not None:
            self._results.append((preview.source, preview.result))
            for note in preview.result.notes:
                self._say(f"{which}{_figures(preview)} {note}", show_info)
        self._draw(
            [
                lambda: self.plot.show_history(step.history),
                *self._images(preview),
                *([] if self._series is not None else self._gaussians(preview)),
                self._throttle.drawn,
            ]
        )

    def _images(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the draw calls of density and residual."""
        density, residual, source = preview.density, preview.residual, preview.source
        if density is None or residual is None:
            return []
        metadata, place = preview.fit.gaussians.metadata, source.placement
        limit = residual_limit(residual)
        if self._series is not None:
            place = series_placement(self._series, source.grid)
            density = self._stacked("density", density, preview)
            residual = self._stacked("residual", residual, preview)
        metadata = metadata if preview.result is None else preview.result.gaussians.metadata
        return [
            lambda: self._put("density", density_layer(source.name, density, place, source.limits, metadata)),
            lambda: self._put("residual", residual_layer(source.name, residual, place, limit, metadata)),
        ]

    def _stacked(self, kind: str, volume: Any, preview: Preview) -> Any:
        """Return the series so far with this volume in its place; later volumes are NaN."""
        if preview.index == 0 or kind not in self._shown.layers:
            series = np.full((preview.count, *volume.shape), np.nan, np.float32)
        else:
            series = self._shown.layers[kind].data
        series[preview.index] = volume
        return series

    def _gaussians(self, preview: Preview) -> list[Callable[[], None]]:
        """Return the draw calls of ellipsoids and centres."""
        gaussians = preview.fit.gaussians if preview.result is None else preview.result.gaussians
        final = preview.result is not None
        return self._gaussian_draw_calls(preview.source.name, gaussians, preview.source.placement, final=final)


def _load_points() -> None:
    """Create one points layer: the first one loads pandas and more, better now than during a fit."""
    one = GaussianVolume(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1), Grid((1, 1, 1)))
    Layer.create(*points_layer("", one, {}))


def _figures(preview: Preview) -> str:
    step = preview.fit
    where = "" if step.device == "cpu" else f" on {step.device}"
    text = f"{step.psnr_db:.2f} dB, {step.n_gaussians:,} Gaussians, {step.seconds:.0f} s{where}"
    if preview.result is not None:
        similarity = "" if preview.result.ssim is None else f", SSIM {preview.result.ssim:.3f}"
        return f"{text}{similarity}. {step.message}"
    return text + time_left(step.seconds, step.fraction)
