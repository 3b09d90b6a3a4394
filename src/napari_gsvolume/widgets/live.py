"""A small picture that follows the camera: one projection, made anew when the view has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.viewer import Viewer
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QThreadPool, QTimer
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QLabel
from superqt.utils import create_worker

Picture = NDArray[np.float32]
Task = Callable[[], Picture]

_PAUSE = 30  # ms between the first change of the view and the picture, so that a turn does not become a queue
_SIDE = 260  # pixels on the screen


class LiveView(QLabel):
    """A grey picture, black to white from its least to its largest value, hidden until it is switched on.

    One picture is made at a time, beside the viewer; where the view changes meanwhile the next one follows.

    Parameters
    ----------
    viewer : napari.Viewer
        Its camera, dims and layers say when to make another picture.
    task : callable
        Called where the viewer lives: returns what makes the picture, elsewhere; may raise ValueError.
    say : callable
        Is told what goes wrong, in one sentence.
    """

    def __init__(self, viewer: Viewer, task: Callable[[], Task], say: Callable[[str], None]) -> None:
        super().__init__()
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setMinimumHeight(_SIDE)
        self.setStyleSheet("background: black")
        self.picture: Picture | None = None
        self._task, self._say = task, say
        self._worker: Any = None
        self._outdated = False
        self._pool = QThreadPool(self)
        self._timer = QTimer(self, singleShot=True, interval=_PAUSE)
        self._timer.timeout.connect(self._make)
        self._events = [viewer.scene.camera.events.angles, viewer.dims.events.ndisplay, viewer.dims.events.order]
        self.hide()

    def switch(self, on: bool) -> None:
        """Follow the camera, or leave off and hide."""
        self.setVisible(on)
        for event in self._events:
            event.disconnect(self.changed)
            if on:
                event.connect(self.changed)
        if on:
            self.changed()
        else:
            self._timer.stop()
            self._outdated = False

    def changed(self, *_: Any) -> None:
        """Note that another picture is wanted."""
        if self.isHidden():
            return
        if self._worker is not None:
            self._outdated = True
        elif not self._timer.isActive():
            self._timer.start()

    def _make(self) -> None:
        try:
            task = self._task()
        except (ValueError, MemoryError) as error:
            self._fail(error)
            return
        self._worker = create_worker(_caught, task, _start_thread=False)
        self._worker.returned.connect(self._show)
        self._worker.finished.connect(self._on_finished)
        self._pool.start(self._worker)

    def _show(self, made: Picture | Exception) -> None:
        if isinstance(made, Exception):
            self._fail(made)
            return
        self.picture = made
        low, high = float(made.min()), float(made.max())
        grey = ((made - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        image = QImage(grey.tobytes(), grey.shape[1], grey.shape[0], grey.shape[1], QImage.Format.Format_Grayscale8)
        ratio, smooth = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        self.setPixmap(QPixmap.fromImage(image).scaled(_SIDE, _SIDE, ratio, smooth))

    def _fail(self, error: Exception) -> None:
        self.picture = None
        self.setText("No live view")
        self._say(str(error))

    def _on_finished(self) -> None:
        self._worker = None
        if self._outdated:
            self._outdated = False
            self.changed()


def _caught(task: Task) -> Picture | Exception:
    """Return what goes wrong rather than raise it: superqt would print it, or let it vanish."""
    try:
        return task()
    except Exception as error:
        return error
