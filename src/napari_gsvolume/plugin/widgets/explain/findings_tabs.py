"""Tabs of the Explain widget: test of a painted concept, findings, and the evolution of a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicgui.widgets import ComboBox, Container, PushButton, SpinBox
from napari.layers import Labels
from napari.utils.notifications import show_warning
from qtpy.QtWidgets import QFileDialog, QLabel, QPlainTextEdit

from ....explain.tracking.evolution_csv import read_evolutions
from ...layers.conversion import label_array
from ..shared.layer_choice import LayerChoice
from ..shared.tabs import Tab
from .painted_concept import PaintedConcept, painted_concept_steps
from .plots import CosinePlot, EvolutionPlot
from .sample_tabs import Stage
from .worker import ExplainedImages, TrackedTraining


class ConceptsTab(Tab):
    """Test of a concept that is painted on the image.

    Attributes
    ----------
    labels : LayerChoice
    output : SpinBox
        Output channel that is tested, of models other than super-resolution.
    test : PushButton
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.labels = LayerChoice(
            stage.viewer,
            "Painted",
            lambda layer: isinstance(layer, Labels),
            "Labels layer with the concept painted in two or more slices. Unpainted voxels of these are without it; or "
            "paint label 1 with the concept and label 2 without it, and leave the rest undecided",
        )
        self.output = SpinBox(label="Output", min=0, max=100_000, value=0, tooltip="Output channel that is tested")
        self.test = PushButton(
            text="Test concept", tooltip="Test if the layer encodes the concept and the output depends on it"
        )
        self._rows: Container[Any] = Container(widgets=[self.labels, self.output, self.test])
        self._rows.margins = (0, 0, 0, 0)
        self.plot = CosinePlot(stage.viewer)
        self.message = QLabel("")
        self.message.setWordWrap(True)
        super().__init__(self._rows.native, self.message, self.plot)
        self.test.changed.connect(self._on_test)

    def reset_choices(self, *_: Any) -> None:
        """Update the choices of layers."""
        self._rows.reset_choices()

    def renew(self) -> None:
        """Enable the test if the layer is decomposed."""
        explained = self._stage.explained
        self._rows.enabled = self._stage.decomposition is not None
        self.output.visible = explained is not None and explained.explanation.model.sr is None

    def forget(self) -> None:
        """Discard results of an earlier explanation."""
        self.message.setText("")
        self.plot.show_cosines(None)

    def _on_test(self) -> None:
        stage, layer = self._stage, self.labels.value
        if stage.explained is None or stage.decomposition is None:
            return
        if layer is None:
            stage.say("There is no labels layer; add one, and paint the concept on the image.", show_warning)
            return
        try:
            labels = label_array(layer, stage.explained.sources[0].grid)
        except ValueError as error:
            stage.say(str(error), show_warning)
            return
        stage.start(
            painted_concept_steps,
            stage.explained.explanation,
            0,
            stage.layer,
            labels,
            int(self.output.value),
            then=self.show_concept,
        )

    def show_concept(self, made: PaintedConcept) -> None:
        """Show the result of a test."""
        self._stage.say("Tested the concept.")
        self.message.setText(made.summary)
        self.plot.show_cosines(made.cosines)


class FindingsTab(Tab):
    """Findings in sentences, and the evolution of layers in a training.

    Attributes
    ----------
    text : QPlainTextEdit
    export : PushButton
    table, checkpoints : PushButton
        Open the table of a tracked training, or track the checkpoints in a folder.
    layer : ComboBox
        Layer of the training that is drawn in colour.

    Parameters
    ----------
    stage : Stage
    track : callable
        Called with a folder of checkpoints.
    """

    def __init__(self, stage: Stage, track: Callable[[Path], None]) -> None:
        self._stage, self._track = stage, track
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setMinimumHeight(110)
        self.text.setMaximumHeight(260)
        self.table = PushButton(
            text="Training: table…", tooltip="Open a table of train-sr --track or of gsvolume track"
        )
        self.checkpoints = PushButton(text="Training: checkpoints…", tooltip="Track the checkpoints in a folder")
        self.export = PushButton(
            text="Save report…", tooltip="Save a page with all figures, and the tables, in a folder"
        )
        self.layer = ComboBox(label="Layer", choices=[], tooltip="Layer of the training that is drawn in colour")
        self._buttons: Container[Any] = Container(
            widgets=[self.table, self.checkpoints], layout="horizontal", labels=False
        )
        self._rows: Container[Any] = Container(widgets=[self.layer])
        for rows in (self._buttons, self._rows):
            rows.margins = (0, 0, 0, 0)
        self.plot = EvolutionPlot(stage.viewer)
        super().__init__(self.text, self.export.native, self._buttons.native, self._rows.native, self.plot)
        self._rows.visible = False
        self._found: list[str] = []
        self._training: TrackedTraining | None = None
        self.table.changed.connect(self._on_table)
        self.checkpoints.changed.connect(self._on_checkpoints)
        self.layer.changed.connect(self._draw)

    def show_findings(self, explained: ExplainedImages | None) -> None:
        """List the findings of an explanation."""
        self._found = []
        if explained is not None:
            self._found = [*explained.explanation.notes, *(f.sentence for f in explained.findings)]
            if not explained.findings:
                self._found.append("No threshold was crossed.")
        self._write()

    def show_training(self, training: TrackedTraining) -> None:
        """Draw a training, and list its findings."""
        self._training = training
        names, before = list(training.layers), self.layer.value
        with self.layer.changed.blocked():
            self.layer.choices = names
            if before in names or self._stage.layer in names:
                self.layer.value = before if before in names else self._stage.layer
        self._rows.visible = True
        self._write()
        self._draw()

    def _write(self) -> None:
        sentences = [f"• {text}" for text in self._found]
        if self._training is not None and self._training.findings:
            sentences += ["", "In the training:", *(f"• {f.sentence}" for f in self._training.findings)]
        self.text.setPlainText("\n".join(sentences))

    def _draw(self, *_: Any) -> None:
        if self._training is not None and self.layer.value:
            self.plot.show_layers(self._training.layers, self.layer.value)

    def _on_table(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open table of a training", "", "Tables (*.csv)")
        if not path:
            return
        try:
            self.show_training(TrackedTraining(read_evolutions(path)))
        except (ValueError, OSError) as error:
            self._stage.say(str(error), show_warning)

    def _on_checkpoints(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Open a folder of checkpoints")
        if folder:
            self._track(Path(folder))
