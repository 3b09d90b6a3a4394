"""Common base of the reconstruction widgets: live layers, and a plot of data fidelity and PSNR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.layers import Image, Layer
from napari.viewer import Viewer

from ....errors import InputError
from ....fitting.target import check_volume
from ....gaussians import GaussianVolume
from ....reconstruction import ReconstructionResult, ReconstructPoint, ReconstructSettings, Reprojection
from ....types import Float32Array
from ...layers.conversion import LayerData, SourceVolume, grid_placement
from ...layers.projections import (
    contrast_limits_of,
    projection_kind,
    reconstruction_layer,
    reprojection_layers,
    scan_of,
)
from ..shared.base import time_left
from ..shared.form import SettingsForm
from ..shared.gaussian_base import DrawCall, GaussianWidget
from ..shared.layer_updater import LayerUpdater
from ..shared.plots import DataFidelityPlot
from ..shared.worker import PreviewThrottle
from .worker import Preview, ReconstructionRequest, preview_steps

_MAIN = ("gaussians", "time_limit", "prior")
_SUGGESTIONS = {"gaussians": 2000, "time_limit": 60.0}
_VIEWS = ("reprojection", "projection residual")
_KINDS = ("reconstruction", *_VIEWS, "gaussians", "centres")


class ReconstructionWidgetBase(GaussianWidget):
    """Run button that reconstructs a volume, shown while it improves, and then fits Gaussians to it.

    Subclasses build the request of a run (`_request`).

    Parameters
    ----------
    viewer : napari.Viewer
        Viewer to take layers from and to add layers to.
    **rows
        Rows before and after the settings, as in `GaussianWidget`.
    """

    def __init__(self, viewer: Viewer, **rows: Any) -> None:
        self._result: ReconstructionResult | None = None
        form = SettingsForm(ReconstructSettings, _MAIN, _SUGGESTIONS, {"time_limit": 60.0})
        super().__init__(viewer, form, DataFidelityPlot(viewer), **rows)

    @property
    def result(self) -> ReconstructionResult | None:
        """Result of the last run; None before the first run has ended."""
        return self._result

    @property
    def _named_gaussians(self) -> list[tuple[str, GaussianVolume]]:
        return [] if self._result is None else [(self._source.name, self._result.gaussians)]

    def _request(self, source: SourceVolume) -> ReconstructionRequest:
        """Return the reconstruction of the chosen layer; raise ValueError if there is none."""
        raise NotImplementedError

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings, source = self.form.settings(), self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' is flat; slices and projections are stacks, with three axes.")
        self._current = self._request(source)
        check_volume(np.broadcast_to(np.float32(0), self._current.grid.shape))  # the size; nothing is loaded yet
        self._source, self._limits, self._result = source, self._current.limits, None
        self._shown = LayerUpdater(self._viewer, self._earlier_layers(source.name, _KINDS))
        if self._current.views is None:
            self._shown.forget(*_VIEWS)
        self.save.enabled = False
        self._throttle = PreviewThrottle()
        self._start(preview_steps, self._current, settings, self._throttle)

    def _end(self) -> None:
        self.save.enabled = self._result is not None
        if self._result is not None and not self._error_shown:
            self.progress.value = self.progress.max

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show_step(self, preview: Preview) -> None:
        self.progress.value = round(1000 * preview.fraction)
        now = preview.step.current
        left = time_left(now.seconds, preview.fraction)
        self._say(f"{preview.message}: {', '.join(_figures(now, now.seconds))}{left}")
        volume = preview.volume
        if volume is None:
            return
        calls: list[DrawCall] = [
            lambda: self.plot.show_history(preview.step.history),
            lambda: self._put_volume(volume, {}),
            lambda: self._put_views(preview.reprojection),
        ]
        self._draw([*calls, self._throttle.drawn])

    def _show_result(self, result: ReconstructionResult) -> None:
        self._result = result
        self.progress.value = self.progress.max
        self._say(f"{', '.join(_figures(result.history[-1], result.seconds, result.ssim))}. {result.message}")
        placement = grid_placement(self._current.grid)
        self._draw(
            [
                lambda: self.plot.show_history(result.history),
                lambda: self._put_volume(result.reconstruction, result.gaussians.metadata, final=True),
                lambda: self._put_views(result.reprojection),
                *self._gaussian_draw_calls(self._source.name, result.gaussians, placement, final=True),
            ]
        )

    def _put_volume(self, volume: Float32Array, metadata: dict[str, Any], *, final: bool = False) -> None:
        # Limits of the first preview, so that they do not flicker, and of the result.
        if self._limits is None or (final and self._current.limits is None):
            self._limits = contrast_limits_of(volume)
        layer = reconstruction_layer(self._source.name, volume, self._current.grid, self._limits, metadata)
        if self._shown.put("reconstruction", layer):
            self._present(self._shown.layers["reconstruction"])

    def _put_views(self, reprojection: Reprojection | None) -> None:
        measured = self._current.projections
        if self._current.views is None or measured is None or reprojection is None:
            return
        scan = measured[1].of_grid(self._current.grid)
        for kind, layer in zip(_VIEWS, reprojection_layers(self._current.views, scan, reprojection), strict=True):
            self._put(kind, layer)

    def _put(self, kind: str, data: LayerData) -> None:
        if self._shown.put(kind, data):
            self._shown.layers[kind].visible = False  # the volume is shown; the user switches the others on

    def _on_ndisplay(self) -> None:
        """Leave the visibility of Gaussians to the user."""

    def _present(self, layer: Layer) -> None:
        """Show a new volume at its centre, and hide the stack that it is reconstructed from."""
        if self._source.name in self._viewer.layers:
            self._viewer.layers[self._source.name].visible = False
        dims, extent = self._viewer.dims, layer.extent.world
        for axis, middle in enumerate(extent.mean(0), start=dims.ndim - layer.ndim):
            dims.set_point(axis, float(middle))
        self._viewer.reset_view()


def is_stack(layer: Layer) -> bool:
    """Return True for a layer that may hold projections: line integrals, or no geometry and three axes."""
    return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and projection_kind(layer.metadata) == "xray"


def has_geometry(layer: Layer) -> bool:
    """Return True for a layer of projections with their geometry."""
    return is_stack(layer) and scan_of(layer.metadata) is not None


def is_volume(layer: Layer) -> bool:
    """Return True for a layer with three axes that does not hold projections."""
    return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and scan_of(layer.metadata) is None


def _figures(point: ReconstructPoint, seconds: float, ssim: float | None = None) -> Sequence[str]:
    """Return quality, number of Gaussians and time for the line of text."""
    return [
        *([] if point.psnr_db is None else [f"{point.psnr_db:.2f} dB"]),
        *([] if ssim is None else [f"SSIM {ssim:.3f}"]),
        *([] if point.data_fidelity is None else [f"data fidelity {point.data_fidelity:.3g}"]),
        *([f"{point.n_gaussians:,} Gaussians"] if point.n_gaussians else []),
        f"{seconds:.0f} s",
    ]
