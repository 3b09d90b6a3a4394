"""The tab of the Explain widget where a model, its layers, and how it is explained are chosen."""

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
from ....explain.models.loading import ExplainedModel, load_model
from ....explain.settings import ExplainSettings
from ..shared.form import SettingsForm
from ..shared.latest_task import LatestTask

_MAIN = ("what", "k", "slices", "axis")
_FOLDED = {"Inputs": ("size", "normalise", "channels", "device")}
_FILTER = "Super-resolutions (*.safetensors);;All files (*)"
_WEIGHTS = "Weights (*.safetensors *.pt *.pth)"
_NAME = Qt.ItemDataRole.UserRole


class ModelTab(QWidget):
    """A model from a file, or from a function with weights; the tree of its layers; settings.

    Attributes
    ----------
    model, weights : LineEdit
        A ``.safetensors`` file or ``package.module:function``; the weights of the latter.
    load : PushButton
    tree : QTreeWidget
        Its layers, with check boxes.
    form : SettingsForm

    Parameters
    ----------
    say : callable
        Is given what went wrong.
    loaded : callable
        Is called when there is another model.
    """

    def __init__(self, say: Callable[..., None], loaded: Callable[[], None]) -> None:
        super().__init__()
        self._say, self._on_loaded = say, loaded
        self.loaded: ExplainedModel | None = None
        self.model = LineEdit(tooltip="A file of train-sr, or a function that returns a model: package.module:function")
        self.weights = LineEdit(
            tooltip="Of a function's model, .safetensors or .pt; empty for those that it comes with"
        )
        self.browse = PushButton(text="…", tooltip="Choose a file")
        self.browse_weights = PushButton(text="…", tooltip="Choose a file")
        self.load = PushButton(text="Load model")
        self.about = Label(value="No model is loaded.")
        self.form: SettingsForm[ExplainSettings] = SettingsForm(
            ExplainSettings, _MAIN, {"slices": 16, "size": 64}, {}, _FOLDED,
            late={"device": (("cpu", "auto"), lambda: (devices(), ""))}, without=("layers",),
        )  # fmt: skip
        self.form.fields["k"].label, self.form.fields["what"].label = "Concepts", "Decompose"
        self._rows: Container[Any] = Container(
            widgets=[
                _beside("Model", self.model, self.browse), _beside("Weights", self.weights, self.browse_weights),
                self.load,
            ]
        )  # fmt: skip
        self._settings: Container[Any] = Container(widgets=self.form.rows)
        for rows in (self._rows, self._settings):
            rows.margins = (0, 0, 0, 0)
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["layer", "of", "numbers"])
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
        """Whether a model is being loaded."""
        return self._latest.busy

    def drop(self) -> None:
        """Show nothing of a model that is being loaded."""
        self._latest.drop()

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are checked.

        Raises
        ------
        ValueError
            If none is.
        """
        names = [item.data(0, _NAME) for item in self._items() if item.checkState(0) == Qt.CheckState.Checked]
        chosen = tuple(name for name in names if name)
        if not chosen:
            raise InputError("No layer is checked; check one or more in the tree of layers.")
        return chosen

    def settings(self) -> ExplainSettings:
        """Return the settings with the layers; raise ValueError if a value does not fit or no layer is checked."""
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
            self._say("There is no model; choose a .safetensors file, or name a function as package.module:function.")
            return
        self.load.enabled = False
        self.about.value = "Loading…"
        self._latest.ask(lambda: load_model(spec, weights))

    def _failed(self, error: Exception) -> None:
        self.load.enabled = True
        self.about.value = "No model is loaded." if self.loaded is None else self._said(self.loaded)
        known = isinstance(error, ValueError | OSError | MemoryError)
        self._say(str(error) if known else f"This failed, please report it: {error or type(error).__name__}")

    def _show(self, loaded: ExplainedModel) -> None:
        self.load.enabled = True
        self.loaded = loaded
        self.about.value = self._said(loaded)
        self.tree.clear()
        self._add(self.tree.invisibleRootItem(), loaded.model, "")
        self.tree.expandToDepth(1)
        self._on_loaded()

    def _said(self, loaded: ExplainedModel) -> str:
        s = loaded.settings
        kind = (
            "A network"
            if s is None
            else f"A super-resolution, scheme {s.scheme}, factor {s.factor:g}, {s.upsample_axes}"
        )
        return f"{kind}, {loaded.parameters:,} numbers learnt."

    def _add(self, parent: QTreeWidgetItem, module: nn.Module, path: str) -> None:
        """Add the modules of a module, those that hold numbers themselves checked; others only gather."""
        for name, child in module.named_children():
            full = f"{path}.{name}" if path else name
            if "parametrizations" in full.split("."):
                continue
            own = sum(p.numel() for p in child.parameters(recurse=False))
            total = sum(p.numel() for p in child.parameters())
            item = QTreeWidgetItem(parent, [name, type(child).__name__, f"{total:,}" if total else ""])
            item.setToolTip(0, full)
            item.setTextAlignment(2, Qt.AlignmentFlag.AlignRight)
            gathers = any(True for _ in child.children()) and not own
            if gathers:
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsAutoTristate | Qt.ItemFlag.ItemIsUserCheckable)
                self._add(item, child, full)
                continue
            item.setData(0, _NAME, full)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(0, Qt.CheckState.Checked if own else Qt.CheckState.Unchecked)
            self._add(item, child, full)

    def show_shapes(self, features: dict[str, str]) -> None:
        """Say in the tree what layers gave: grid and features."""
        self.tree.setHeaderLabels(["layer", "gives" if features else "of", "numbers"])
        for item in self._items():
            if item.data(0, _NAME) in features:
                item.setText(1, features[item.data(0, _NAME)])

    def check(self, names: tuple[str, ...]) -> None:
        """Check these layers, and no others."""
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


def _beside(label: str, line: LineEdit, button: PushButton) -> Container[Any]:
    """Return a line with a small button at its right."""
    button.max_width = 30
    row: Container[Any] = Container(widgets=[line, button], layout="horizontal", label=label, labels=False)
    row.margins = (0, 0, 0, 0)
    return row
