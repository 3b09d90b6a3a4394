"""An editor of transfer functions: opacity over intensity, before the histogram of the volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QBrush, QColor, QKeyEvent, QLinearGradient, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QColorDialog, QSizePolicy, QWidget

from ....rendering.volume.transfer_functions import TransferFunction

_HEIGHT = 130
_MARGIN = 9.0  # pixels around the plot: points at its edges are seen whole
_BELOW = 14.0  # for the numbers of the axis
_REACH = 9.0  # pixels from a point where it is still meant
_RADIUS = 4.5
_BINS = 128
_MOST_POINTS = 16  # more than these nobody drags about: a colormap's 65 are thinned out
_CLOSE = 0.01  # to which colours and opacities stay the same then, if so few points do


class TransferEditor(QWidget):
    """Drag points, add them by a double click, remove them by a right click or the delete key.

    A double click on a point with ctrl or shift asks for its colour.

    Attributes
    ----------
    changed : Signal
        The user has changed the transfer function.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(_HEIGHT)
        self.setToolTip(
            "Opacity over intensity. Drag points; double click adds one, right click or Delete removes one, "
            "Ctrl + double click chooses its colour"
        )
        self._transfer = TransferFunction(
            np.array([0.0, 1.0]), np.array([[0.0, 0, 0], [1, 1, 1]]), np.array([0.0, 0.1])
        )
        self._counts: NDArray[np.float64] = np.zeros(0)
        self._limits = (0.0, 1.0)  # of the histogram
        self._range = (0.0, 1.0)  # of the axis
        self.selected: int | None = None
        self._dragged = False

    @property
    def transfer(self) -> TransferFunction:
        """The transfer function; of one that is set with many points, fewer are kept."""
        return self._transfer

    @transfer.setter
    def transfer(self, transfer: TransferFunction) -> None:
        self._transfer = thinned(transfer)
        self.selected = None
        self._fit_axis()

    def show_histogram(self, values: NDArray[Any]) -> None:
        """Show which intensities there are; those that are not finite are left out."""
        finite = np.asarray(values, np.float64).reshape(-1)
        finite = finite[np.isfinite(finite)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        self._limits = (low, high if high > low else low + 1)
        counts = np.histogram(finite, _BINS, self._limits)[0]
        self._counts = np.log1p(counts) / max(np.log1p(counts.max()), 1e-12)
        self._fit_axis()

    def _fit_axis(self) -> None:
        values = self._transfer.values
        low, high = min(self._limits[0], values[0]), max(self._limits[1], values[-1])
        self._range = (float(low), float(high if high > low else low + 1))
        self.update()

    # Places -----------------------------------------------------------------------------------------------------------

    def place(self, value: float, opacity: float) -> QPointF:
        """Return where an intensity and an opacity are in the widget."""
        box, (low, high) = self._box(), self._range
        return QPointF(box.left() + (value - low) / (high - low) * box.width(), box.bottom() - opacity * box.height())

    def _at(self, place: QPointF) -> tuple[float, float]:
        """Return the intensity and the opacity at a place, the nearest of those in the plot."""
        box, (low, high) = self._box(), self._range
        x = np.clip((place.x() - box.left()) / box.width(), 0, 1)
        return low + float(x) * (high - low), float(np.clip((box.bottom() - place.y()) / box.height(), 0, 1))

    def _box(self) -> QRectF:
        return QRectF(_MARGIN, _MARGIN, max(1.0, self.width() - 2 * _MARGIN), self.height() - 2 * _MARGIN - _BELOW)

    def _near(self, place: QPointF) -> int | None:
        """Return the number of the point at a place, if there is one."""
        points = [self.place(v, o) for v, o in zip(self._transfer.values, self._transfer.opacities, strict=True)]
        away = [np.hypot(p.x() - place.x(), p.y() - place.y()) for p in points]
        nearest = int(np.argmin(away))
        return nearest if away[nearest] <= _REACH else None

    # Changes ----------------------------------------------------------------------------------------------------------

    def add(self, value: float, opacity: float) -> None:
        """Add a point in the colour that was there, and select it."""
        t = self._transfer
        k = int(np.searchsorted(t.values, value))
        self._change(
            np.insert(t.values, k, value),
            np.insert(t.colours, k, t.at(value)[:3], 0),
            np.insert(t.opacities, k, opacity),
        )
        self._select(k)

    def move_point(self, k: int, value: float, opacity: float) -> None:
        """Move a point; it stays between its neighbours."""
        values, opacities = self._transfer.values.copy(), self._transfer.opacities.copy()
        low = values[k - 1] if k else -np.inf
        high = values[k + 1] if k + 1 < len(values) else np.inf
        values[k], opacities[k] = np.clip(value, low, high), opacity
        self._change(values, self._transfer.colours, opacities)

    def remove(self, k: int) -> None:
        """Remove a point, but not the last one."""
        t = self._transfer
        if len(t.values) > 1:
            self._select(None)
            self._change(np.delete(t.values, k), np.delete(t.colours, k, 0), np.delete(t.opacities, k))

    def ask_colour(self, k: int | None = None) -> None:
        """Ask for the colour of a point, by default the selected one."""
        k = self.selected if k is None else k
        if k is None:
            return
        chosen = QColorDialog.getColor(QColor.fromRgbF(*map(float, self._transfer.colours[k])), self, "Colour")
        if chosen.isValid():
            colours = self._transfer.colours.copy()
            colours[k] = np.clip([chosen.redF(), chosen.greenF(), chosen.blueF()], 0, 1)
            self._change(self._transfer.values, colours, self._transfer.opacities)

    def _change(self, values: NDArray[Any], colours: NDArray[Any], opacities: NDArray[Any]) -> None:
        self._transfer = replace(self._transfer, values=values, colours=colours, opacities=opacities)
        self.update()
        self.changed.emit()

    def _select(self, k: int | None) -> None:
        self.selected = k
        self.update()

    # Qt ---------------------------------------------------------------------------------------------------------------

    def sizeHint(self) -> QSize:
        """Ask for a strip."""
        return QSize(260, _HEIGHT)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Select a point, or remove it."""
        k = self._near(event.position())
        if event.button() == Qt.MouseButton.RightButton:
            if k is not None:
                self.remove(k)
            return
        self._dragged = k is not None
        self._select(k)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Drag the point."""
        if self._dragged and self.selected is not None and event.buttons() & Qt.MouseButton.LeftButton:
            self.move_point(self.selected, *self._at(event.position()))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """Let the point go."""
        self._dragged = False

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Add a point, or ask for the colour of one."""
        if event.button() != Qt.MouseButton.LeftButton:
            return
        k = self._near(event.position())
        held = event.modifiers() & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
        if k is None:
            self.add(*self._at(event.position()))
        elif held:
            self._select(k)
            self.ask_colour(k)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Remove the selected point."""
        if event.key() in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace) and self.selected is not None:
            self.remove(self.selected)
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw histogram, curve and points."""
        painter, box, t = QPainter(self), self._box(), self._transfer
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(self.rect(), QColor(24, 24, 28))
        self._draw_histogram(painter, box)
        line = [self.place(v, o) for v, o in zip(t.values, t.opacities, strict=True)]
        line = [QPointF(box.left(), line[0].y()), *line, QPointF(box.right(), line[-1].y())]
        gradient = QLinearGradient(box.left(), 0, box.right(), 0)
        for x, colour in zip(np.linspace(0, 1, 64), t.table(*self._range, 64)[:, :3], strict=True):
            gradient.setColorAt(float(x), _qt(colour))
        under = QLinearGradient(gradient)
        under.setStops([(x, QColor(c.red(), c.green(), c.blue(), 130)) for x, c in gradient.stops()])
        area = [QPointF(box.left(), box.bottom()), *line, QPointF(box.right(), box.bottom())]
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QBrush(under))
        painter.drawPolygon(QPolygonF(area))
        painter.setPen(QPen(QColor(200, 200, 200), 1.2))
        painter.drawPolyline(QPolygonF(line))
        for k, (place, colour) in enumerate(zip(line[1:-1], t.colours, strict=True)):
            chosen = k == self.selected
            painter.setBrush(_qt(colour))
            painter.setPen(QPen(QColor(255, 200, 60) if chosen else QColor(235, 235, 235), 2.2 if chosen else 1.2))
            painter.drawEllipse(place, _RADIUS, _RADIUS)
        self._draw_axis(painter, box)

    def _draw_histogram(self, painter: QPainter, box: QRectF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(88, 92, 100))
        low, high = self._limits
        edges = np.linspace(low, high, len(self._counts) + 1)
        for count, left, right in zip(self._counts, edges[:-1], edges[1:], strict=True):
            painter.drawRect(QRectF(self.place(left, float(count)), self.place(right, 0.0)))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QColor(90, 90, 90))
        painter.drawRect(box)

    def _draw_axis(self, painter: QPainter, box: QRectF) -> None:
        font = painter.font()
        font.setPixelSize(10)
        painter.setFont(font)
        painter.setPen(QColor(190, 190, 190))
        below = QRectF(box.left(), box.bottom() + 3, box.width(), _BELOW + _MARGIN - 4)
        low, high = self._range
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, f"{low:.4g}")
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{high:.4g}")
        middle = "intensity"
        if self.selected is not None:
            value, opacity = self._transfer.values[self.selected], self._transfer.opacities[self.selected]
            middle = f"{value:.4g}: opacity {opacity:.3g}"
        painter.drawText(below, Qt.AlignmentFlag.AlignHCenter, middle)


def _qt(colour: NDArray[np.float64]) -> QColor:
    return QColor.fromRgbF(*(float(c) for c in np.clip(colour, 0, 1)))


def thinned(transfer: TransferFunction) -> TransferFunction:
    """Return about the same transfer function with as few points as one can drag about, if it has many."""
    n = len(transfer.values)
    if n <= _MOST_POINTS:
        return transfer
    opacity = transfer.opacities / max(float(transfer.opacities.max()), 1e-12)
    columns = np.column_stack([transfer.colours, opacity])
    kept = [0, n - 1]
    while len(kept) < _MOST_POINTS:  # the point that is missed most comes next (Douglas and Peucker)
        x = transfer.values
        guess = np.stack([np.interp(x, x[kept], column[kept]) for column in columns.T], 1)
        off = np.abs(guess - columns).max(1)
        if off.max() <= _CLOSE:
            break
        kept = sorted({*kept, int(off.argmax())})
    return replace(
        transfer, values=transfer.values[kept], colours=transfer.colours[kept], opacities=transfer.opacities[kept]
    )
