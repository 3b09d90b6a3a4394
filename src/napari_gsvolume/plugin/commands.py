"""Commands of napari's command palette, with a key each: run and stop the visible widget of this plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from napari.viewer import Viewer

if TYPE_CHECKING:
    from .widgets.shared.base import RunWidget


def run_widget(viewer: Viewer) -> None:
    """Start the visible widget, as its button does; nothing happens while it runs."""
    widgets = visible_widgets(viewer)
    if not widgets:
        show_info("Open a widget first: Plugins > Gaussian volumes.")
        return
    widget = widgets[0]
    if not widget.running and widget.button.native.isVisible():  # tabs without anything to run hide it
        widget.button.native.click()


def stop_widget(viewer: Viewer) -> None:
    """Stop the visible widget that runs, as its button does; the best result so far is kept."""
    running = [widget for widget in visible_widgets(viewer) if widget.running]
    if running:
        running[0].button.native.click()
    else:
        show_info("No visible widget of Gaussian volumes is running.")


KEYS = {"Control-Enter": run_widget, "Control-Shift-X": stop_widget}
"""Keys of the commands, as in the manifest; napari 0.9 reads no keys from manifests, so `activate` binds them."""


def activate(context: Any) -> None:
    """Bind the keys; npe2 calls this before the first use of the plugin."""
    for key, command in KEYS.items():
        Viewer.bind_key(key, command, overwrite=True)


def deactivate(context: Any) -> None:
    """Release the keys; npe2 calls this when the plugin is disabled."""
    for key in KEYS:
        Viewer.bind_key(key, None)


def visible_widgets(viewer: Viewer) -> list[RunWidget]:
    """Return this plugin's visible widgets: the one with the keyboard focus first, then the newest."""
    from qtpy.QtWidgets import QApplication

    from .widgets.shared.base import RunWidget

    docked = [widget for widget in viewer.window.dock_widgets.values() if isinstance(widget, RunWidget)]
    visible = [widget for widget in reversed(docked) if widget.native.isVisible()]
    focus = QApplication.focusWidget()
    return sorted(visible, key=lambda widget: focus is None or not widget.native.isAncestorOf(focus))
