"""Common parts of all settings models: types of numbers, and errors of one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from .errors import InputError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], **values: Any) -> Model:
    """Return a model of these values; raise an `InputError` that names the field if a value does not fit."""
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(one_sentence(error)) from error


def one_sentence(error: ValidationError, label: Callable[[str], str] = str) -> str:
    """Return a sentence on the first value that does not fit; `label` maps the field to its name for the user."""
    first = error.errors()[0]
    if not first["loc"]:  # an error of several values together
        sentence = first["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{sentence[:1].upper()}{sentence[1:]}."
    return f"{label('.'.join(map(str, first['loc'])))}: {first['msg'].rstrip('.')} (it is {first['input']!r})."
