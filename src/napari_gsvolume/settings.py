"""What all models of settings share: kinds of numbers, budgets, one sentence for what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)


def made(model: type[Model], **values: Any) -> Model:
    """Return a model; raise ValueError, in one sentence naming the field, if a value does not fit."""
    try:
        return model(**values)
    except ValidationError as error:
        raise ValueError(one_sentence(error)) from error


def one_sentence(error: ValidationError, label: Callable[[str], str] = str) -> str:
    """Return what is wrong with the first value that does not fit; `label` names its field to the user."""
    first = error.errors()[0]
    if not first["loc"]:  # not one value, but how some go together
        sentence = first["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{sentence[:1].upper()}{sentence[1:]}."
    return f"{label('.'.join(map(str, first['loc'])))}: {first['msg'].rstrip('.')} (it is {first['input']!r})."


class Budget(NamedTuple):
    """How many iterations and seconds something may take; one of them is given."""

    iterations: int | None
    seconds: float | None

    def progress(self, iteration: int, seconds: float) -> float:
        """Return how much of it is used up: of whichever there is less left; more than 1 where it is overdrawn."""
        shares = [] if self.iterations is None else [iteration / self.iterations]
        if self.seconds is not None:
            shares.append(seconds / self.seconds)
        return max(shares)

    def ending(self, iteration: int, progress: float, stopped: bool) -> str:
        """Return why it ends now, or nothing if it goes on."""
        if stopped:
            return "Stopped."
        if progress < 1:
            return ""
        return "All iterations are done." if iteration == self.iterations else "The time is over."
