"""Root of the shell command: the application, its exit codes and its errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ..settings import one_sentence
from .progress import print_message
from .sections import Application

_EXIT_CODES = (
    "Exit codes: 0 success, also after the first Ctrl-C; 2 wrong options or unusable files; 1 unexpected failure "
    "(GSVOLUME_DEBUG=1 prints the traceback); 130 aborted."
)
# Typer carries a copy of click, or imports it when older; in both this class has no name in Typer's own interface.
_UsageError: Any = typer.BadParameter.__base__


app = Application(help="Represent volumes as sums of weighted 3D Gaussians.", epilog=_EXIT_CODES)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process), print errors as one sentence, and return the exit code."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        code = typer.main.get_command(app)(args=words, prog_name="gsvolume", standalone_mode=False) or 0
        sentence = "Aborted." if code == 130 else ""  # what Typer makes of KeyboardInterrupt
    except (_UsageError, ValueError, OSError, MemoryError) as error:
        code, sentence = 2, _sentence(error)
    except Exception as error:
        code, sentence = 1, f"Unexpected {type(error).__name__} (GSVOLUME_DEBUG=1 shows where): {_sentence(error)}"
    if sentence:
        print_message(sentence)
    return int(code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from .. import __version__

        print(f"napari-gsvolume {__version__}")
        raise typer.Exit


def _sentence(error: Exception) -> str:
    """Return the error message as one line."""
    if "GSVOLUME_DEBUG" in os.environ:
        traceback.print_exception(error)
    if isinstance(error, ValidationError):
        return one_sentence(error, lambda name: f"--{name.replace('_', '-')}")
    text = error.format_message() if isinstance(error, _UsageError) else str(error)
    return " ".join(text.split()) or f"{type(error).__name__}."
