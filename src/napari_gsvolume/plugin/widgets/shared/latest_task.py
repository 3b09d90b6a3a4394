"""Short work beside the viewer, of which only the latest counts."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QThreadPool
from superqt.utils import create_worker

Task = Callable[[], Any]

# For good: a pool that ends waits for what it runs, and the viewer with it.
_POOL = QThreadPool()
atexit.register(_POOL.waitForDone)  # else a worker would find Qt gone, and take the process with it


class LatestTask:
    """Does one thing at a time in a thread; of those asked for meanwhile only the last follows.

    Parameters
    ----------
    show : callable
        Is given what a task returns, on the main thread, unless it was dropped.
    fail : callable
        Is given what it raises.
    """

    def __init__(self, show: Callable[[Any], None], fail: Callable[[Exception], None]) -> None:
        self._show, self._fail = show, fail
        self._worker: Any = None
        self._next: Task | None = None
        self._dropped = False

    @property
    def busy(self) -> bool:
        """Whether something is still to come."""
        return self._next is not None or (self._worker is not None and not self._dropped)

    def ask(self, task: Task) -> None:
        """Have a task done, now or after the one that is being done."""
        if self._worker is not None:
            self._next = task
            return
        self._dropped = False
        self._worker = create_worker(_caught, task, _start_thread=False)
        self._worker.returned.connect(self._on_returned)
        self._worker.finished.connect(self._on_finished)
        _POOL.start(self._worker)

    def drop(self) -> None:
        """Show nothing of what is being done or was asked for."""
        self._next, self._dropped = None, True

    def _on_returned(self, outcome: tuple[Any, Exception | None]) -> None:
        if self._dropped:
            return
        made, error = outcome
        if error is not None:
            self._fail(error)
        else:
            self._show(made)  # also where another one waits: what is on the screen follows

    def _on_finished(self) -> None:
        self._worker = None
        if self._next is not None:
            task, self._next = self._next, None
            self.ask(task)


def _caught(task: Task) -> tuple[Any, Exception | None]:
    """Return what a task returns, and what goes wrong: superqt raises an exception again, even one that is returned."""
    try:
        return task(), None
    except Exception as error:
        return None, error
