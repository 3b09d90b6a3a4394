"""Forms of pydantic models: one row per field, with its description as tooltip."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from magicgui.widgets import CheckBox, ComboBox, Container, FloatSpinBox, SpinBox, Widget, create_widget
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from qtpy.QtCore import QSettings
from qtpy.QtWidgets import QAbstractSpinBox
from superqt import QCollapsible

from ....errors import InputError
from ....settings import one_sentence
from ...preferences import preferred_device, remembers_settings, settings_folder

Model = TypeVar("Model", bound=BaseModel)
_LARGEST = 10_000_000
_WEIGHT = "_weight"  # suffix of the fields that weigh penalties and losses
_LARGEST_PENALTY = 1000.0
_DECIMALS, _FINE_DECIMALS = 2, 6  # useful penalties begin at about 0.00001


class OptionalNumber(Container[Any]):
    """Optional number: a check box before a spin box."""

    def __init__(self, kind: type, value: float, label: str, tooltip: str) -> None:
        self.on = CheckBox(value=False, label="", tooltip=tooltip)
        spin = SpinBox if kind is int else FloatSpinBox
        self.number = spin(value=value, min=1 if kind is int else 0.01, max=_LARGEST, label="", tooltip=tooltip)
        self.number.enabled = False
        super().__init__(
            widgets=[self.on, self.number], layout="horizontal", label=label, labels=False, tooltip=tooltip
        )
        self.margins = (0, 0, 0, 0)
        self.native.layout().setStretch(1, 1)  # the number takes the width, as in rows without a check box
        self.on.changed.connect(self._enable)

    def _enable(self, on: bool) -> None:
        self.number.enabled = on

    @property
    def value(self) -> float | None:
        """Number, or None while the box is not checked."""
        return self.number.value if self.on.value else None

    @value.setter
    def value(self, value: float | None) -> None:
        self.on.value = value is not None
        if value is not None:
            self.number.value = value


ChoicesFound = tuple[dict[str, str], str]
"""Choices of a `LazyChoice`: values and their labels, and a sentence to add to the tooltip, or ""."""
LazyChoices = tuple[Sequence[str], Callable[[], ChoicesFound]]
"""Values that always exist, the default first, and the function that finds all choices."""


class LazyChoice(ComboBox):
    """Combo box with choices that take a while to find, and are found once the row is visible.

    Before that it offers the default and the remembered value; a value that no longer exists becomes the default.
    """

    def __init__(self, late: LazyChoices, label: str, tooltip: str) -> None:
        self._certain, self._find = late
        self._default = self._certain[0]
        self._names = {value: value for value in self._certain}
        self._found, self._about = False, tooltip
        super().__init__(choices=self._offered, value=self._default, label=label, tooltip=tooltip)

    def _offered(self, _: Any) -> list[tuple[str, str]]:
        return [(name, value) for value, name in self._names.items()]

    @property
    def value(self) -> str:
        """Selected value."""
        chosen: str = ComboBox.value.fget(self)
        return chosen

    @value.setter
    def value(self, value: str) -> None:
        if not self._found:
            self._names.setdefault(value, value)
            self.reset_choices()
        ComboBox.value.fset(self, value if value in self._names else self._default)

    def find(self) -> None:
        """Find the choices, unless that has been done."""
        if self._found:
            return
        chosen = self.value
        self._names, more = self._find()
        self._found = True
        self.choices = ()  # otherwise the old choices keep their places
        self.reset_choices()
        self.value = chosen
        if more:
            self.tooltip = f"{self._about}. {more}"

    def settle(self) -> None:
        """Make sure that the selected value exists."""
        if self.value not in self._certain:
            self.find()


class SettingsForm(Generic[Model]):
    """Fields of a pydantic model as widgets, with values that are remembered from one session to the next.

    Attributes
    ----------
    rows : list of Widget
        Rows of the main fields, for the owner to place beside its own rows.
    folds : list of QCollapsible
        Groups of the other fields; opening one closes the others, which keeps the form on the screen.

    Parameters
    ----------
    model : type
        Model; every field is an int, float, bool, str or Literal, an optional int or float, or one of `late`.
    main : sequence of str
        Fields at the top; the others are folded away.
    suggestions : dict
        Start values of optional numbers when they are switched on.
    initial : dict
        Start values if nothing is remembered; the defaults of the model for all other fields.
    folded : dict
        Titles of the groups, and the fields in each.
    rest : str
        Title of the group of all other fields.
    late : dict
        Text fields with choices that are found lazily: once the row is visible, or its value is needed.
    without : sequence of str
        Fields without a row; `settings` takes their values, or uses the defaults.
    """

    def __init__(
        self,
        model: type[Model],
        main: Sequence[str],
        suggestions: dict[str, float],
        initial: dict[str, Any],
        folded: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
        rest: str = "More settings",
        late: Mapping[str, LazyChoices] = types.MappingProxyType({}),
        without: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.fields: dict[str, Any] = {
            name: _row(name, field, suggestions.get(name, 1), late.get(name))
            for name, field in model.model_fields.items()
            if name not in without
        }
        self.rows: list[Widget] = [self.fields[name] for name in main]
        placed = {*main, *(name for names in folded.values() for name in names)}
        groups = {**folded, rest: [name for name in self.fields if name not in placed]}
        self._groups: list[Container[Any]] = []  # Qt does not keep them
        self.folds = [self._fold(title, names) for title, names in groups.items() if names]
        self._show({**initial, **self._remembered(), **_preferred()})

    def _fold(self, title: str, names: Sequence[str]) -> QCollapsible:
        group: Container[Any] = Container(widgets=[self.fields[name] for name in names])
        group.margins = (0, 0, 0, 0)
        self._groups.append(group)
        fold = QCollapsible(title, collapsedIcon="▶")
        fold.layout().setContentsMargins(0, 0, 0, 0)
        fold.layout().setSpacing(2)
        fold.addWidget(group.native)
        fold.toggled.connect(lambda opened: self._on_opened(fold, names) if opened else None)
        return fold

    def _on_opened(self, opened: QCollapsible, names: Sequence[str]) -> None:
        for fold in self.folds:
            if fold is not opened and fold.isExpanded():
                fold.collapse()
        for name in names:
            if isinstance(self.fields[name], LazyChoice):
                self.fields[name].find()

    def settings(self, **values: Any) -> Model:
        """Return the validated settings, and remember them.

        Parameters
        ----------
        **values
            Values of fields without a row.

        Raises
        ------
        ValueError
            If a value does not fit; the sentence names the row.
        """
        for widget in self.fields.values():
            if isinstance(widget, LazyChoice):
                widget.settle()
        values = {name: widget.value for name, widget in self.fields.items()} | values
        try:
            settings = self.model(**values)
        except ValidationError as error:
            raise InputError(one_sentence(error, _label)) from error
        if remembers_settings():
            _store().setValue(self.model.__name__, json.dumps(settings.model_dump()))
        return settings

    def _remembered(self) -> dict[str, Any]:
        if not remembers_settings():
            return {}
        try:
            values = json.loads(str(_store().value(self.model.__name__, "{}")))
            return self.model(**values).model_dump() if values else {}
        except (ValueError, TypeError):  # from another version, or damaged: start afresh
            return {}

    def _show(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name in self.fields:
                self.fields[name].value = value


def _store() -> QSettings:
    if (folder := settings_folder()) is not None:
        return QSettings(str(folder / "napari-gsvolume-widgets.ini"), QSettings.Format.IniFormat)
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-gsvolume", "widgets")


def _preferred() -> dict[str, Any]:
    """Return the values that napari's Preferences set for every form."""
    device = preferred_device()
    return {} if device is None else {"device": device}


def _label(name: str) -> str:
    special = {
        "target_psnr": "Target PSNR (dB)",
        "time_limit": "Time limit (s)",
        "cg_steps": "CG steps",
        "ratio": "Compression ratio",
    }
    return special.get(name, name.replace("_", " ").capitalize())


def _row(name: str, field: FieldInfo, suggestion: float, late: LazyChoices | None) -> Widget:
    annotation, description = field.annotation, field.description or ""
    if late is not None:
        return LazyChoice(late, _label(name), description)
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) or _is_union(annotation) else ()
    if type(None) in kinds:
        kind = next(_plain(k) for k in kinds if k is not type(None))
        return OptionalNumber(kind, suggestion, _label(name), description)
    options: dict[str, Any] = {"tooltip": description}
    kind = _plain(annotation)
    if kind in (int, float):
        largest = _LARGEST_PENALTY if _is_weight(name) else _LARGEST
        bounds = [bound.le for bound in field.metadata if hasattr(bound, "le")]
        bounded = any(hasattr(bound, "ge") or hasattr(bound, "gt") for bound in field.metadata)
        options |= {"min": 0 if bounded else -_LARGEST, "max": min([largest, *bounds])}
        options |= {"step": 0.1} if kind is float else {}
    row = create_widget(value=field.default, annotation=kind, label=_label(name), options=options)
    if kind is float and (_is_weight(name) or round(field.default, _DECIMALS) != field.default):
        row.native.setDecimals(_FINE_DECIMALS)
        row.native.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
        row.value = field.default  # which two decimals may have made zero
    return row


def _is_weight(name: str) -> bool:
    """Return True for the weight of a penalty or a loss."""
    return name.endswith(_WEIGHT)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Union


def _plain(annotation: Any) -> Any:
    """Return the type under ``Annotated``."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
