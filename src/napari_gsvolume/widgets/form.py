"""A form made from a pydantic model: each field a row, its description the tooltip."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from magicgui.widgets import CheckBox, Container, FloatSpinBox, SpinBox, Widget, create_widget
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from qtpy.QtCore import QSettings
from qtpy.QtWidgets import QAbstractSpinBox
from superqt import QCollapsible

from ..fitting.settings import one_sentence

Model = TypeVar("Model", bound=BaseModel)
_LARGEST = 10_000_000
_PENALTY = "lambda_"
_LARGEST_PENALTY = 1000.0
_PENALTY_DECIMALS = 6  # useful ones begin at about 0.00001


class OptionalNumber(Container[Any]):
    """A number that may be absent: a check box before a spin box."""

    def __init__(self, kind: type, value: float, label: str, tooltip: str) -> None:
        self.on = CheckBox(value=False, label="", tooltip=tooltip)
        spin = SpinBox if kind is int else FloatSpinBox
        self.number = spin(value=value, min=1 if kind is int else 0.01, max=_LARGEST, label="", tooltip=tooltip)
        self.number.enabled = False
        super().__init__(widgets=[self.on, self.number], layout="horizontal", label=label, labels=False)
        self.margins = (0, 0, 0, 0)
        self.native.layout().setStretch(1, 1)  # the number takes the width, as in the rows without a box
        self.on.changed.connect(self._enable)

    def _enable(self, on: bool) -> None:
        self.number.enabled = on

    @property
    def value(self) -> float | None:
        """The number, or None where the box is not checked."""
        return self.number.value if self.on.value else None

    @value.setter
    def value(self, value: float | None) -> None:
        self.on.value = value is not None
        if value is not None:
            self.number.value = value


class SettingsForm(Generic[Model]):
    """The fields of a pydantic model as widgets; what is typed is remembered from one session to the next.

    Attributes
    ----------
    rows : list of Widget
        The main fields, to be placed by the owner beside its own rows.
    folds : list of QCollapsible
        The other fields under their titles; opening one closes the others, which keeps the form on the screen.

    Parameters
    ----------
    model : type
        The model; every field an int, float, bool or Literal, or an int or float or None.
    main : sequence of str
        Fields shown first; the others are folded away.
    suggestions : dict
        What an absent number starts at once it is switched on.
    initial : dict
        Values to start with where nothing is remembered, beside the model's defaults.
    folded : dict
        Titles, and the fields folded away under each.
    rest : str
        Title of all other fields, so that a new one has a place.
    """

    def __init__(
        self,
        model: type[Model],
        main: Sequence[str],
        suggestions: dict[str, float],
        initial: dict[str, Any],
        folded: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
        rest: str = "More settings",
    ) -> None:
        self.model = model
        self.fields: dict[str, Any] = {
            name: _row(name, field, suggestions.get(name, 1)) for name, field in model.model_fields.items()
        }
        self.rows: list[Widget] = [self.fields[name] for name in main]
        placed = {*main, *(name for names in folded.values() for name in names)}
        groups = {**folded, rest: [name for name in self.fields if name not in placed]}
        self._groups: list[Container[Any]] = []  # Qt does not keep them
        self.folds = [self._fold(title, names) for title, names in groups.items() if names]
        self._show({**initial, **self._remembered()})

    def _fold(self, title: str, names: Sequence[str]) -> QCollapsible:
        group: Container[Any] = Container(widgets=[self.fields[name] for name in names])
        group.margins = (0, 0, 0, 0)
        self._groups.append(group)
        fold = QCollapsible(title, collapsedIcon="▶")
        fold.layout().setContentsMargins(0, 0, 0, 0)
        fold.layout().setSpacing(2)
        fold.addWidget(group.native)
        fold.toggled.connect(lambda opened: self._close_others(fold) if opened else None)
        return fold

    def _close_others(self, opened: QCollapsible) -> None:
        for fold in self.folds:
            if fold is not opened and fold.isExpanded():
                fold.collapse()

    def settings(self) -> Model:
        """Return the validated settings, and remember them.

        Raises
        ------
        ValueError
            In one sentence, naming the row, if a value does not fit.
        """
        values = {name: widget.value for name, widget in self.fields.items()}
        try:
            settings = self.model(**values)
        except ValidationError as error:
            raise ValueError(one_sentence(error, _label)) from error
        _store().setValue(self.model.__name__, json.dumps(settings.model_dump()))
        return settings

    def _remembered(self) -> dict[str, Any]:
        try:
            values = json.loads(str(_store().value(self.model.__name__, "{}")))
            return self.model(**values).model_dump() if values else {}
        except (ValueError, TypeError):  # of another version, or damaged: not worth a word
            return {}

    def _show(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.fields[name].value = value


def _store() -> QSettings:
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-gsvolume", "widgets")


def _label(name: str) -> str:
    special = {
        "target_psnr": "Target PSNR (dB)", "time_limit": "Time limit (s)", "cg_steps": "CG steps",
        "ratio": "Compression ratio",
    }  # fmt: skip
    if name.startswith(_PENALTY):
        return f"λ {name.removeprefix(_PENALTY)}"
    return special.get(name, name.replace("_", " ").capitalize())


def _row(name: str, field: FieldInfo, suggestion: float) -> Widget:
    annotation, description = field.annotation, field.description or ""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) or _is_union(annotation) else ()
    if type(None) in kinds:
        kind = next(_plain(k) for k in kinds if k is not type(None))
        return OptionalNumber(kind, suggestion, _label(name), description)
    options: dict[str, Any] = {"tooltip": description}
    kind = _plain(annotation)
    if kind in (int, float):
        largest = _LARGEST_PENALTY if name.startswith(_PENALTY) else _LARGEST
        bounds = [bound.le for bound in field.metadata if hasattr(bound, "le")]
        options |= {"min": 0, "max": min([largest, *bounds])} | ({"step": 0.1} if kind is float else {})
    row = create_widget(value=field.default, annotation=kind, label=_label(name), options=options)
    if name.startswith(_PENALTY):
        row.native.setDecimals(_PENALTY_DECIMALS)
        row.native.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
    return row


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Union


def _plain(annotation: Any) -> Any:
    """Return the type under ``Annotated``."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
