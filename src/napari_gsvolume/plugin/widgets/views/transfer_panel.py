"""Rows to choose a transfer function: from the layer, a preset, a file, or the editor."""

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
from ....rendering.volume.transfer_functions import PRESETS, TransferFunction
from ...layers.conversion import SourceVolume, layer_colours
from .transfer_editor import TransferEditor
from .worker import TransferFunctionFactory

LAYER, FILE, EDITED = "of the layer", "from a file", "edited"
_SAMPLE_SIZE = 500_000  # voxels in the histogram of the editor
_FILTER = "Transfer functions (*.json)"


class TransferFunctionPanel:
    """Choice of a transfer function, a file, and a collapsible editor.

    Attributes
    ----------
    choice, file, shading : Widget
        Rows, to be placed by the owner.
    fold : QCollapsible
        Collapsible section with the editor.
    editor : TransferEditor
        Editor of the curve.

    Parameters
    ----------
    source : callable
        Returns the chosen volume; may raise InputError.
    say : callable
        Shows a sentence to the user, as a notification if there is a second argument.
    """

    def __init__(self, source: Callable[[], SourceVolume], say: Callable[..., None]) -> None:
        self._source, self._say = source, say
        self._layer: Image | None = None
        self._chosen = LAYER  # choice to show in the editor; "" once it has been edited
        self._stale = True  # whether the editor has to be updated
        self._sampled: tuple[Any, NDArray[Any]] | None = None
        self.choice = ComboBox(
            label="Colours",
            choices=[LAYER, *PRESETS, FILE, EDITED],
            value=LAYER,
            tooltip="Transfer function (colours and opacities): the layer's colormap, contrast limits and gamma, "
            "a preset, a file, or the editor's curve",
        )
        self.file = FileEdit(label="File", filter="*.json", tooltip="File with a transfer function (JSON)")
        self.shading = CheckBox(text="Shading", tooltip="Phong shading of surfaces, with a light at the camera")
        self.editor = TransferEditor()
        self.color = PushButton(text="Colour…", tooltip="Choose the colour of the selected point", enabled=True)
        self.save = PushButton(text="Save…", tooltip="Save the transfer function as JSON")
        self.load = PushButton(text="Load…", tooltip="Load a transfer function from JSON")
        self._buttons = Container(widgets=[self.color, self.save, self.load], layout="horizontal", labels=False)
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
        self.color.changed.connect(self._on_color)
        self.save.changed.connect(self._on_save)
        self.load.changed.connect(self._on_load)

    def show_rows(self) -> None:
        """Show the rows that apply to the choice."""
        self.file.visible = self.choice.value == FILE

    def follow(self, layer: Layer | None) -> None:
        """Use another layer, and follow the changes of its colormap, contrast limits and gamma."""
        layer = layer if isinstance(layer, Image) and not layer.rgb else None
        if layer is self._layer:
            return
        for image, on in ((self._layer, False), (layer, True)):
            if image is not None:
                for event in (image.events.contrast_limits, image.events.gamma, image.events.colormap):
                    event.connect(self._on_layer) if on else event.disconnect(self._on_layer)
        self._layer = layer
        self.renew()

    def renew(self, *_: Any) -> None:
        """Update the editor after another volume of the layer was chosen."""
        self._stale = True
        self._fill()

    def factory(self) -> TransferFunctionFactory:
        """Return the factory of the chosen transfer function; raise InputError if there is none."""
        choice = self.choice.value
        if choice in PRESETS:
            return partial(TransferFunction.from_preset, choice)
        if choice == EDITED:
            self._fill(force=True)
            transfer_function = self.editor.transfer_function
        else:
            transfer_function = self._from_file() if choice == FILE else self._from_layer()
        return lambda _: transfer_function

    def _from_layer(self) -> TransferFunction:
        if self._layer is None:
            raise InputError("There is no image layer with a colormap to use.")
        return TransferFunction.from_colormap(*layer_colours(self._layer))

    def _from_file(self, path: Path | None = None) -> TransferFunction:
        path = Path(self.file.value) if path is None else path
        if not path.is_file():
            raise InputError("Choose a file with a transfer function (JSON).")
        try:
            return TransferFunction.load(path)
        except OSError as error:
            raise InputError(f"{path.name} cannot be read: {error.strerror or error}.") from error

    # The editor -------------------------------------------------------------------------------------------------------

    def _fill(self, force: bool = False) -> None:
        """Update histogram and curve of the editor if it is visible or forced; an edited curve stays."""
        if not (self._stale and (force or self.fold.isExpanded())) or self._layer is None:
            return
        try:
            sample = self._sample()
            self.editor.show_histogram(sample)
            if self._chosen:
                self.editor.transfer_function = self._current(sample)
        except (ValueError, OSError, MemoryError) as error:
            self._say(str(error), show_warning)
            return
        self._stale = False

    def _current(self, sample: NDArray[Any]) -> TransferFunction:
        choice = self._chosen
        if choice in PRESETS:
            return TransferFunction.from_preset(choice, sample)
        return self._from_file() if choice == FILE else self._from_layer()

    def _sample(self) -> NDArray[Any]:
        """Return a regular subsample of the voxels."""
        source = self._source()
        key = (source.name, source.array)
        if self._sampled is None or self._sampled[0][0] != key[0] or self._sampled[0][1] is not key[1]:
            step = max(1, int(np.ceil((source.grid.size / _SAMPLE_SIZE) ** (1 / source.grid.ndim))))
            array: Any = source.array
            self._sampled = (key, np.asarray(array[(slice(None, None, step),) * source.grid.ndim]))
        return self._sampled[1]

    def _on_choice(self, choice: str) -> None:
        self.show_rows()
        if choice == EDITED:
            self._fill(force=True)
            self.fold.expand()
            return
        self._chosen, self._stale = choice, True
        if choice == FILE:
            self._on_file()
            return
        self.shading.value = choice in PRESETS and choice != "gray"
        self._fill()

    def _on_layer(self, *_: Any) -> None:
        if self.choice.value == LAYER:
            self._stale = True
            self._fill()

    def _on_file(self, *_: Any) -> None:
        if not Path(self.file.value).is_file():
            return
        try:
            self.shading.value = self._from_file().shading
        except ValueError as error:
            self._say(str(error), show_warning)
            return
        self._stale = True
        self._fill()

    def _on_edited(self) -> None:
        """Use the editor's curve from now on, for all volumes."""
        self._chosen = ""
        self.choice.value = EDITED

    def _on_color(self) -> None:
        if self.editor.selected is None:
            self._say("Click a point of the curve first, then choose its colour.")
        else:
            self.editor.ask_color()

    def _on_save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self.editor, "Save transfer function", "transfer.json", _FILTER)
        if path:
            self.save_to(path)

    def save_to(self, path: str | Path) -> None:
        """Save the editor's transfer function, with the chosen shading."""
        path = Path(path)
        path = path if path.suffix.lower() == ".json" else path.with_name(f"{path.name}.json")
        shown = self.editor.transfer_function
        try:
            TransferFunction(shown.values, shown.colors, shown.opacities, shown.unit_mm, self.shading.value).save(path)
        except OSError as error:
            self._say(str(error), show_warning)
        else:
            self._say(f"Saved {path.name}.")

    def _on_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.editor, "Load transfer function", "", _FILTER)
        if path:
            self.load_from(path)

    def load_from(self, path: str | Path) -> None:
        """Load the transfer function of a file into the editor."""
        try:
            transfer_function = self._from_file(Path(path))
        except ValueError as error:
            self._say(str(error), show_warning)
            return
        self.editor.transfer_function = transfer_function
        self.shading.value = transfer_function.shading
        self._on_edited()
