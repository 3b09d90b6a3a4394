"""What the tests of widgets share: a widget is used as a person would."""

import gc
import time

from qtpy.QtCore import Qt

SLOW = 120_000  # ms: two busy cores, and perhaps the kernels' first compilation
LEFT = Qt.MouseButton.LeftButton


def click(qtbot, button):
    qtbot.mouseClick(button.native, LEFT)


def run(qtbot, widget):
    """Click Run, and wait for the end."""
    click(qtbot, widget.button)
    assert widget.running, widget.status.value
    qtbot.waitUntil(lambda: not widget.running, timeout=SLOW)


def assert_ends(qtbot, worker, stopped):
    """Wait until a run whose dock or window has gone was told to stop, and did."""
    gc.collect()
    qtbot.waitUntil(stopped.is_set, timeout=5000)
    deadline = time.monotonic() + 20
    while worker.is_running and time.monotonic() < deadline:
        qtbot.wait(20)
    assert not worker.is_running


def fill(widget, **values):
    """Give rows of the form their values."""
    for name, value in values.items():
        widget.form.fields[name].value = value
