"""Small picture that follows the camera: one projection, computed again when the view has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.viewer import Viewer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QLabel

from ....types import Float32Array
from .latest_task import LatestTask, Task

_PAUSE = 30  # ms from the first change of the view to the picture, so that a drag does not fill a queue
PICTURE_SIZE = 260  # pixels on the screen


class PictureLabel(QLabel):
    """Picture on black: grey levels from its minimum to its maximum, or colours from 0 to 1.

    Attributes
    ----------
    picture : ndarray, (H, W) or (H, W, 3), or None
        Current picture.

    Parameters
    ----------
    width : int
        Width of the picture in screen pixels, if it is not higher than wide.
    """

    def __init__(self, width: int = PICTURE_SIZE) -> None:
        super().__init__()
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setStyleSheet("background: black")
        self.setMinimumWidth(1)  # a picture does not make the dock wider
        self.picture: Float32Array | None = None
        self._width = width

    def show_picture(self, picture: Float32Array) -> None:
        """Show another picture."""
        self.picture = picture
        if picture.ndim == 2:
            low, high = float(picture.min()), float(picture.max())
            levels = (picture - low) * (255 / max(high - low, 1e-12))
        else:
            levels = np.clip(picture, 0, 1) * 255 + 0.5
        kind = QImage.Format.Format_Grayscale8 if picture.ndim == 2 else QImage.Format.Format_RGB888
        pixels = np.ascontiguousarray(levels.astype(np.uint8))
        image = QImage(pixels.tobytes(), pixels.shape[1], pixels.shape[0], pixels.strides[0], kind)
        ratio, smooth = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        self.setPixmap(QPixmap.fromImage(image).scaled(self._width, PICTURE_SIZE, ratio, smooth))


class LiveView(PictureLabel):
    """Picture that follows the camera, hidden until it is switched on.

    One picture at a time is computed in the background; if the view changes meanwhile, the next one follows.

    Parameters
    ----------
    viewer : napari.Viewer
        Viewer with the camera and dims to follow.
    task : callable
        Called on the main thread; returns the function that computes the picture, or raises ValueError.
    say : callable
        Called with error messages, one sentence each.
    framed : bool
        True if the picture also depends on the zoom, centre and perspective of the camera.
    """

    def __init__(
        self, viewer: Viewer, task: Callable[[], Task], say: Callable[[str], None], *, framed: bool = False
    ) -> None:
        super().__init__()
        self.setMinimumHeight(PICTURE_SIZE)
        self._task, self._say = task, say
        self._latest = LatestTask(self.show_picture, self._fail)
        self.destroyed.connect(self._latest.drop)
        self._timer = QTimer(self, singleShot=True, interval=_PAUSE)
        self._timer.timeout.connect(self._make)
        camera = viewer.scene.camera.events
        self._events = [camera.angles, camera.orientation, viewer.dims.events.ndisplay, viewer.dims.events.order]
        if framed:
            self._events += [camera.zoom, camera.center, camera.perspective]
        self.hide()

    def switch(self, on: bool) -> None:
        """Follow the camera, or stop and hide."""
        self.setVisible(on)
        for event in self._events:
            event.disconnect(self.changed)
            if on:
                event.connect(self.changed)
        if on:
            self.changed()
        else:
            self._timer.stop()
            self._latest.drop()

    @property
    def busy(self) -> bool:
        """True while a picture is to come."""
        return self._timer.isActive() or self._latest.busy

    def changed(self, *_: Any) -> None:
        """Request another picture."""
        if not self.isHidden() and not self._timer.isActive():
            self._timer.start()

    def _make(self) -> None:
        try:
            self._latest.ask(self._task())
        except (ValueError, MemoryError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.picture = None
        self.setText("No live view")
        self._say(str(error))
