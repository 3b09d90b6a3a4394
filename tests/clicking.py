"""What the tests of widgets share: a widget is used as a person would."""

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


def fill(widget, **values):
    """Give rows of the form their values."""
    for name, value in values.items():
        widget.form.fields[name].value = value
