"""What the widgets that recover a volume share: choices of layers, live layers, a plot of misfit and PSNR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari.layers import Image, Layer
from napari.viewer import Viewer

from ....errors import InputError
from ....reconstruction.problem import Problem, limits_of
from ....reconstruction.reconstruct import Recovered
from ....reconstruction.settings import RecoverSettings
from ...layers.conversion import LayerData, SourceVolume, grid_placement
from ...layers.projections import projection_kind, recovered_layer, reprojected_layers, scan_of
from ..shared.base import time_left
from ..shared.form import SettingsForm
from ..shared.gaussian_base import DrawCall, GaussianWidget
from ..shared.layer_updater import LayerUpdater
from ..shared.plots import MisfitPlot
from ..shared.worker import PreviewThrottle
from .worker import Sight, run_recovery

_MAIN = ("gaussians", "time_limit", "prior")
_SUGGESTIONS = {"gaussians": 2000, "time_limit": 60.0}
_VIEWS = ("reprojected", "projection residual")
_KINDS = ("recovered", *_VIEWS, "gaussians", "centres")


@dataclass(frozen=True, eq=False)
class Asked:
    """What a run is to recover, and how it is shown.

    Attributes
    ----------
    problem : Problem
    views : SourceVolume or None
        The layer of the projections, if there are any.
    limits : tuple of float or None
        Contrast limits of a layer that the volume should look like, if there is one.
    """

    problem: Problem
    views: SourceVolume | None = None
    limits: tuple[float, float] | None = None


class RecoverWidget(GaussianWidget):
    """Press Run: a volume appears and improves, and becomes Gaussians.

    Subclasses say what it is recovered from (`_asked`).

    Parameters
    ----------
    viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    **rows
        As of `GaussianWidget`.
    """

    def __init__(self, viewer: Viewer, **rows: Any) -> None:
        self._recovered: Recovered | None = None
        form = SettingsForm(RecoverSettings, _MAIN, _SUGGESTIONS, {"time_limit": 60.0})
        super().__init__(viewer, form, MisfitPlot(viewer), **rows)

    @property
    def recovered(self) -> Recovered | None:
        """What the last run came to."""
        return self._recovered

    @property
    def _named_gaussians(self) -> list[Any]:
        return [] if self._recovered is None else [(self._source.name, self._recovered.gaussians)]

    def _asked(self, source: SourceVolume) -> Asked:
        """Return what is to be recovered from the chosen layer; raise ValueError if it cannot be."""
        raise NotImplementedError

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings, source = self.form.settings(), self._volumes()[0]
        if source.grid.ndim != 3:
            raise InputError(f"'{source.name}' is flat; slices and projections are stacks, with three axes.")
        self._of = self._asked(source)
        self._of.problem.check()
        self._source, self._limits, self._recovered = source, self._of.limits, None
        self._shown = LayerUpdater(self._viewer, self._earlier_layers(source.name, _KINDS))
        if self._of.views is None:
            self._shown.forget(*_VIEWS)
        self.save.enabled = False
        self._pace = PreviewThrottle()
        self._start(run_recovery, self._of.problem, settings, self._pace)

    def _end(self) -> None:
        self.save.enabled = self._recovered is not None
        if self._recovered is not None and not self._error_shown:
            self.progress.value = self.progress.max

    # Showing ----------------------------------------------------------------------------------------------------------

    def _show(self, sight: Sight) -> None:
        self.progress.value = round(1000 * sight.step.progress)
        self._say(_figures(sight))
        if sight.volume is None:
            return
        result = sight.result
        calls: list[DrawCall] = [lambda: self.plot.show_history(sight.step.history), lambda: self._put_volume(sight)]
        if sight.reprojected is not None:
            calls.append(lambda: self._put_views(sight))
        if result is not None:
            self._recovered = result
            placement = grid_placement(self._of.problem.grid)
            calls += self._gaussian_draw_calls(self._source.name, result.gaussians, placement, final=True)
        self._draw([*calls, self._pace.drawn])

    def _put_volume(self, sight: Sight) -> None:
        if sight.volume is None:
            return
        if self._limits is None or (sight.result is not None and self._of.limits is None):
            self._limits = limits_of(sight.volume)  # of the first, so that they do not flicker, and of the last
        metadata = {} if sight.result is None else sight.result.gaussians.metadata
        layer = recovered_layer(self._source.name, sight.volume, self._of.problem.grid, self._limits, metadata)
        if self._shown.put("recovered", layer):
            self._present(self._shown.layers["recovered"])

    def _put_views(self, sight: Sight) -> None:
        of = self._of.problem.projections
        if self._of.views is None or of is None or sight.reprojected is None or sight.residual is None:
            return
        scan = of[1].of_grid(self._of.problem.grid)
        layers = reprojected_layers(self._of.views, scan, sight.reprojected, sight.residual)
        for kind, layer in zip(_VIEWS, layers, strict=True):
            self._put(kind, layer)

    def _put(self, kind: str, data: LayerData) -> None:
        if self._shown.put(kind, data):
            self._shown.layers[kind].visible = False  # the volume is what one looks at; the others wait

    def _on_ndisplay(self) -> None:
        """Leave Gaussians hidden or shown, as they are."""

    def _present(self, layer: Layer) -> None:
        """Have a new volume be seen: from its middle on, without the stack that it is made of."""
        if self._source.name in self._viewer.layers:
            self._viewer.layers[self._source.name].visible = False
        dims, extent = self._viewer.dims, layer.extent.world
        for axis, middle in enumerate(extent.mean(0), start=dims.ndim - layer.ndim):
            dims.set_point(axis, float(middle))
        self._viewer.reset_view()


def is_stack(layer: Layer) -> bool:
    """Whether a layer may be projections: it has their geometry, or no more than three axes."""
    return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and projection_kind(layer.metadata) == "xray"


def has_geometry(layer: Layer) -> bool:
    """Whether a layer is projections with their geometry."""
    return is_stack(layer) and scan_of(layer.metadata) is not None


def is_volume(layer: Layer) -> bool:
    """Whether a layer is a volume, and no projections."""
    return isinstance(layer, Image) and not layer.rgb and layer.ndim == 3 and scan_of(layer.metadata) is None


def _figures(sight: Sight) -> str:
    step, result = sight.step, sight.result
    now = step.now
    psnr = now.psnr_db if result is None else result.psnr_db
    misfit = now.misfit if result is None else result.misfit
    figures = [
        *([] if psnr is None else [f"{psnr:.2f} dB"]),
        *([] if result is None or result.ssim is None else [f"SSIM {result.ssim:.3f}"]),
        *([] if misfit is None else [f"misfit {misfit:.3g}"]),
        *([f"{now.n_gaussians:,} Gaussians"] if now.n_gaussians else []),
        f"{now.seconds:.0f} s",
    ]
    if result is not None:
        return f"{', '.join(figures)}. {step.message}"
    return f"{step.message}: {', '.join(figures)}{time_left(now.seconds, step.progress)}"
