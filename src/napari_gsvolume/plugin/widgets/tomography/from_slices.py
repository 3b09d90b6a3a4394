"""Dock widget that reconstructs a volume from some of its slices, optionally together with projections."""

from __future__ import annotations

from typing import Any, Literal

from magicgui.widgets import FloatSpinBox
from napari.viewer import Viewer
from pydantic import BaseModel, Field

from ....reconstruction.problem import SliceStack, isotropic_grid, slice_axis
from ...layers.conversion import SourceVolume, source_volume
from ...layers.projections import scan_of
from ..shared.form import SettingsForm
from ..shared.layer_choice import LayerChoice
from .base import ReconstructionWidgetBase, has_geometry, is_volume
from .worker import ReconstructionRequest

Known = Literal["whole stack", "every k-th", "not NaN"]
_STACK: Known = "whole stack"
_EVERY: Known = "every k-th"
_NOT_NAN: Known = "not NaN"
_ORDINALS = ("Second", "Third")


class SliceSettings(BaseModel):
    """Known slices of the layer."""

    known: Known = Field(
        _STACK,
        description="Known slices. whole stack: all slices, reconstructed with isotropic voxels; every k-th: one slice "
        "in k, compared with the other slices; not NaN: slices without NaN",
    )
    axis: Literal["z", "y", "x"] = Field("z", description="Axis of the layer along which slices are stacked")
    every: int = Field(4, ge=2, le=1000, description="Slice spacing k: one slice in k is known")
    thickness: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Slice thickness (full width at half maximum of the slice profile), mm; 0 for point samples",
    )


class FromSlicesWidget(ReconstructionWidgetBase):
    """Dock widget: choose slices and run; the volume between them becomes a layer, with its Gaussians.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        Viewer to take layers from and to add layers to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        viewer = napari_viewer
        self.slices = SettingsForm(SliceSettings, tuple(SliceSettings.model_fields), {}, {})
        self.slices.fields["known"].label = "Known slices"
        self.slices.fields["every"].label = "Slice spacing k (one slice in k is known)"
        self.slices.fields["thickness"].label = "Slice thickness (mm)"
        tip = "Another stack of the same volume, of any orientation; slices lie along its axis of largest spacing"
        self.others = [LayerChoice(viewer, f"{ordinal} stack", is_volume, tip, none="none") for ordinal in _ORDINALS]
        self.thicknesses = [
            FloatSpinBox(
                label=f"{ordinal} slice thickness (mm)",
                tooltip=f"Slice thickness of the {ordinal.lower()} stack, mm; 0 for point samples",
                max=1000,
            )
            for ordinal in _ORDINALS
        ]
        others = [row for rows in zip(self.others, self.thicknesses, strict=True) for row in rows]
        self.views = LayerChoice(
            viewer, "Projections", has_geometry, "X-rays of the same volume, around its centre", none="none"
        )
        source = LayerChoice(viewer, "Slices", is_volume, "Stack of slices, or volume to take slices from")
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

    def _request(self, source: SourceVolume) -> ReconstructionRequest:
        settings = self.slices.settings()
        axis = "zyx".index(settings.axis)
        every = settings.every if settings.known == _EVERY else 1
        others = [
            (source_volume(box.value), thickness.value)
            for box, thickness in zip(self.others, self.thicknesses, strict=True)
            if box.value is not None
        ]
        grid = isotropic_grid(source.grid, axis) if settings.known == _STACK else source.grid
        stack_axis = None if settings.known == _NOT_NAN else axis
        stacks = [
            SliceStack(source.array, source.grid, stack_axis, every, settings.thickness),
            *(SliceStack(o.array, o.grid, slice_axis(o.grid), thickness=thickness) for o, thickness in others),
        ]
        views, projections = None, None
        if self.views.value is not None:
            views = source_volume(self.views.value)
            scan = scan_of(self.views.value.metadata)
            projections = None if scan is None else (views.array, scan)
        truth = source.array if settings.known == _EVERY else None
        return ReconstructionRequest(grid, stacks, projections, truth=truth, views=views, limits=source.limits)
