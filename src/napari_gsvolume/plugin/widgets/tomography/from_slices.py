"""The dock widget that recovers a volume from some of its slices, and perhaps projections of it."""

from __future__ import annotations

from typing import Any, Literal

from magicgui.widgets import FloatSpinBox
from napari.viewer import Viewer
from pydantic import BaseModel, Field

from ....reconstruction.problem import Problem, SliceStack, isotropic_grid, slice_axis
from ...layers.conversion import SourceVolume, source_volume
from ...layers.projections import scan_of
from ..shared.form import SettingsForm
from ..shared.layer_choice import LayerChoice
from .base import Asked, RecoverWidget, has_geometry, is_volume

Known = Literal["whole stack", "every k-th", "not NaN"]
_STACK: Known = "whole stack"
_EVERY: Known = "every k-th"
_NOT_NAN: Known = "not NaN"


class SliceSettings(BaseModel):
    """Which slices of the layer are known."""

    known: Known = Field(
        _STACK,
        description="whole stack: all, and the volume gets voxels as fine along the axis as across; every k-th: the "
        "first and so on, the others are compared with; not NaN: those that hold numbers",
    )
    axis: Literal["z", "y", "x"] = Field("z", description="Axis of the layer that slices are stacked along")
    every: int = Field(4, ge=2, le=1000, description="k: of so many slices one is known")
    thickness: float = Field(
        0.0, ge=0, le=1000, description="Of the slices, full width at half maximum, mm; 0: they are samples"
    )


class FromSlicesWidget(RecoverWidget):
    """Choose slices, press Run: the volume between them becomes a layer, with its Gaussians.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        viewer = napari_viewer
        self.slices = SettingsForm(SliceSettings, tuple(SliceSettings.model_fields), {}, {})
        self.slices.fields["known"].label = "Known slices"
        self.slices.fields["every"].label = "k"
        self.slices.fields["thickness"].label = "Thickness (mm)"
        tip = "Another stack of the same volume, of any orientation; its slices lie along the axis of its longest step"
        self.others = [LayerChoice(viewer, label, is_volume, tip, none="none") for label in ("Also", "And")]
        self.thicknesses = [
            FloatSpinBox(label="Its thickness (mm)", tooltip="As above, of this stack", max=1000) for _ in self.others
        ]
        others = [row for rows in zip(self.others, self.thicknesses, strict=True) for row in rows]
        self.views = LayerChoice(
            viewer, "Projections", has_geometry, "X-rays of the same volume, around its middle", none="none"
        )
        source = LayerChoice(viewer, "Slices", is_volume, "A stack of slices, or a volume to take them from")
        super().__init__(viewer, above=[*self.slices.rows, *others, self.views], source=source)
        self.slices.fields["known"].changed.connect(self._on_known)
        self._on_known(self.slices.fields["known"].value)
        for other in self.others:
            other.changed.connect(self._on_others)
        self._on_others()

    def _on_known(self, known: str) -> None:
        self.slices.fields["every"].visible = known == _EVERY
        self.slices.fields["axis"].visible = known != _NOT_NAN

    def _on_others(self, *_: Any) -> None:
        for other, thickness in zip(self.others, self.thicknesses, strict=True):
            thickness.visible = other.value is not None

    def _asked(self, source: SourceVolume) -> Asked:
        asked = self.slices.settings()
        axis = "zyx".index(asked.axis)
        every = asked.every if asked.known == _EVERY else 1
        others = [
            (source_volume(box.value), thickness.value)
            for box, thickness in zip(self.others, self.thicknesses, strict=True)
            if box.value is not None
        ]
        grid = isotropic_grid(source.grid, axis) if asked.known == _STACK else source.grid
        stacks = [
            SliceStack(source.array, source.grid, None if asked.known == _NOT_NAN else axis, every, asked.thickness),
            *(SliceStack(o.array, o.grid, slice_axis(o.grid), thickness=thickness) for o, thickness in others),
        ]
        views, projections = None, None
        if self.views.value is not None:
            views = source_volume(self.views.value)
            scan = scan_of(self.views.value.metadata)
            projections = None if scan is None else (views.array, scan)
        truth = source.array if asked.known == _EVERY else None
        return Asked(Problem(grid, projections, stacks, truth), views, source.limits)
