"""Background work of the widgets."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ....errors import GSVolumeError
from ...preferences import use_preferred_threads

T = TypeVar("T")
ResultT = TypeVar("ResultT")
_SHORTEST_PAUSE = 0.5
_PAUSE_PER_COST = 4.0


class RunFailedError(GSVolumeError):
    """Run that failed unexpectedly."""


class PreviewThrottle:
    """Throttle of previews: no faster than the viewer draws them, with most of the time left to the run.

    The run calls `due` and `sent`, the main thread calls `drawn`.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._next = 0.0

    def due(self) -> bool:
        """Return True if it is time for another preview."""
        return time.perf_counter() >= self._next

    def sent(self) -> None:
        """Note that a preview is sent: the next one waits until it is drawn."""
        self._began, self._next = time.perf_counter(), math.inf

    def drawn(self) -> None:
        """Note that the last preview is drawn."""
        now = time.perf_counter()
        self._next = now + max(_SHORTEST_PAUSE, _PAUSE_PER_COST * (now - self._began))


def _lower_thread_priority() -> None:
    """Lower the priority of this thread, and of the threads that it starts, below the viewer's (Linux only)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def run_in_background(
    run: Callable[..., Generator[T, None, ResultT]], *args: Any, **options: Any
) -> Generator[T, None, ResultT]:
    """Pass on the steps of a long run from a thread of low priority, and return its result.

    Errors are raised in a form that the viewer reports.
    """
    _lower_thread_priority()
    use_preferred_threads()
    try:
        return (yield from run(*args, **options))
    except RuntimeError as error:
        # superqt does not report a RuntimeError: it takes it for the error of a worker that Qt has deleted.
        raise RunFailedError(str(error)) from error
