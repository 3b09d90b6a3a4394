"""Visibility of dock widgets."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QEvent, QObject


class VisibilityFilter(QObject):
    """Event filter that calls back when a widget is closed, taken out of its dock, hidden or shown again.

    napari itself does not stop workers then.

    Parameters
    ----------
    closed : callable, optional
        Called when the widget is closed or taken out of its dock.
    hidden : callable, optional
        Called when the widget is hidden, closed or taken out of its dock.
    shown : callable, optional
        Called when the widget is shown.

    Attributes
    ----------
    is_hidden : bool
        True after the widget was hidden, closed or taken out of its dock, until it is shown again.
    """

    def __init__(
        self,
        *,
        closed: Callable[[], object] | None = None,
        hidden: Callable[[], object] | None = None,
        shown: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._closed, self._hidden, self._shown = closed, hidden, shown
        self.is_hidden = False

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Let all events pass."""
        kind = event.type()
        closed = kind == QEvent.Type.Close or (kind == QEvent.Type.ParentChange and watched.parent() is None)
        if closed and self._closed is not None:
            self._closed()
        if closed or kind == QEvent.Type.Hide:
            self.is_hidden = True
            if self._hidden is not None:
                self._hidden()
        elif kind == QEvent.Type.Show:
            self.is_hidden = False
            if self._shown is not None:
                self._shown()
        return False
