"""The dock widget that projects an image layer, or Gaussians, as a scanner would."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from magicgui.widgets import CheckBox, ComboBox
from napari.layers import Image, Layer
from napari.viewer import Viewer
from pydantic import BaseModel, Field

from ....errors import InputError
from ....gaussians import GaussianVolume
from ....grid import Grid
from ....tomography.noise import DEPTH
from ....tomography.projections import project
from ....tomography.scan import VIEWS, Beam, Mode, Preset, Scan, preset
from ....types import Float32Array
from ....units import voxel_size_mm
from ...layers.conversion import PROJECTION_KINDS, SourceVolume, find_earlier_layer
from ...layers.gaussians import gaussians_of
from ...layers.projections import projection_layer, scan_of
from ..shared.base import RunWidget, row_of
from ..shared.camera import scan_along_view
from ..shared.form import SettingsForm
from ..shared.latest_task import Task
from ..shared.layer_updater import LayerUpdater
from ..shared.live_view import LiveView
from . import worker
from .worker import ProjectionPostprocessing, ProjectionProgress

_LIVE_PIXELS, _LIVE_VOXELS = 160, 80  # a side, at most: a picture within some tens of milliseconds
_MAIN = ("path", "beam", "views", "arc", "mode")
_FOLDED = {"Detector": ("width", "height"), "Noise and units": ("photons", "sigma", "depth", "hounsfield")}
# Rows that say something only with some paths of the scanner.
_ROWS: dict[str, tuple[str, ...]] = {
    "beam": ("circle", "limited arc", "biplane"),
    "views": ("circle", "limited arc", "C-arm"),
    "arc": ("limited arc",),
}


class ProjectionSettings(BaseModel):
    """What a user chooses beside the layer."""

    path: Literal[Preset, "current view"] = Field(
        "circle", description="Where the views are taken from: around the first axis, or the way the viewer looks now"
    )
    beam: Beam = Field("parallel", description="How rays run: side by side, as fans one above the other, or as a cone")
    views: int = Field(VIEWS, ge=1, le=10_000, description="Number of views, evenly spread")
    arc: float = Field(120.0, gt=0, le=360, description="Degrees over which the views are spread")
    mode: Mode = Field(
        "xray", description="xray: line integrals; mip, minip, mean: largest, smallest, mean intensity along each ray"
    )
    width: int | None = Field(
        None, ge=1, le=8192, description="Pixels along u; as many as the voxels need if not given"
    )
    height: int | None = Field(
        None, ge=1, le=8192, description="Pixels along v; as many as the voxels need if not given"
    )
    photons: float | None = Field(None, gt=0, description="Photons a pixel, for Poisson noise; of xray only")
    sigma: float | None = Field(None, gt=0, description="Standard deviation of Gaussian noise, in a pixel's unit")
    depth: float = Field(
        DEPTH, gt=0, le=50, description="Optical depth of the largest line integral, which photons are scaled by"
    )
    hounsfield: bool = Field(False, description="The intensities are Hounsfield units: project attenuation, 1 / mm")


class ProjectWidget(RunWidget):
    """Choose an image or Gaussians, press Run: a stack of views becomes a layer, with its geometry.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._shown: LayerUpdater[str] = LayerUpdater(napari_viewer)
        suggestions = {"width": 128, "height": 128, "photons": 1e5, "sigma": 1.0}
        self.form = SettingsForm(ProjectionSettings, _MAIN, suggestions, {}, _FOLDED)
        self.form.fields["path"].label = "Views from"
        self.form.fields["views"].label = "Number of views"
        self.form.fields["arc"].label = "Arc (degrees)"
        self.form.fields["photons"].label = "Photons a pixel"
        self.form.fields["depth"].label = "Optical depth"
        self.form.fields["hounsfield"].text = "Hounsfield units"
        self.follow = CheckBox(
            text="Follow the camera", tooltip="Show one view along the viewer's camera, live, here in the dock"
        )
        source = ComboBox(label="Layer", choices=lambda _: [x for x in napari_viewer.layers if _can_be_projected(x)])
        super().__init__(napari_viewer, self.form.rows, [self.follow], source=source)
        for fold in self.form.folds:
            self.content.insertWidget(self.content.indexOf(row_of(self.button)), fold)
        self.live = LiveView(napari_viewer, self._live_task, self._say)
        self.content.addWidget(self.live)
        self.content.addStretch()
        self._thin: tuple[Any, Float32Array] | None = None
        self.form.fields["path"].changed.connect(self._on_path)
        self._on_path(self.form.fields["path"].value)
        self.follow.changed.connect(self.live.switch)
        fields = self.form.fields
        for widget in (self.image, self.time_point, self.level, fields["mode"], fields["hounsfield"]):
            widget.changed.connect(self.live.changed)

    def _on_path(self, path: str) -> None:
        for row, paths in _ROWS.items():
            self.form.fields[row].visible = path in paths

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings = self.form.settings()
        if settings.photons is not None and settings.mode != "xray":
            raise InputError(f"Photons make noise in X-rays; with mode {settings.mode} give sigma.")
        source = self._source()
        self._name, self._grid = self.image.value.name, source.grid
        scan = self._scan(settings, source.grid)
        kind = PROJECTION_KINDS[settings.mode]
        earlier = find_earlier_layer(self._viewer.layers, f"{self._name} · {kind}")
        self._shown = LayerUpdater(self._viewer, {kind: earlier})
        finish = ProjectionPostprocessing(settings.hounsfield, settings.photons, settings.sigma, settings.depth)
        self._start(worker.run_projection, source, scan, settings.mode, finish)

    def _source(self) -> SourceVolume | GaussianVolume:
        """Return what to project; raise if there is nothing, or it is flat."""
        layer = self.image.value
        gaussians = None if layer is None or isinstance(layer, Image) else gaussians_of(layer.metadata)
        source = self._volumes()[0] if gaussians is None else gaussians
        if source.grid.ndim != 3:
            raise InputError(f"'{layer.name}' is flat; a projection is of a volume.")
        return source

    def _scan(self, settings: ProjectionSettings, grid: Grid) -> Scan:
        """Return the geometry that is asked for; pixels of a given number are large enough to see all of the volume."""
        if settings.path == "current view":
            scan = scan_along_view(self._viewer, grid)
        else:
            of = settings
            scan = preset(
                cast(Preset, of.path), grid.shape, voxel_size_mm(grid), beam=of.beam, views=of.views, arc=of.arc
            )
        return scan.with_pixels(settings.width, settings.height)

    def _show(self, taken: ProjectionProgress) -> None:
        self.progress.value = round(1000 * taken.done / taken.count)
        if taken.projections is None:
            self._say(f"{taken.done} of {taken.count} views")
            return
        stack = taken.projections
        kind = PROJECTION_KINDS[stack.kind]
        if self._shown.put(kind, projection_layer(self._name, stack, self._grid)):
            self._present(self._shown.layers[kind])
        (nu, nv), low, high = stack.scan.pixels, stack.images.min(), stack.images.max()
        self._say(f"{len(stack.scan)} views of {nu} x {nv} pixels, {low:.4g} to {high:.4g}.")

    def _present(self, layer: Layer) -> None:
        """Have a new stack be seen: view by view in 2D, without the layer it is of."""
        for name in [self._name, *(f"{self._name} · {kind}" for kind in PROJECTION_KINDS.values())]:
            if name in self._viewer.layers and name != layer.name:
                self._viewer.layers[name].visible = False
        dims = self._viewer.dims
        dims.ndisplay = 2
        dims.order = tuple(range(dims.ndim))
        dims.set_point(dims.ndim - 3, float(layer.translate[0]))
        self._viewer.reset_view()

    def _end(self) -> None:
        if not self._error_shown and self.progress.value < self.progress.max:
            self._say("Stopped; no layer was made.")

    # Following the camera ---------------------------------------------------------------------------------------------

    def _live_task(self) -> Task:
        """Return what makes the picture of the chosen layer as the viewer looks now."""
        source, mode = self._source(), self.form.fields["mode"].value
        units = ProjectionPostprocessing(hounsfield=self.form.fields["hounsfield"].value)
        if isinstance(source, GaussianVolume) and mode == "xray":
            scan, gaussians = scan_along_view(self._viewer, source.grid, _LIVE_PIXELS), source
            return lambda: project(units.before(gaussians), scan).images[0]
        grid = _thinned(source.grid)
        scan = scan_along_view(self._viewer, grid, _LIVE_PIXELS)
        return lambda: project(units.before(self._few_voxels(source, grid)), scan, mode).images[0]

    def _few_voxels(self, source: SourceVolume | GaussianVolume, grid: Grid) -> Float32Array:
        """Return a volume on a coarse grid; the last one is kept."""
        of = source if isinstance(source, GaussianVolume) else source.array
        if self._thin is None or self._thin[0] is not of:
            if isinstance(source, GaussianVolume):
                volume = source.sample(grid)
            else:
                steps = tuple(slice(None, None, n) for n in _steps(source.grid))
                volume = np.asarray(np.asarray(of)[steps], np.float32)
            self._thin = (of, volume)
        return self._thin[1]


def _can_be_projected(layer: Layer) -> bool:
    """Whether a layer is an image that is no stack of views, or has Gaussians."""
    if isinstance(layer, Image):
        return not layer.rgb and scan_of(layer.metadata) is None
    return gaussians_of(layer.metadata) is not None


def _steps(grid: Grid) -> list[int]:
    return [-(-n // _LIVE_VOXELS) for n in grid.shape]


def _thinned(grid: Grid) -> Grid:
    """Return the grid of every so manieth voxel."""
    steps = _steps(grid)
    shape = [-(-n // step) for n, step in zip(grid.shape, steps, strict=True)]
    return Grid(shape, grid.affine @ np.diag([*steps, 1]), grid.units, grid.axis_labels)
