"""Dock widget that reconstructs a volume from X-ray projections."""

from __future__ import annotations

from typing import Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, FileEdit
from napari.layers import Labels, Layer
from napari.viewer import Viewer

from ....errors import InputError
from ....tomography.beer_lambert import hounsfield_to_attenuation
from ....tomography.orbit_settings import OrbitSettings
from ....tomography.scan import Scan, grid_of_scan
from ...layers.conversion import SourceVolume, source_volume
from ...layers.projections import scan_of
from ..shared.form import SettingsForm
from ..shared.layer_choice import LayerChoice
from .base import ReconstructionWidgetBase, has_geometry, is_stack, is_volume
from .worker import ReconstructionRequest

_OWN, _FILE, _ORBIT = "of the layer", "from a file", "circular scan"
_DISTANCES = ("source_to_axis", "source_to_detector")
_SUGGESTIONS = {"width": 128.0, "height": 128.0, "source_to_axis": 750.0, "source_to_detector": 1200.0}


class ReconstructWidget(ReconstructionWidgetBase):
    """Dock widget: choose a stack of projections and run; a volume becomes a layer, with its Gaussians.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        viewer = napari_viewer
        tip = "Stack of X-ray projections, axes view, v, u"
        source = LayerChoice(viewer, "Projections", is_stack, tip, prefers=has_geometry)
        self.geometry = ComboBox(
            label="Geometry",
            choices=[_OWN, _FILE, _ORBIT],
            tooltip="Acquisition geometry: positions of source, detector and volume",
        )
        self.file = FileEdit(
            label="Geometry file", filter="*.json", tooltip="Geometry file, JSON, as gsvolume project writes it"
        )
        self.orbit = SettingsForm(OrbitSettings, tuple(OrbitSettings.model_fields), _SUGGESTIONS, {})
        self.orbit.fields["arc"].label = "Arc (degrees)"
        self.orbit.fields["offset"].label = "Detector offset"
        for name in ("pixel_size", "voxel_size", "offset", *_DISTANCES):
            self.orbit.fields[name].label += " (mm)"
        self.like = LayerChoice(
            viewer, "Voxel grid", is_volume, "Layer that sets the voxel grid and its position", none="of the geometry"
        )
        self.truth = LayerChoice(
            viewer,
            "True volume",
            is_volume,
            "Layer to compare with (PSNR, SSIM); not used by the reconstruction",
            none="unknown",
        )
        self.hounsfield = CheckBox(
            text="Volume is in Hounsfield units",
            tooltip="Convert the true volume to attenuation, 1 / mm, before the comparison",
        )
        self.support = LayerChoice(
            viewer,
            "Support",
            lambda layer: isinstance(layer, Labels),
            "Mask: the volume is zero outside of these labels",
            none="none",
        )
        above = [self.geometry, self.file, *self.orbit.rows, self.like, self.truth, self.hounsfield, self.support]
        self._last: Layer | None = None
        super().__init__(viewer, above=above, source=source)
        self.geometry.changed.connect(self._on_geometry)
        self.orbit.fields["beam"].changed.connect(self._on_geometry)
        self.truth.changed.connect(self._on_truth)
        self._on_truth(self.truth.value)

    # Layer and geometry -----------------------------------------------------------------------------------------------

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        self._suggest_geometry(layer)

    def _suggest_geometry(self, layer: Layer | None) -> None:
        """Choose the geometry of a new layer if it has one, a circular scan otherwise."""
        if layer is not self._last:
            own = layer is not None and has_geometry(layer)
            if own != (self.geometry.value == _OWN):
                self.geometry.value = _OWN if own else _ORBIT
        self._last = layer
        self._on_geometry()

    def _on_geometry(self, *_: Any) -> None:
        self.file.visible = self.geometry.value == _FILE
        circular = self.geometry.value == _ORBIT
        for row in self.orbit.rows:
            row.visible = circular
        for name in _DISTANCES:
            self.orbit.fields[name].visible = circular and self.orbit.fields["beam"].value != "parallel"

    def _on_truth(self, truth: Layer | None) -> None:
        self.hounsfield.visible = truth is not None

    def _scan(self, shape: tuple[int, ...]) -> Scan:
        layer = self.image.value
        if self.geometry.value == _ORBIT:
            return self.orbit.settings().scan(shape)
        if self.geometry.value == _FILE:
            try:
                return Scan.load(self.file.value)
            except OSError as error:
                raise InputError(f"The geometry cannot be read: {error}") from error
        scan = scan_of(layer.metadata)
        if scan is None:
            raise InputError(f"'{layer.name}' has no geometry; choose a geometry file, or enter a circular scan.")
        return scan

    def _request(self, source: SourceVolume) -> ReconstructionRequest:
        scan = self._scan(source.grid.shape)
        like, truth, support = self.like.value, self.truth.value, self.support.value
        middle = source.grid.affine[:-1] @ [*((n - 1) / 2 for n in source.grid.shape), 1]
        grid = grid_of_scan(scan, middle, source.grid.units[-1]) if like is None else source_volume(like).grid
        true, limits = None, None
        if truth is not None:
            reference = source_volume(truth)
            true, limits = reference.array, reference.limits
            if self.hounsfield.value:
                true, (low, high) = hounsfield_to_attenuation(np.asarray(true)), hounsfield_to_attenuation(limits)
                limits = float(low), float(high)
        mask = None if support is None else support.data
        return ReconstructionRequest(
            grid, projections=(source.array, scan), truth=true, support=mask, views=source, limits=limits
        )
