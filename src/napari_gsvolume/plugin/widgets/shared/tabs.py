"""Tabs inside a dock widget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from magicgui.widgets import Label
from qtpy.QtWidgets import QSizePolicy, QTabBar, QVBoxLayout, QWidget


class Tabs(QWidget):
    """Tabs with the height of the visible one; a QTabWidget has the height of the highest.

    Attributes
    ----------
    bar : QTabBar
    """

    def __init__(self, tabs: Mapping[str, QWidget]) -> None:
        super().__init__()
        self.bar, self._tabs = QTabBar(), list(tabs.values())
        # Seven titles fit into a dock beside a canvas of 1280 pixels; napari's own padding hides the last ones.
        self.bar.setStyleSheet("QTabBar::tab { padding: 3px 2px; margin: 0 1px 0 0; }")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.bar)
        for title, tab in tabs.items():
            self.bar.addTab(title)
            layout.addWidget(tab)
        self.bar.currentChanged.connect(self._show)
        self._show(0)

    def _show(self, current: int) -> None:
        for index, tab in enumerate(self._tabs):
            tab.setVisible(index == current)

    def currentWidget(self) -> QWidget:
        """Return the visible tab."""
        return self._tabs[self.bar.currentIndex()]

    def setCurrentWidget(self, tab: QWidget) -> None:
        """Show a tab."""
        self.bar.setCurrentIndex(self._tabs.index(tab))


def text_label(text: str) -> Label:
    """Return a label of wrapped text, as wide as possible."""
    label = Label(value=text)
    label.native.setWordWrap(True)
    label.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
    return label


class Tab(QWidget):
    """Column of widgets."""

    def __init__(self, *widgets: Any) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 4, 0, 0)
        for widget in widgets:
            layout.addWidget(widget)
        layout.addStretch()
