"""Help in titled sections: plain text that is whole at any width, in a terminal, a pipe or a log.

The tables that Typer draws with rich cut long option names off where the terminal is narrow, and read square brackets
as markup; here a section is a list of names and texts, wrapped.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

GETTING_STARTED = "Getting started"
GAUSSIANS = "Gaussians"
TOMOGRAPHY = "Tomography"
VIEWS = "Views"
SUPER_RESOLUTION = "SVD and super-resolution"
EXPLAIN = "Explain"
COMMAND_SECTIONS = (GETTING_STARTED, GAUSSIANS, TOMOGRAPHY, VIEWS, SUPER_RESOLUTION, EXPLAIN)
"""Sections of commands in the order in which ``gsvolume --help`` shows them."""

_LONGEST_SUMMARY = 1000  # characters; none is cut off


class SectionedCommand(TyperCommand):
    """Command with options listed under the titles of their ``rich_help_panel``, the other ones under "Options"."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        _write_sections(formatter, _parameter_sections(self, ctx))


class SectionedGroup(TyperGroup):
    """Group with commands listed under the titles of their ``rich_help_panel``, with whole summaries."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands section by section, whatever the order of their modules."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: COMMAND_SECTIONS.index(_title(self.commands[name], "")))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of options and commands."""
        sections = _parameter_sections(self, ctx)
        for name in self.list_commands(ctx):
            command = self.commands[name]
            row = name, command.get_short_help_str(_LONGEST_SUMMARY)
            sections.setdefault(_title(command, "Commands"), []).append(row)
        _write_sections(formatter, sections)


class Application(typer.Typer):
    """Typer application with help in titled sections."""

    def __init__(self, **options: Any) -> None:
        context = {"max_content_width": 100}  # columns; longer lines are hard to read
        super().__init__(cls=SectionedGroup, rich_markup_mode=None, context_settings=context, **options)

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any) -> Any:
        """Register a command; see `typer.Typer.command`."""
        return super().command(name, cls=cls or SectionedCommand, **options)


def _title(described: Any, default: str) -> str:
    """Return the section of a command or of an option."""
    return getattr(described, "rich_help_panel", None) or default


def _parameter_sections(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return names and help texts of arguments and options under the titles of their sections."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        if record := parameter.get_help_record(ctx):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(_title(parameter, default), []).append(record)
    return sections


def _write_sections(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl(rows)
