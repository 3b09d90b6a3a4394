"""Options and arguments that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import InputError
from ..fitting.settings import FitSettings
from ..io.gaussians import GAUSSIAN_SUFFIXES as GAUSSIAN_SUFFIXES
from .sections import SectionedCommand

QuietOption = Annotated[bool, typer.Option("--quiet", help="Suppress everything but errors and the output of --json.")]

ErrorsOnlyOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
"""--quiet of commands without --json."""

TimePoint = Annotated[int | None, typer.Option(help="Time point of a 4D image, from 0.")]

IMAGE_SUFFIXES = (".nii", ".nii.gz")
REPORT_SUFFIXES = (".json",)
Command = TypeVar("Command", bound=Callable[..., None])
GaussianFile = Annotated[Path, typer.Argument(metavar="M", help="Gaussian file, .gsv or .safetensors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


def with_settings(model: type[BaseModel] = FitSettings, **defaults: Any) -> Callable[[Command], Command]:
    """Replace the ``**settings`` of a command by one option for each field of a settings model.

    Parameters
    ----------
    model : type
        Settings model; the description of a field is the help text of its option, and the "panel" in its
        ``json_schema_extra`` the title of the section of ``--help`` that lists it.
    **defaults
        Fields to offer, with their default values; all fields with those of the model if omitted.
    """

    def decorate(command: Command) -> Command:
        types = get_type_hints(model)  # without the bounds, which the model itself checks
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, field in model.model_fields.items():
            if name in defaults or not defaults:
                option = typer.Option(
                    defaults.get(name, field.default), help=f"{field.description}.", rich_help_panel=_panel(field)
                )
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(name, kind, default=option, annotation=types[name]))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _panel(field: FieldInfo) -> str | None:
    """Return the title of the help section of a field, its ``json_schema_extra["panel"]``; None for "Options"."""
    extra = field.json_schema_extra
    return str(extra["panel"]) if isinstance(extra, dict) and "panel" in extra else None


def parse_factors(text: str, ndim: int) -> list[float]:
    """Return the factors of ``--scale``: a single one, or one for each axis."""
    try:
        factors = [float(number) for number in text.split(",")]
    except ValueError:
        factors = []
    if len(factors) not in (1, ndim):
        raise InputError(f"--scale {text}: give one number, or {ndim} separated by commas.")
    return factors


class RepeatableOptions(SectionedCommand):
    """Command with options that take all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its words, the form that Typer reads."""
        several = {
            name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts
        }
        option, first, words = "", True, list[str]()
        for word in args:
            if word.startswith("-"):
                option, first = (word if word in several else ""), True
                words.append(word)
            elif option and not first:
                words += [option, word]
            else:
                first = False
                words.append(word)
        return list(super().parse_args(ctx, words))
