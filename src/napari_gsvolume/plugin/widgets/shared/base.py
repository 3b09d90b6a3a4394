"""Base of the dock widgets: an image layer to choose, and a long run on it that can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from magicgui.widgets import ComboBox, Container, Label, ProgressBar, PushButton, Widget, create_widget
from napari.layers import Image, Layer
from napari.utils.notifications import show_error, show_warning
from napari.viewer import Viewer
from qtpy.QtCore import QEvent, QObject, QSize, Qt, QThreadPool, QTimer
from qtpy.QtWidgets import QFrame, QScrollArea, QSizePolicy, QWidget
from superqt.utils import create_worker

from ....errors import InputError
from ....fitting.target import check_volume
from ....progress import Budget, Step
from ...layers.conversion import SourceVolume, level_shapes, source_volume
from .visibility import VisibilityFilter
from .worker import run_in_background

ALL = "all"
_MIN_WIDTH = 300  # pixels; the title of the dock needs about as many

# Not Qt's common pool: a run lowers the priority of its thread, which the next user of the thread would inherit.
_POOL = QThreadPool()


class RunWidget(Container[Any]):
    """Base of dock widgets with a long run: an image layer, a Run button that becomes Stop, a bar and a status line.

    Subclasses start a run in `_begin` (by `_start`), show its steps in `_show_step` and its result in
    `_show_result`, and tidy up in `_end`.

    Parameters
    ----------
    viewer : napari.Viewer
        Viewer to take layers from and to add layers to.
    above, below : sequence of Widget
        Rows before the button, and after the status line.
    whole_series : bool
        True to offer all volumes of a series, beside single ones.
    source : Widget, optional
        Widget that chooses a layer; by default a combo box of all image layers.
    """

    _START = "Run"

    def __init__(
        self,
        viewer: Viewer,
        above: Sequence[Widget],
        below: Sequence[Widget],
        *,
        whole_series: bool = False,
        source: Widget | None = None,
    ) -> None:
        self._viewer = viewer
        self._whole_series = whole_series
        self._worker: Any = None
        self._stop = threading.Event()
        self._started = 0.0
        self._error_shown = False
        self._left = False

        self.image: Any = create_widget(annotation=Image, label="Image") if source is None else source
        self.time_point = ComboBox(label="Time point", choices=[0], tooltip="Volume of the time series")
        self.level = ComboBox(label="Level", choices=[0], tooltip="Resolution level of the image pyramid")
        self.button = PushButton(text=self._START)
        self.progress = ProgressBar(min=0, max=1000, value=0)
        self.status = Label(value="")
        # Rows in a scroll area of our own: magicgui's scrollable containers do not scroll in napari's docks.
        super().__init__(widgets=[], labels=False)
        self.margins = (0, 0, 0, 0)
        self._rows: Container[Any] = Container(widgets=[self.image, self.time_point, self.level, *above, self.button])
        self._below = [self.progress, self.status, *below]
        for widget in self._below:  # as rows they would be indented, as if they had a label
            self.content.addWidget(widget.native)
        self.status.native.setWordWrap(True)
        self.status.native.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred
        )  # wraps at the full width
        self.native.layout().addWidget(_Scroll(self._rows.native))

        self.image.changed.connect(self._on_image)
        self.button.changed.connect(self._on_button)
        self._closing = VisibilityFilter(closed=self.stop)
        self.native.installEventFilter(self._closing)
        self._window_closing = VisibilityFilter(closed=self._leave)
        self.native.destroyed.connect(self._leave)
        self._on_image(self.image.value)
        # napari notifies docks opened from its menu of new and removed layers, but not docks that a script adds.
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self.reset_choices)

    @property
    def content(self) -> Any:
        """Layout of all rows, one below the other."""
        return self._rows.native.layout()

    @property
    def running(self) -> bool:
        """True during a run."""
        return self._worker is not None

    def stop(self) -> None:
        """Stop the current run, and keep the best result so far."""
        self._stop.set()

    def _leave(self) -> None:
        """Stop the run and show nothing more of it: the viewer closes."""
        self._stop.set()
        self._left = True

    # Source ---------------------------------------------------------------------------------------------------------

    def reset_choices(self, *args: Any) -> None:
        """Offer the current layers of the viewer; napari calls it when they change."""
        self._rows.reset_choices(*args)
        self._on_image(self.image.value)

    def _on_image(self, layer: Layer | None) -> None:
        """Show the rows of time point and level if the layer has several."""
        shapes = level_shapes(layer) if isinstance(layer, Image) and not layer.rgb else []
        is_series = bool(shapes) and len(shapes[0]) == 4
        points = [*range(shapes[0][0]), *([ALL] if self._whole_series else [])] if is_series else [0]
        _offer(self.time_point, points)
        self.time_point.visible = is_series
        _offer(self.level, [(f"{i}: {' x '.join(map(str, shape))}", i) for i, shape in enumerate(shapes)] or [0])
        self.level.visible = len(shapes) > 1

    def _sources(self) -> list[SourceVolume]:
        """Return the selected volumes; raise an error if there are none, or they are too large to be fitted."""
        sources = self._volumes()
        # The size is checked before anything is loaded; the rest is checked by the fit itself.
        check_volume(np.broadcast_to(np.float32(0), np.shape(sources[0].array)))
        return sources

    def _volumes(self) -> list[SourceVolume]:
        """Return the selected volumes; raise an error if there are none."""
        layer = self.image.value
        if layer is None:
            raise InputError("There is no image layer; open an image first (File > Open Sample has some).")
        level = self.level.value if layer.multiscale else 0
        points: Sequence[int | None] = [None]
        if not layer.rgb and len(level_shapes(layer)[0]) == 4:
            n = level_shapes(layer)[0][0]
            points = range(n) if self.time_point.value == ALL else [self.time_point.value]
        return [source_volume(layer, time_point=t, level=level) for t in points]

    # Running ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start a run with the settings in the rows; raise ValueError or MemoryError if it cannot run."""
        raise NotImplementedError

    def _end(self) -> None:
        """Tidy up after a run that has finished, was stopped, or has failed (`_error_shown`)."""

    def _drawing(self) -> bool:
        """Return True while layers of a finished run are left to draw."""
        return False

    def _on_button(self) -> None:
        if self.running:
            self._stop.set()
            self.button.enabled = False
            self.button.text = "Stopping…"
            return
        try:
            self._begin()
        except (ValueError, MemoryError) as error:
            self._say(str(error), show_warning)

    def _start(self, run: Callable[..., Generator[Step, None, Any]], *args: Any, **options: Any) -> None:
        """Run ``run(*args, budget=..., **options)`` in a thread (see `napari_gsvolume.progress`).

        Its steps go to `_show_step`, its result goes to `_show_result`.
        """
        self._stop = threading.Event()  # the last run's worker may still look at its own
        self._error_shown = self._left = False
        self.native.window().installEventFilter(self._window_closing)
        self.button.text = "Stop"
        self.progress.value = 0
        self._started = time.perf_counter()
        self._say("Loading the volume")
        budget = Budget(stop=self._stop.is_set)
        self._worker = create_worker(
            run_in_background, run, *args, budget=budget, **options, _start_thread=False, _ignore_errors=True
        )
        self._worker.yielded.connect(self._on_step)
        self._worker.returned.connect(self._on_result)
        self._worker.errored.connect(self._on_error)
        self._worker.finished.connect(self._on_finished)
        _POOL.start(self._worker)

    def _show_step(self, step: Any) -> None:
        """Show the state of a run: bar, status line, and previews in subclasses."""
        self.progress.value = round(1000 * min(1.0, step.fraction))
        self._say(f"{step.message}{time_left(self._elapsed, step.fraction)}")

    def _show_result(self, result: Any) -> None:
        """Show the result of a run."""

    @property
    def _elapsed(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._started

    def _on_step(self, step: Step) -> None:
        if not self._left:
            self._show_step(step)

    def _on_result(self, result: Any) -> None:
        if not self._left:
            self._show_result(result)

    def _on_error(self, error: BaseException) -> None:
        if self._left:
            return
        self._error_shown = True
        known = isinstance(error, ValueError | MemoryError | OSError)
        text = str(error) if known else f"This failed, please report it: {error or type(error).__name__}"
        self._say(text, show_warning if known else show_error)

    def _on_finished(self) -> None:
        if self._drawing():
            QTimer.singleShot(5, self._on_finished)
            return
        self._worker = None
        if self._left:
            return
        self.button.text = self._START
        self.button.enabled = True
        self._end()

    def _say(self, text: str, notify: Any = None) -> None:
        self.status.value = text
        self._viewer.status = text
        if notify is not None:
            notify(text)


class _Scroll(QScrollArea):
    """Scroll area that scrolls vertically only: it is never narrower than its content."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidgetResizable(True)
        self.setWidget(content)

    def sizeHint(self) -> QSize:
        """Return the size of the whole content."""
        return QSize(self._width(), self.widget().sizeHint().height())

    def minimumSizeHint(self) -> QSize:
        """Return the width of the content, with any height."""
        return QSize(self._width(), super().minimumSizeHint().height())

    def _width(self) -> int:
        content = self.widget().minimumSizeHint().width() + self.verticalScrollBar().sizeHint().width()
        return max(_MIN_WIDTH, int(content))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Follow size changes of the content, which Qt itself does not do."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))


def _offer(box: ComboBox, choices: list[Any]) -> None:
    """Set the choices of a combo box, and keep its value if it is still among them."""
    if list(box.choices) != [c[1] if isinstance(c, tuple) else c for c in choices]:
        box.choices = choices


def row_of(widget: Any) -> Any:
    """Return the Qt widget of a magicgui widget in its container: its own, or the row with its label."""
    labelled = widget._labeled_widget()
    return widget.native if labelled is None else labelled.native


def time_left(seconds: float, progress: float) -> str:
    """Return the estimated remaining time, to append to a sentence; an empty string if it is unknown."""
    if not 0.02 < progress < 1:
        return ""
    return f", about {seconds * (1 - progress) / progress:.0f} s left"
