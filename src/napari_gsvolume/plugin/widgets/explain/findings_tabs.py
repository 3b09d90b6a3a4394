"""The tabs of the Explain widget that test a painted concept, and say what was found."""

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
from .painted_concept import PaintedConcept, run_painted
from .plots import CosinePlot, EvolutionPlot
from .sample_tabs import Stage
from .worker import Explained, Followed


class ConceptsTab(Tab):
    """A concept painted on the image, tested in the layer.

    Attributes
    ----------
    labels : LayerChoice
    output : SpinBox
        Which output is asked about, of other models than super-resolutions.
    test : PushButton
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.labels = LayerChoice(
            stage.viewer, "Painted", lambda layer: isinstance(layer, Labels),
            "Paint the concept in two slices or more. What is not painted of these is not the concept; or paint label "
            "1 where it is and 2 where it is not, and leave the rest open",
        )  # fmt: skip
        self.output = SpinBox(label="Output", min=0, max=100_000, value=0, tooltip="Which output is asked about")
        self.test = PushButton(text="Test concept", tooltip="Whether the layer tells it, and the output depends on it")
        self._rows: Container[Any] = Container(widgets=[self.labels, self.output, self.test])
        self._rows.margins = (0, 0, 0, 0)
        self.plot = CosinePlot(stage.viewer)
        self.said = QLabel("")
        self.said.setWordWrap(True)
        super().__init__(self._rows.native, self.said, self.plot)
        self.test.changed.connect(self._on_test)

    def reset_choices(self, *_: Any) -> None:
        """Follow the viewer's layers."""
        self._rows.reset_choices()

    def renew(self) -> None:
        """Offer the test where there is something to be tested."""
        explained = self._stage.explained
        self._rows.enabled = self._stage.decomposition is not None
        self.output.visible = explained is not None and explained.of.loaded.sr is None

    def forget(self) -> None:
        """Show nothing of an earlier explanation."""
        self.said.setText("")
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
        stage.start(run_painted, stage.explained.of, 0, stage.layer, labels, int(self.output.value))

    def show_concept(self, made: PaintedConcept) -> None:
        """Show what the test came to."""
        self.said.setText(made.said)
        self.plot.show_cosines(made.cosines)


class FindingsTab(Tab):
    """What was found, in sentences; and how layers evolved in a training.

    Attributes
    ----------
    text : QPlainTextEdit
    export : PushButton
    table, checkpoints : PushButton
        Open the table of a training that was followed, or follow the checkpoints in a folder.
    layer : ComboBox
        Which layer of the training is drawn.

    Parameters
    ----------
    stage : Stage
    follow : callable
        Is given a folder of checkpoints.
    """

    def __init__(self, stage: Stage, follow: Callable[[Path], None]) -> None:
        self._stage, self._follow = stage, follow
        self.text = QPlainTextEdit()
        self.text.setReadOnly(True)
        self.text.setMinimumHeight(110)
        self.text.setMaximumHeight(260)
        self.table = PushButton(text="Training: table…", tooltip="The table of train-sr --track, or of gsvolume track")
        self.checkpoints = PushButton(text="Training: checkpoints…", tooltip="Follow the checkpoints in a folder")
        self.export = PushButton(text="Save report…", tooltip="A page with all figures, and the tables, in a folder")
        self.layer = ComboBox(label="Layer", choices=[], tooltip="Which layer of the training is drawn in colour")
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
        self._followed: Followed | None = None
        self.table.changed.connect(self._on_table)
        self.checkpoints.changed.connect(self._on_checkpoints)
        self.layer.changed.connect(self._draw)

    def show_findings(self, explained: Explained | None) -> None:
        """Say what was found in an explanation."""
        self._found = []
        if explained is not None:
            self._found = [*explained.of.notes, *(f.sentence for f in explained.findings)]
            if not explained.findings:
                self._found.append("No threshold was crossed.")
        self._write()

    def show_training(self, followed: Followed) -> None:
        """Draw a training, and say what was found in it."""
        self._followed = followed
        names, before = list(followed.layers), self.layer.value
        with self.layer.changed.blocked():
            self.layer.choices = names
            if before in names or self._stage.layer in names:
                self.layer.value = before if before in names else self._stage.layer
        self._rows.visible = True
        self._write()
        self._draw()

    def _write(self) -> None:
        sentences = [f"• {text}" for text in self._found]
        if self._followed is not None and self._followed.findings:
            sentences += ["", "In the training:", *(f"• {f.sentence}" for f in self._followed.findings)]
        self.text.setPlainText("\n".join(sentences))

    def _draw(self, *_: Any) -> None:
        if self._followed is not None and self.layer.value:
            self.plot.show_layers(self._followed.layers, self.layer.value)

    def _on_table(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open table of a training", "", "Tables (*.csv)")
        if not path:
            return
        try:
            self.show_training(Followed(read_evolutions(path)))
        except (ValueError, OSError) as error:
            self._stage.say(str(error), show_warning)

    def _on_checkpoints(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Open a folder of checkpoints")
        if folder:
            self._follow(Path(folder))
