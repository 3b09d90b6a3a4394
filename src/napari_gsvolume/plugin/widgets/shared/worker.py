"""Background work of the widgets."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from ....errors import GSVolumeError

T = TypeVar("T")
ResultT = TypeVar("ResultT")
_SHORTEST_PAUSE = 0.5
_PAUSE_PER_COST = 4.0


class RunFailedError(GSVolumeError):
    """A fit ended in a way that nobody foresaw."""


class PreviewThrottle:
    """Lets previews through no faster than the viewer draws them, and gives most of the time to the fit.

    `sent` and `due` are called where the fit runs, `drawn` where the viewer does.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._next = 0.0

    def due(self) -> bool:
        """Whether another preview is welcome."""
        return time.perf_counter() >= self._next

    def sent(self) -> None:
        """Note that a preview is being made: the next one waits until it is drawn."""
        self._began, self._next = time.perf_counter(), math.inf

    def drawn(self) -> None:
        """Note that the last preview is on the screen."""
        now = time.perf_counter()
        self._next = now + max(_SHORTEST_PAUSE, _PAUSE_PER_COST * (now - self._began))


def _let_the_viewer_go_first() -> None:
    """Lower this thread's priority, and that of the kernels' threads it will start, where the system can (Linux)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def run_in_background(news: Iterator[T]) -> Iterator[T]:
    """Pass news on from a thread of low priority; raise what goes wrong as something that the viewer gets to see."""
    _let_the_viewer_go_first()
    try:
        yield from news
    except RuntimeError as error:
        # superqt takes a RuntimeError for that of a worker deleted by Qt, and does not report it.
        raise RunFailedError(str(error)) from error


def in_background(
    run: Callable[..., Generator[T, None, ResultT]], *args: Any, **options: Any
) -> Generator[T, None, ResultT]:
    """Pass on the steps of a long run from a thread of low priority, and return its result.

    Everything that goes wrong is raised as an error that the viewer gets to see.
    """
    _let_the_viewer_go_first()
    try:
        return (yield from run(*args, **options))
    except RuntimeError as error:
        # superqt takes a RuntimeError for that of a worker deleted by Qt, and does not report it.
        raise RunFailedError(str(error)) from error
