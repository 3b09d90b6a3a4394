"""Whether a dock widget is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QEvent, QObject


class Presence(QObject):
    """Knows whether a widget was hidden or closed; calls back then, and when it is shown again."""

    def __init__(self, shown: Callable[[], None], gone: Callable[[], None]) -> None:
        super().__init__()
        self._shown, self._gone = shown, gone
        self.hidden = False

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Let everything pass."""
        kind = event.type()
        if kind == QEvent.Type.Show:
            self.hidden = False
            self._shown()
        elif kind in (QEvent.Type.Hide, QEvent.Type.Close) or (
            kind == QEvent.Type.ParentChange and watched.parent() is None
        ):
            self.hidden = True
            self._gone()
        return False


class CloseFilter(QObject):
    """Calls back when a widget is closed or taken out of its dock: napari itself does not stop workers then."""

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self._callback = callback

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Let everything pass."""
        gone = event.type() == QEvent.Type.ParentChange and watched.parent() is None
        if gone or event.type() == QEvent.Type.Close:
            self._callback()
        return False
