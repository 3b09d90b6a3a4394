"""The dock widget that recovers a volume from X-ray projections."""

from __future__ import annotations

from typing import Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, FileEdit
from napari.layers import Labels, Layer
from napari.viewer import Viewer

from ....errors import InputError
from ....reconstruction.problem import OrbitSettings, Problem
from ....tomography.beer_lambert import hounsfield_to_attenuation
from ....tomography.scan import Scan, grid_of_scan
from ...layers.conversion import SourceVolume, source_volume
from ...layers.projections import scan_of
from ..shared.form import SettingsForm
from ..shared.layer_choice import LayerChoice
from .base import Asked, RecoverWidget, has_geometry, is_stack, is_volume

_OWN, _FILE, _ORBIT = "of the layer", "from a file", "orbit, typed in"
_DISTANCES = ("source_to_axis", "source_to_detector")
_SUGGESTIONS = {"width": 128.0, "height": 128.0, "source_to_axis": 750.0, "source_to_detector": 1200.0}


class ReconstructWidget(RecoverWidget):
    """Choose a stack of projections, press Run: a volume becomes a layer, with its Gaussians.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        viewer = napari_viewer
        tip = "A stack of X-rays: axes view, v, u"
        source = LayerChoice(viewer, "Projections", is_stack, tip, prefers=has_geometry)
        self.geometry = ComboBox(
            label="Geometry",
            choices=[_OWN, _FILE, _ORBIT],
            tooltip="Source, detector and volume of the views",
        )
        self.file = FileEdit(label="File", filter="*.json", tooltip="A scan's geometry, as Project and the shell write")
        self.orbit = SettingsForm(OrbitSettings, tuple(OrbitSettings.model_fields), _SUGGESTIONS, {})
        self.orbit.fields["arc"].label = "Arc (degrees)"
        for name in ("pixel_size", "voxel_size", "offset", *_DISTANCES):
            self.orbit.fields[name].label += " (mm)"
        self.like = LayerChoice(
            viewer, "Voxels", is_volume, "Recover at the voxels of this layer, where it is", none="of the geometry"
        )
        self.truth = LayerChoice(
            viewer, "True volume", is_volume, "Compare with this layer; nothing else is done with it", none="unknown"
        )
        self.hounsfield = CheckBox(
            text="It holds Hounsfield units", tooltip="Compare its attenuation, 1 / mm: the projections are of that"
        )
        self.support = LayerChoice(
            viewer, "Support", lambda layer: isinstance(layer, Labels), "Outside of these labels all is 0", none="all"
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
        """Choose a new layer's geometry if it has one, else something else."""
        if layer is not self._last:
            own = layer is not None and has_geometry(layer)
            if own != (self.geometry.value == _OWN):
                self.geometry.value = _OWN if own else _ORBIT
        self._last = layer
        self._on_geometry()

    def _on_geometry(self, *_: Any) -> None:
        self.file.visible = self.geometry.value == _FILE
        typed = self.geometry.value == _ORBIT
        for row in self.orbit.rows:
            row.visible = typed
        for name in _DISTANCES:
            self.orbit.fields[name].visible = typed and self.orbit.fields["beam"].value != "parallel"

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
            raise InputError(f"'{layer.name}' has no geometry; choose a file of it, or type an orbit in.")
        return scan

    def _asked(self, source: SourceVolume) -> Asked:
        scan = self._scan(source.grid.shape)
        like, truth, support = self.like.value, self.truth.value, self.support.value
        middle = source.grid.affine[:-1] @ [*((n - 1) / 2 for n in source.grid.shape), 1]
        grid = grid_of_scan(scan, middle, source.grid.units[-1]) if like is None else source_volume(like).grid
        true, limits = None, None
        if truth is not None:
            of = source_volume(truth)
            true, limits = of.array, of.limits
            if self.hounsfield.value:
                true, (low, high) = hounsfield_to_attenuation(np.asarray(true)), hounsfield_to_attenuation(limits)
                limits = float(low), float(high)
        inside = None if support is None else support.data
        return Asked(Problem(grid, (source.array, scan), truth=true, support=inside), source, limits)
