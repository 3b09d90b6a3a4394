"""Tab of the Explain widget with the model, its layers, and the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magicgui.widgets import Container, Label, LineEdit, PushButton
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHeaderView,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)
from torch import nn

from ....devices import devices
from ....errors import InputError
from ....explain.models.explained_model import ExplainedModel
from ....explain.models.loading import load_model
from ....explain.settings import ExplainSettings
from ..shared.form import SettingsForm
from ..shared.latest_task import LatestTask

_MAIN = ("what", "k", "slices", "axis")
_FOLDED = {"Inputs": ("size", "normalise", "channels", "device")}
_FILTER = "Super-resolution models (*.safetensors);;All files (*)"
_WEIGHTS = "Weights (*.safetensors *.pt *.pth)"
_NAME = Qt.ItemDataRole.UserRole


class ModelTab(QWidget):
    """Model from a file, or from a factory with weights; tree of its layers; settings.

    Attributes
    ----------
    model, weights : LineEdit
        A ``.safetensors`` file or a factory ``package.module:function``; weights for the factory.
    load : PushButton
    tree : QTreeWidget
        Layers of the model, with check boxes.
    form : SettingsForm

    Parameters
    ----------
    say : callable
        Called with error messages.
    loaded : callable
        Called when a model has been loaded.
    """

    def __init__(self, say: Callable[..., None], loaded: Callable[[], None]) -> None:
        super().__init__()
        self._say, self._on_loaded = say, loaded
        self.loaded: ExplainedModel | None = None
        self.model = LineEdit(tooltip="File of train-sr, or a model factory: package.module:function")
        self.weights = LineEdit(
            tooltip="Weights for a model factory, .safetensors or .pt; empty for those that the factory sets"
        )
        self.browse = PushButton(text="…", tooltip="Choose a file")
        self.browse_weights = PushButton(text="…", tooltip="Choose a file")
        self.load = PushButton(text="Load model", tooltip="Load the model, and list its layers")
        self.about = Label(value="No model is loaded.")
        self.form: SettingsForm[ExplainSettings] = SettingsForm(
            ExplainSettings,
            _MAIN,
            {"slices": 16, "size": 64},
            {},
            _FOLDED,
            late={"device": (("cpu", "auto"), lambda: (devices(), ""))},
            without=("layers",),
        )
        self.form.fields["k"].label, self.form.fields["what"].label = "Concepts", "Decompose"
        self._rows: Container[Any] = Container(
            widgets=[
                _line_with_button("Model", self.model, self.browse),
                _line_with_button("Weights", self.weights, self.browse_weights),
                self.load,
            ]
        )
        self._settings: Container[Any] = Container(widgets=self.form.rows)
        for rows in (self._rows, self._settings):
            rows.margins = (0, 0, 0, 0)
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Layer", "Type", "Parameters"])
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.tree.setMinimumHeight(150)
        self.tree.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.tree.header().setStretchLastSection(False)
        for column in (1, 2):
            self.tree.header().setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 0)
        for widget in (self._rows.native, self.about.native, self.tree, self._settings.native, *self.form.folds):
            layout.addWidget(widget)
        layout.addStretch()
        self.about.native.setWordWrap(True)
        self._latest = LatestTask(self._show, self._failed)
        self.load.changed.connect(self._on_load)
        self.browse.changed.connect(self._on_browse)
        self.browse_weights.changed.connect(self._on_browse_weights)

    @property
    def busy(self) -> bool:
        """True while a model is being loaded."""
        return self._latest.busy

    def drop(self) -> None:
        """Discard a model that is being loaded."""
        self._latest.drop()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the checked layers.

        Raises
        ------
        InputError
            If none is checked.
        """
        names = [item.data(0, _NAME) for item in self._items() if item.checkState(0) == Qt.CheckState.Checked]
        chosen = tuple(name for name in names if name)
        if not chosen:
            raise InputError("No layer is checked; check one or more in the tree of layers.")
        return chosen

    def settings(self) -> ExplainSettings:
        """Return the settings with the layers; raise InputError if a value is invalid or no layer is checked."""
        return self.form.settings(layers=self.layers)

    def _on_browse(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open model", "", _FILTER)
        if path:
            self.model.value = path
            self._on_load()

    def _on_browse_weights(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open weights", "", _WEIGHTS)
        if path:
            self.weights.value = path

    def _on_load(self) -> None:
        spec, weights = self.model.value.strip(), self.weights.value.strip() or None
        if not spec:
            self._say("There is no model; choose a .safetensors file, or give a factory as package.module:function.")
            return
        self.load.enabled = False
        self.about.value = "Loading…"
        self._latest.ask(lambda: load_model(spec, weights))

    def _failed(self, error: Exception) -> None:
        self.load.enabled = True
        self.about.value = "No model is loaded." if self.loaded is None else self._describe(self.loaded)
        known = isinstance(error, ValueError | OSError | MemoryError)
        self._say(str(error) if known else f"This failed, please report it: {error or type(error).__name__}")

    def _show(self, loaded: ExplainedModel) -> None:
        self.load.enabled = True
        self.loaded = loaded
        self.about.value = self._describe(loaded)
        self.tree.clear()
        self._add(self.tree.invisibleRootItem(), loaded.model, "")
        self.tree.expandToDepth(1)
        self._on_loaded()

    def _describe(self, loaded: ExplainedModel) -> str:
        s = loaded.settings
        kind = (
            "A network"
            if s is None
            else f"A super-resolution model, scheme {s.scheme}, factor {s.factor:g}, {s.upsample_axes}"
        )
        return f"{kind}, {loaded.parameters:,} parameters."

    def _add(self, parent: QTreeWidgetItem, module: nn.Module, path: str) -> None:
        """Add the submodules of a module; those with parameters of their own are checked."""
        for name, child in module.named_children():
            full = f"{path}.{name}" if path else name
            if "parametrizations" in full.split("."):
                continue
            own = sum(p.numel() for p in child.parameters(recurse=False))
            total = sum(p.numel() for p in child.parameters())
            item = QTreeWidgetItem(parent, [name, type(child).__name__, f"{total:,}" if total else ""])
            item.setToolTip(0, full)
            item.setTextAlignment(2, Qt.AlignmentFlag.AlignRight)
            is_container = any(True for _ in child.children()) and not own
            if is_container:
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsAutoTristate | Qt.ItemFlag.ItemIsUserCheckable)
                self._add(item, child, full)
                continue
            item.setData(0, _NAME, full)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(0, Qt.CheckState.Checked if own else Qt.CheckState.Unchecked)
            self._add(item, child, full)

    def show_shapes(self, features: dict[str, str]) -> None:
        """Show the shapes of the outputs of layers in the tree: grid and features."""
        self.tree.setHeaderLabels(["Layer", "Output" if features else "Type", "Parameters"])
        for item in self._items():
            if item.data(0, _NAME) in features:
                item.setText(1, features[item.data(0, _NAME)])

    def check(self, names: tuple[str, ...]) -> None:
        """Check these layers only."""
        for item in self._items():
            name = item.data(0, _NAME)
            if name:
                item.setCheckState(0, Qt.CheckState.Checked if name in names else Qt.CheckState.Unchecked)

    def _items(self) -> list[QTreeWidgetItem]:
        found, waiting = [], [self.tree.topLevelItem(k) for k in range(self.tree.topLevelItemCount())]
        while waiting:
            item = waiting.pop(0)
            found.append(item)
            waiting = [item.child(k) for k in range(item.childCount())] + waiting
        return found


def _line_with_button(label: str, line: LineEdit, button: PushButton) -> Container[Any]:
    """Return a line edit with a small button at its right."""
    button.max_width = 30
    row: Container[Any] = Container(widgets=[line, button], layout="horizontal", label=label, labels=False)
    row.margins = (0, 0, 0, 0)
    return row
