"""Progress bar, Ctrl-C and messages of long commands."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..progress import Step

ResultT = TypeVar("ResultT")


class StopSignal:
    """Context in which the first SIGINT or SIGTERM requests an end, and the second one aborts."""

    noted = False
    begun = False  # before the first iteration there is nothing to keep

    def __call__(self) -> bool:
        """Return whether to end, keeping what has been reached."""
        return self.noted and self.begun

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True


def run_steps(steps: Generator[Step, None, ResultT], stop: StopSignal, quiet: bool = False) -> ResultT:
    """Return the result of a long run, behind a progress bar where stderr is a terminal."""
    with progress_bar(quiet) as show, closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            stop.begun |= step.has_result
            show(step.message, step.fraction, step.summary)


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str, float, str], None]]:
    """Yield what moves a progress bar, drawn where stderr is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, figures="")

        def show(text: str, progress: float, figures: str) -> None:
            bar.update(task, description=text, completed=progress, figures=figures)

        yield show


def print_message(text: str) -> None:
    """Print a message to stderr."""
    print(f"gsvolume: {text}", file=sys.stderr)
