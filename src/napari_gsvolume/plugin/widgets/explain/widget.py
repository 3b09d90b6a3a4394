"""Dock widget that explains networks: decompositions, samples, maps, counterfactuals, concepts and findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, Container, Select, SpinBox
from napari.layers import Image, Layer
from napari.utils.notifications import show_warning
from napari.viewer import Viewer
from qtpy.QtWidgets import QFileDialog, QTabWidget
from superqt import QCollapsible

from ....errors import InputError
from ....explain.settings import InputSettings, TrackSettings
from ....progress import Step
from ...layers.conversion import SourceVolume, source_volume
from ...layers.explanation import is_part_of_explanation
from ..shared.base import RunWidget
from ..shared.layer_choice import LayerChoice
from ..shared.visibility import VisibilityFilter
from .findings_tabs import ConceptsTab, FindingsTab
from .map_tabs import MapsTab, WhatIfTab
from .model_tab import ModelTab
from .sample_tabs import SamplesTab, SpectraTab, Stage
from .worker import (
    ExplainedImages,
    SavedReport,
    TrainingStep,
    explain_images_steps,
    save_report_steps,
    track_folder_steps,
)


class ExplainWidget(RunWidget):
    """Widget to explain a model on images: singular values, samples, maps, counterfactuals and findings of its layers.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer to take layers from and to add layers to.
    """

    _START = "Explain"

    def __init__(self, napari_viewer: Viewer) -> None:
        self._ready = False
        self._then: Callable[[Any], None] = lambda _: None
        source = LayerChoice(napari_viewer, "Image", _is_image, "Image layer that the model is run on")
        self.more = Select(
            label="Images",
            choices=self._others,
            nullable=False,
            tooltip="Further images: groups that are compared, or channels of one input",
        )
        self._more_rows: Container[Any] = Container(widgets=[self.more])
        self._more_rows.margins = (0, 0, 0, 0)
        self.layer = ComboBox(label="Layer", choices=[], tooltip="Layer of the model that the tabs show")
        self.concept = SpinBox(
            label="Concept", min=1, max=1, value=1, tooltip="Concept of the layer (component), from 1"
        )
        super().__init__(napari_viewer, [], [], source=source)
        self.stage = Stage(napari_viewer, self._say, self._run)
        self.model = ModelTab(self._warn, self._on_model)
        self.spectra = SpectraTab(self.stage, self._on_plot)
        self.samples = SamplesTab(self.stage)
        self.maps = MapsTab(self.stage)
        self.what_if = WhatIfTab(self.stage)
        self.concepts = ConceptsTab(self.stage)
        self.findings = FindingsTab(self.stage, self._on_track)
        self.export = self.findings.export
        self._which: Container[Any] = Container(widgets=[self.layer, self.concept])
        self._which.margins = (0, 0, 0, 0)
        self.tabs = QTabWidget()
        self.tabs.setUsesScrollButtons(False)
        self.tabs.tabBar().setExpanding(False)
        titles = ("Model", "Spectra", "Samples", "Maps", "What if", "Concepts", "Findings")
        self._views = (self.spectra, self.samples, self.maps, self.what_if, self.concepts)
        for tab, title in zip((self.model, *self._views, self.findings), titles, strict=True):
            self.tabs.addTab(tab, title)
        self._fold = QCollapsible("More images", collapsedIcon="▶")
        self._fold.addWidget(self._more_rows.native)
        self._fold.layout().setContentsMargins(0, 0, 0, 0)
        at = self.content.indexOf(self.button.native)
        self.content.insertWidget(at, self._fold)
        for widget in (self._which.native, self.tabs):
            self.content.addWidget(widget)
        self.content.addStretch()
        self._connect()
        self._ready = True
        self._more_rows.reset_choices()
        self._show_explained(None)

    def _connect(self) -> None:
        self.layer.changed.connect(self._on_layer)
        self.concept.changed.connect(self._on_concept)
        self.export.changed.connect(self._on_export)
        self.tabs.currentChanged.connect(self._on_tab)
        self._viewer.dims.events.point.connect(self.what_if.follow)
        self._visibility = VisibilityFilter(hidden=self._forget)
        self.native.installEventFilter(self._visibility)

    @property
    def explained(self) -> ExplainedImages | None:
        """Result of the last run."""
        return self.stage.explained

    @property
    def busy(self) -> bool:
        """True while a run or a background task is in progress."""
        return self.running or self.model.busy or self.maps.latest.busy or self.what_if.latest.busy

    def _forget(self) -> None:
        """Discard background tasks: the widget is gone."""
        self.model.drop()
        self.maps.latest.drop()
        self.what_if.latest.drop()

    def _leave(self) -> None:
        if self._left or not self._ready:
            return
        super()._leave()
        self._forget()
        self.samples.leave()
        self._viewer.dims.events.point.disconnect(self.what_if.follow)

    def _warn(self, text: str) -> None:
        self._say(text, show_warning)

    # Images and model ------------------------------------------------------------------------------------------------

    def _others(self, _: Any) -> list[Layer]:
        if not self._ready:
            return []
        return [layer for layer in self._viewer.layers if _is_image(layer) and layer != self.image.value]

    def reset_choices(self, *args: Any) -> None:
        """Follow the viewer's layers; napari calls it when they change."""
        super().reset_choices(*args)
        if self._ready:
            self._more_rows.reset_choices()
            self.samples.reset_choices()
            self.concepts.reset_choices()

    def _on_image(self, layer: Layer | None) -> None:
        super()._on_image(layer)
        if self._ready:
            self._more_rows.reset_choices()

    def _selected_images(self) -> list[SourceVolume]:
        """Return the selected volumes; raise InputError if there are none."""
        sources = [*self._volumes(), *(source_volume(layer) for layer in self.more.value)]
        for source in sources:
            if len(source.grid.shape) != len(sources[0].grid.shape):
                raise InputError(f"'{source.name}' and '{sources[0].name}' differ in their number of axes.")
        return sources

    def _on_model(self) -> None:
        self._say("The model is loaded; check the layers to explain, then press Explain.")

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        loaded = self.model.loaded
        if loaded is None:
            self.tabs.setCurrentWidget(self.model)
            raise InputError("There is no model; load one first, in the tab Model.")
        sources, settings = self._selected_images(), self.model.settings()
        self._run(explain_images_steps, loaded, sources, settings, then=self._on_explained)

    def _run(self, run: Any, *args: Any, then: Callable[[Any], None]) -> None:
        """Start a long run, unless one is in progress; its result goes to `then`, unless it is None."""
        if self.running:
            self._say("A run is in progress; wait for its end, or stop it.")
            return
        self._done, self._then = False, then
        self._start(run, *args)

    def _show_step(self, step: Step) -> None:
        super()._show_step(step)
        if isinstance(step, TrainingStep):
            self._done = True
            self.findings.show_training(step.training)

    def _show_result(self, result: Any) -> None:
        if result is not None:
            self._done = True
            self._then(result)

    def _on_explained(self, result: ExplainedImages) -> None:
        e = result.explanation
        self._say(f"{len(e.layers) or 'No'} layers, {len(e.images.places)} inputs, {e.seconds:.1f} s.")
        self._show_explained(result)

    def _on_saved(self, saved: SavedReport) -> None:
        self._say(f"Saved report.html and {len(saved.files) - 1} files beside it in {saved.folder}.")

    def _end(self) -> None:
        if self._done and not self._error_shown:
            self.progress.value = self.progress.max
        elif not self._error_shown:
            self._say("Stopped before there was anything to show.")

    def _show_explained(self, explained: ExplainedImages | None) -> None:
        """Show an explanation in all tabs; the selected layer is kept."""
        self.stage.explained = explained
        names = [] if explained is None else [name for name, d in explained.explanation.layers.items() if d.k]
        before = self.layer.value
        with self.layer.changed.blocked():
            self.layer.choices = names
            if names:
                self.layer.value = before if before in names else names[len(names) // 2]
        for tab in (self.maps, self.what_if, self.concepts):
            tab.forget()
        self._which.enabled = bool(names)
        self.export.enabled = explained is not None
        self.findings.show_findings(explained)
        if explained is not None:
            self.model.show_shapes({name: _shape(d) for name, d in explained.explanation.layers.items()})
            if self.tabs.currentWidget() is self.model:
                self.tabs.setCurrentWidget(self.spectra if names else self.findings)
        self._on_layer()

    def _on_layer(self, *_: Any) -> None:
        self.stage.layer = self.layer.value or ""
        d = self.stage.decomposition
        with self.concept.changed.blocked():
            self.concept.max = max(1, 1 if d is None else d.k)
        self.stage.mode = int(self.concept.value)
        for tab in self._views:
            tab.renew()

    def _on_concept(self, mode: int) -> None:
        self.stage.mode = int(mode)
        self.spectra.mark()
        self.samples.renew()
        self.what_if.follow()

    def _on_plot(self, mode: int) -> None:
        self.concept.value = min(max(mode, 1), self.concept.max)

    def _on_tab(self, *_: Any) -> None:
        if self.tabs.currentWidget() is self.what_if:
            self.what_if.follow()

    # Reports and trainings --------------------------------------------------------------------------------------------

    def _on_export(self) -> None:
        if self.explained is None:
            return
        folder = QFileDialog.getExistingDirectory(self.native, "Save the report to a folder")
        if folder:
            self._run(save_report_steps, self.explained, Path(folder), then=self._on_saved)

    def _on_track(self, folder: Path) -> None:
        try:
            chosen = self.model.form.settings()
            same = {name: getattr(chosen, name) for name in (*InputSettings.model_fields, "k")}
            settings = TrackSettings(**same | {"slices": chosen.slices or TrackSettings().slices})
            if self.model.loaded is not None:
                settings = settings.model_copy(update={"layers": self.model.layers})
            self._run(track_folder_steps, folder, self.model.loaded, self._selected_images(), settings, then=self._say)
        except (ValueError, MemoryError) as error:
            self._warn(str(error))


def _is_image(layer: Layer) -> bool:
    return isinstance(layer, Image) and not is_part_of_explanation(layer)


def _shape(d: Any) -> str:
    """Return the grid of the first piece and the number of features of a layer."""
    grid = () if d.places is None or not len(d.places.grids) else tuple(d.places.grids[0])
    return " x ".join(map(str, (*grid, d.features)))
