"""Background task of which only the latest request counts."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QThreadPool
from superqt.utils import create_worker

Task = Callable[[], Any]

# Lives as long as the process: the end of a pool waits for its tasks, and the viewer with it.
_POOL = QThreadPool()
atexit.register(_POOL.waitForDone)  # otherwise a worker would outlive Qt, and crash the process


class LatestTask:
    """Runner of one task at a time in a thread; of the tasks requested meanwhile only the last one follows.

    Parameters
    ----------
    show : callable
        Called on the main thread with the return value of a task, unless the task was dropped.
    fail : callable
        Called on the main thread with the exception of a task.
    """

    def __init__(self, show: Callable[[Any], None], fail: Callable[[Exception], None]) -> None:
        self._show, self._fail = show, fail
        self._worker: Any = None
        self._next: Task | None = None
        self._dropped = False

    @property
    def busy(self) -> bool:
        """True while a result is to come."""
        return self._next is not None or (self._worker is not None and not self._dropped)

    def ask(self, task: Task) -> None:
        """Run a task now, or after the current one."""
        if self._worker is not None:
            self._next = task
            return
        self._dropped = False
        self._worker = create_worker(_caught, task, _start_thread=False)
        self._worker.returned.connect(self._on_returned)
        self._worker.finished.connect(self._on_finished)
        _POOL.start(self._worker)

    def drop(self) -> None:
        """Discard the current task and the next one."""
        self._next, self._dropped = None, True

    def _on_returned(self, result: tuple[Any, Exception | None]) -> None:
        if self._dropped:
            return
        value, error = result
        if error is not None:
            self._fail(error)
        else:
            self._show(value)  # even if another task waits: the screen keeps up

    def _on_finished(self) -> None:
        self._worker = None
        if self._next is not None:
            task, self._next = self._next, None
            self.ask(task)


def _caught(task: Task) -> tuple[Any, Exception | None]:
    """Return the value and the exception of a task: superqt would raise a returned exception again."""
    try:
        return task(), None
    except Exception as error:
        return None, error
