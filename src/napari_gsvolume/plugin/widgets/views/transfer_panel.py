"""The rows that choose a transfer function: of the layer, a preset, a file, or edited."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, PushButton
from napari.layers import Image, Layer
from napari.utils.notifications import show_warning
from numpy.typing import NDArray
from qtpy.QtWidgets import QFileDialog, QVBoxLayout, QWidget
from superqt import QCollapsible

from ....errors import InputError
from ....rendering.volume.transfer_functions import PRESETS, TransferFunction, preset
from ...layers.conversion import SourceVolume, layer_colours
from .transfer_editor import TransferEditor
from .worker import Look

OWN, FILE, EDITED = "of the layer", "from a file", "edited"
_SAMPLE = 500_000  # voxels that the editor looks at
_FILTER = "Transfer functions (*.json)"


class ColourRows:
    """A choice of transfer functions, a file, and an editor folded away.

    Attributes
    ----------
    choice, file, shading : Widget
        Rows, to be placed by the owner.
    fold : QCollapsible
        With the editor.
    editor : TransferEditor

    Parameters
    ----------
    source : callable
        Returns the chosen volume; may raise ValueError.
    say : callable
        Tells the user a sentence, and notifies where there is a second argument.
    """

    def __init__(self, source: Callable[[], SourceVolume], say: Callable[..., None]) -> None:
        self._source, self._say = source, say
        self._layer: Image | None = None
        self._before = OWN  # what the editor is to show; "" once it has been edited
        self._stale = True  # whether the editor has something else
        self._sampled: tuple[Any, NDArray[Any]] | None = None
        self.choice = ComboBox(
            label="Colours", choices=[OWN, *PRESETS, FILE, EDITED], value=OWN,
            tooltip="Colour and opacity of an intensity: of the layer's colormap, contrast limits and gamma, or others",
        )  # fmt: skip
        self.file = FileEdit(
            label="File", filter="*.json", tooltip="A transfer function, as the editor and shell write"
        )
        self.shading = CheckBox(text="Shading", tooltip="Light surfaces, with the lamp at the camera")
        self.editor = TransferEditor()
        self.colour = PushButton(text="Colour…", tooltip="Of the selected point", enabled=True)
        self.save = PushButton(text="Save…", tooltip="The transfer function as JSON")
        self.load = PushButton(text="Load…", tooltip="A transfer function from JSON")
        self._buttons = Container(widgets=[self.colour, self.save, self.load], layout="horizontal", labels=False)
        self._buttons.margins = (0, 0, 0, 0)
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.editor)
        layout.addWidget(self._buttons.native)
        self.fold = QCollapsible("Edit colours and opacity", collapsedIcon="▶")
        self.fold.layout().setContentsMargins(0, 0, 0, 0)
        self.fold.layout().setSpacing(2)
        self.fold.addWidget(content)

        self.choice.changed.connect(self._on_choice)
        self.file.changed.connect(self._on_file)
        self.fold.toggled.connect(lambda _: self._fill())
        self.editor.changed.connect(self._on_edited)
        self.colour.changed.connect(self._on_colour)
        self.save.changed.connect(self._on_save)
        self.load.changed.connect(self._on_load)

    def show_rows(self) -> None:
        """Show the rows that say something."""
        self.file.visible = self.choice.value == FILE

    def follow(self, layer: Layer | None) -> None:
        """Take colours of another layer, and follow their changes."""
        layer = layer if isinstance(layer, Image) and not layer.rgb else None
        if layer is self._layer:
            return
        for of, on in ((self._layer, False), (layer, True)):
            if of is not None:
                for event in (of.events.contrast_limits, of.events.gamma, of.events.colormap):
                    event.connect(self._on_layer) if on else event.disconnect(self._on_layer)
        self._layer = layer
        self.renew()

    def renew(self, *_: Any) -> None:
        """Note that another volume of the layer is chosen."""
        self._stale = True
        self._fill()

    def look(self) -> Look:
        """Return what makes the transfer function that is chosen; raise ValueError if there is none."""
        chosen = self.choice.value
        if chosen in PRESETS:
            return partial(preset, chosen)
        if chosen == EDITED:
            self._fill(even_hidden=True)
            transfer = self.editor.transfer
        else:
            transfer = self._of_file() if chosen == FILE else self._of_layer()
        return lambda _: transfer

    def _of_layer(self) -> TransferFunction:
        if self._layer is None:
            raise InputError("There is no image layer whose colours could be taken.")
        return TransferFunction.from_colormap(*layer_colours(self._layer))

    def _of_file(self, path: Path | None = None) -> TransferFunction:
        path = Path(self.file.value) if path is None else path
        if not path.is_file():
            raise InputError("Choose a file with a transfer function (JSON).")
        try:
            return TransferFunction.load(path)
        except OSError as error:
            raise InputError(f"{path.name} cannot be read: {error.strerror or error}.") from error

    # The editor -------------------------------------------------------------------------------------------------------

    def _fill(self, even_hidden: bool = False) -> None:
        """Have the editor show what is chosen, once somebody looks; what was edited stays."""
        if not (self._stale and (even_hidden or self.fold.isExpanded())) or self._layer is None:
            return
        try:
            sample = self._sample()
            self.editor.show_histogram(sample)
            if self._before:
                self.editor.transfer = self._now(sample)
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        self._stale = False

    def _now(self, sample: NDArray[Any]) -> TransferFunction:
        chosen = self._before
        if chosen in PRESETS:
            return preset(chosen, sample)
        return self._of_file() if chosen == FILE else self._of_layer()

    def _sample(self) -> NDArray[Any]:
        """Return some of the voxels, evenly spread."""
        source = self._source()
        key = (source.name, source.array)
        if self._sampled is None or self._sampled[0][0] != key[0] or self._sampled[0][1] is not key[1]:
            step = max(1, int(np.ceil((source.grid.size / _SAMPLE) ** (1 / source.grid.ndim))))
            array: Any = source.array
            self._sampled = (key, np.asarray(array[(slice(None, None, step),) * source.grid.ndim]))
        return self._sampled[1]

    def _on_choice(self, chosen: str) -> None:
        self.show_rows()
        if chosen == EDITED:
            self._fill(even_hidden=True)
            self.fold.expand()
            return
        self._before, self._stale = chosen, True
        if chosen == FILE:
            self._on_file()
            return
        self.shading.value = chosen in PRESETS and chosen != "gray"
        self._fill()

    def _on_layer(self, *_: Any) -> None:
        if self.choice.value == OWN:
            self._stale = True
            self._fill()

    def _on_file(self, *_: Any) -> None:
        if not Path(self.file.value).is_file():
            return
        try:
            self.shading.value = self._of_file().shading
        except ValueError as error:
            self._say(str(error), show_warning)
            return
        self._stale = True
        self._fill()

    def _on_edited(self) -> None:
        """Note that the editor's curve is what counts now, of whatever volume."""
        self._before = ""
        self.choice.value = EDITED

    def _on_colour(self) -> None:
        if self.editor.selected is None:
            self._say("Click a point of the curve first, then choose its colour.")
        else:
            self.editor.ask_colour()

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self.editor, "Save transfer function", "transfer.json", _FILTER)
        if path:
            self.save_to(path)

    def save_to(self, path: str | Path) -> None:
        """Save what the editor shows, with the shading that is chosen."""
        path = Path(path)
        path = path if path.suffix.lower() == ".json" else path.with_name(f"{path.name}.json")
        shown = self.editor.transfer
        try:
            TransferFunction(shown.values, shown.colours, shown.opacities, shown.unit_mm, self.shading.value).save(path)
        except OSError as error:
            self._say(str(error), show_warning)
        else:
            self._say(f"Saved {path.name}.")

    def _on_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.editor, "Load transfer function", "", _FILTER)
        if path:
            self.load_from(path)

    def load_from(self, path: str | Path) -> None:
        """Edit the transfer function of a file from here on."""
        try:
            transfer = self._of_file(Path(path))
        except ValueError as error:
            self._say(str(error), show_warning)
            return
        self.editor.transfer = transfer
        self.shading.value = transfer.shading
        self._on_edited()
