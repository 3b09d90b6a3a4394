"""Dock widget that projects an image layer, or Gaussians."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from magicgui.widgets import CheckBox, ComboBox
from napari.layers import Image, Layer
from napari.viewer import Viewer
from pydantic import BaseModel, Field

from ....errors import InputError
from ....gaussians import GaussianVolume
from ....grid import Grid
from ....tomography.noise import OPTICAL_DEPTH
from ....tomography.presets import DEFAULT_VIEWS, Preset, preset_scan
from ....tomography.projections import Projections, project
from ....tomography.scan import Beam, Mode, Scan
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
from .worker import ProjectionPostprocessing, project_layer_steps

_LIVE_PIXELS, _LIVE_VOXELS = 160, 80  # per side, at most: a live view takes some tens of milliseconds
_MAIN = ("path", "beam", "views", "arc", "mode")
_FOLDED = {"Detector": ("width", "height"), "Noise and units": ("photons", "sigma", "depth", "hounsfield")}
# Rows that apply to some scans only.
_ROWS: dict[str, tuple[str, ...]] = {
    "beam": ("circle", "limited arc", "biplane"),
    "views": ("circle", "limited arc", "C-arm"),
    "arc": ("limited arc",),
}


class ProjectionSettings(BaseModel):
    """Settings of a projection."""

    path: Literal[Preset, "current view"] = Field(
        "circle", description="Scan: around the first axis of the volume, or a single view along the camera"
    )
    beam: Beam = Field("parallel", description="Beam geometry: parallel, fan or cone")
    views: int = Field(DEFAULT_VIEWS, ge=1, le=10_000, description="Number of views, evenly spread over the arc")
    arc: float = Field(120.0, gt=0, le=360, description="Arc of the views, degrees")
    mode: Mode = Field("xray", description="Line integrals (xray), or maximum, minimum or mean intensity projections")
    width: int | None = Field(
        None, ge=1, le=8192, description="Number of detector pixels along u (default: pixels of the size of a voxel)"
    )
    height: int | None = Field(
        None, ge=1, le=8192, description="Number of detector pixels along v (default: pixels of the size of a voxel)"
    )
    photons: float | None = Field(
        None, gt=0, description="Unattenuated photons per pixel, for Poisson noise (xray only)"
    )
    sigma: float | None = Field(
        None, gt=0, description="Standard deviation of additive Gaussian noise, in the unit of a pixel"
    )
    depth: float = Field(
        OPTICAL_DEPTH,
        gt=0,
        le=50,
        description="Optical depth of the largest line integral, which sets the transmission of the photons",
    )
    hounsfield: bool = Field(False, description="Convert the volume from Hounsfield units to attenuation, 1 / mm")


class ProjectWidget(RunWidget):
    """Dock widget: choose an image or Gaussians and run; a stack of projections becomes a layer, with its geometry.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._shown: LayerUpdater[str] = LayerUpdater(napari_viewer)
        suggestions = {"width": 128, "height": 128, "photons": 1e5, "sigma": 1.0}
        self.form = SettingsForm(ProjectionSettings, _MAIN, suggestions, {}, _FOLDED)
        self.form.fields["path"].label = "Views from"
        self.form.fields["views"].label = "Number of views"
        self.form.fields["arc"].label = "Arc (degrees)"
        self.form.fields["photons"].label = "Photons per pixel"
        self.form.fields["depth"].label = "Optical depth"
        self.form.fields["hounsfield"].text = "Volume is in Hounsfield units"
        self.follow = CheckBox(
            text="Follow the camera", tooltip="Show a live view along the camera of the viewer, below the form"
        )
        source = ComboBox(label="Layer", choices=lambda _: [x for x in napari_viewer.layers if _is_projectable(x)])
        super().__init__(napari_viewer, self.form.rows, [self.follow], source=source)
        for fold in self.form.folds:
            self.content.insertWidget(self.content.indexOf(row_of(self.button)), fold)
        self.live = LiveView(napari_viewer, self._live_task, self._say)
        self.content.addWidget(self.live)
        self.content.addStretch()
        self._coarse: tuple[Any, Float32Array] | None = None
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
            raise InputError(f"Photon noise needs line integrals (xray); with mode {settings.mode} use sigma.")
        source = self._source()
        self._name, self._grid = self.image.value.name, source.grid
        scan = self._scan(settings, source.grid)
        kind = PROJECTION_KINDS[settings.mode]
        earlier = find_earlier_layer(self._viewer.layers, f"{self._name} · {kind}")
        self._shown = LayerUpdater(self._viewer, {kind: earlier})
        s = settings
        postprocessing = ProjectionPostprocessing(s.hounsfield, s.photons, s.sigma, s.depth)
        self._start(project_layer_steps, source, scan, settings.mode, postprocessing)

    def _source(self) -> SourceVolume | GaussianVolume:
        """Return the voxels or Gaussians to project; raise an error if there are none, or they are flat."""
        layer = self.image.value
        gaussians = None if layer is None or isinstance(layer, Image) else gaussians_of(layer.metadata)
        source = self._volumes()[0] if gaussians is None else gaussians
        if source.grid.ndim != 3:
            raise InputError(f"'{layer.name}' is flat; a projection needs a volume.")
        return source

    def _scan(self, settings: ProjectionSettings, grid: Grid) -> Scan:
        """Return the acquisition geometry; a given number of pixels covers all of the volume."""
        if settings.path == "current view":
            scan = scan_along_view(self._viewer, grid)
        else:
            scan = preset_scan(
                settings.path,
                grid.shape,
                voxel_size_mm(grid),
                beam=settings.beam,
                views=settings.views,
                arc=settings.arc,
            )
        return scan.with_pixels(settings.width, settings.height)

    def _show_result(self, projections: Projections | None) -> None:
        if projections is None:
            self._say("Stopped; no layer was made.")
            return
        kind = PROJECTION_KINDS[projections.kind]
        if self._shown.put(kind, projection_layer(self._name, projections, self._grid)):
            self._present(self._shown.layers[kind])
        self.progress.value = self.progress.max
        (nu, nv), low, high = projections.scan.pixels, projections.images.min(), projections.images.max()
        self._say(f"{len(projections.scan)} views of {nu} x {nv} pixels, {low:.4g} to {high:.4g}.")

    def _present(self, layer: Layer) -> None:
        """Show a new stack view by view in 2D, and hide the layer that was projected."""
        for name in [self._name, *(f"{self._name} · {kind}" for kind in PROJECTION_KINDS.values())]:
            if name in self._viewer.layers and name != layer.name:
                self._viewer.layers[name].visible = False
        dims = self._viewer.dims
        dims.ndisplay = 2
        dims.order = tuple(range(dims.ndim))
        dims.set_point(dims.ndim - 3, float(layer.translate[0]))
        self._viewer.reset_view()

    # Following the camera ---------------------------------------------------------------------------------------------

    def _live_task(self) -> Task:
        """Return the task that projects the chosen layer along the camera."""
        source, mode = self._source(), self.form.fields["mode"].value
        units = ProjectionPostprocessing(hounsfield=self.form.fields["hounsfield"].value)
        if isinstance(source, GaussianVolume) and mode == "xray":
            scan, gaussians = scan_along_view(self._viewer, source.grid, _LIVE_PIXELS), source
            return lambda: project(units.to_attenuation(gaussians), scan).images[0]
        grid = _coarse_grid(source.grid)
        scan = scan_along_view(self._viewer, grid, _LIVE_PIXELS)
        return lambda: project(units.to_attenuation(self._coarse_voxels(source, grid)), scan, mode).images[0]

    def _coarse_voxels(self, source: SourceVolume | GaussianVolume, grid: Grid) -> Float32Array:
        """Return a volume on a coarse grid; the last volume is cached."""
        key = source if isinstance(source, GaussianVolume) else source.array
        if self._coarse is None or self._coarse[0] is not key:
            if isinstance(source, GaussianVolume):
                volume = source.sample(grid)
            else:
                steps = tuple(slice(None, None, n) for n in _steps(source.grid))
                volume = np.asarray(np.asarray(source.array)[steps], np.float32)
            self._coarse = (key, volume)
        return self._coarse[1]


def _is_projectable(layer: Layer) -> bool:
    """Return True for an image that is not a stack of projections, and for a layer of Gaussians."""
    if isinstance(layer, Image):
        return not layer.rgb and scan_of(layer.metadata) is None
    return gaussians_of(layer.metadata) is not None


def _steps(grid: Grid) -> list[int]:
    return [-(-n // _LIVE_VOXELS) for n in grid.shape]


def _coarse_grid(grid: Grid) -> Grid:
    """Return the grid of every n-th voxel."""
    steps = _steps(grid)
    shape = [-(-n // step) for n, step in zip(grid.shape, steps, strict=True)]
    return Grid(shape, grid.affine @ np.diag([*steps, 1]), grid.units, grid.axis_labels)
