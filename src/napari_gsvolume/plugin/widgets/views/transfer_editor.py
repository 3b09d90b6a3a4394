"""Editor of transfer functions: opacity over intensity, in front of the volume's histogram."""

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
_MARGIN = 9.0  # pixels around the plot, so that points at its edges are not clipped
_AXIS_HEIGHT = 14.0  # pixels
_HIT_RADIUS = 9.0  # maximum distance of a click from a point, pixels
_RADIUS = 4.5
_BINS = 128
_MAX_POINTS = 16  # curves with more points, such as the 65 of a colormap, are simplified
_TOLERANCE = 0.01  # maximum error of simplified colours and opacities, if that many points suffice


class TransferEditor(QWidget):
    """Editable curve: drag points, double click to add one, right click or Delete to remove one.

    A double click on a point with Ctrl or Shift opens the colour dialog.

    Attributes
    ----------
    changed : Signal
        Emitted when the user has changed the transfer function.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFixedHeight(_HEIGHT)
        self.setToolTip(
            "Opacity over intensity. Drag points; double click to add one, right click or press Delete to remove one, "
            "Ctrl + double click to choose its colour"
        )
        self._transfer = TransferFunction(
            np.array([0.0, 1.0]), np.array([[0.0, 0, 0], [1, 1, 1]]), np.array([0.0, 0.1])
        )
        self._counts: NDArray[np.float64] = np.zeros(0)
        self._limits = (0.0, 1.0)  # intensity range of the histogram
        self._range = (0.0, 1.0)  # intensity range of the axis
        self.selected: int | None = None
        self._dragged = False

    @property
    def transfer_function(self) -> TransferFunction:
        """Transfer function; a curve with many points is simplified when it is set."""
        return self._transfer

    @transfer_function.setter
    def transfer_function(self, transfer_function: TransferFunction) -> None:
        self._transfer = simplify(transfer_function)
        self.selected = None
        self._fit_axis()

    def show_histogram(self, values: NDArray[Any]) -> None:
        """Show the histogram of the finite values."""
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

    # Positions --------------------------------------------------------------------------------------------------------

    def to_position(self, value: float, opacity: float) -> QPointF:
        """Return the widget position of an intensity and an opacity."""
        box, (low, high) = self._box(), self._range
        return QPointF(box.left() + (value - low) / (high - low) * box.width(), box.bottom() - opacity * box.height())

    def _value_at(self, position: QPointF) -> tuple[float, float]:
        """Return the intensity and the opacity at a widget position, clipped to the plot."""
        box, (low, high) = self._box(), self._range
        x = np.clip((position.x() - box.left()) / box.width(), 0, 1)
        return low + float(x) * (high - low), float(np.clip((box.bottom() - position.y()) / box.height(), 0, 1))

    def _box(self) -> QRectF:
        return QRectF(
            _MARGIN, _MARGIN, max(1.0, self.width() - 2 * _MARGIN), self.height() - 2 * _MARGIN - _AXIS_HEIGHT
        )

    def _point_at(self, position: QPointF) -> int | None:
        """Return the index of the point at a widget position, or None."""
        points = [self.to_position(v, o) for v, o in zip(self._transfer.values, self._transfer.opacities, strict=True)]
        distances = [np.hypot(p.x() - position.x(), p.y() - position.y()) for p in points]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= _HIT_RADIUS else None

    # Changes ----------------------------------------------------------------------------------------------------------

    def add(self, value: float, opacity: float) -> None:
        """Add a point with the interpolated colour, and select it."""
        t = self._transfer
        k = int(np.searchsorted(t.values, value))
        self._change(
            np.insert(t.values, k, value),
            np.insert(t.colors, k, t.evaluate(value)[:3], 0),
            np.insert(t.opacities, k, opacity),
        )
        self._select(k)

    def move_point(self, k: int, value: float, opacity: float) -> None:
        """Move a point, at most up to its neighbours."""
        values, opacities = self._transfer.values.copy(), self._transfer.opacities.copy()
        low = values[k - 1] if k else -np.inf
        high = values[k + 1] if k + 1 < len(values) else np.inf
        values[k], opacities[k] = np.clip(value, low, high), opacity
        self._change(values, self._transfer.colors, opacities)

    def remove(self, k: int) -> None:
        """Remove a point, unless it is the only one."""
        t = self._transfer
        if len(t.values) > 1:
            self._select(None)
            self._change(np.delete(t.values, k), np.delete(t.colors, k, 0), np.delete(t.opacities, k))

    def ask_color(self, k: int | None = None) -> None:
        """Open the colour dialog for a point, by default the selected one."""
        k = self.selected if k is None else k
        if k is None:
            return
        chosen = QColorDialog.getColor(QColor.fromRgbF(*map(float, self._transfer.colors[k])), self, "Colour")
        if chosen.isValid():
            colors = self._transfer.colors.copy()
            colors[k] = np.clip([chosen.redF(), chosen.greenF(), chosen.blueF()], 0, 1)
            self._change(self._transfer.values, colors, self._transfer.opacities)

    def _change(self, values: NDArray[Any], colors: NDArray[Any], opacities: NDArray[Any]) -> None:
        self._transfer = replace(self._transfer, values=values, colors=colors, opacities=opacities)
        self.update()
        self.changed.emit()

    def _select(self, k: int | None) -> None:
        self.selected = k
        self.update()

    # Qt ---------------------------------------------------------------------------------------------------------------

    def sizeHint(self) -> QSize:
        """Return the size of a horizontal strip."""
        return QSize(260, _HEIGHT)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Select a point, or remove it."""
        k = self._point_at(event.position())
        if event.button() == Qt.MouseButton.RightButton:
            if k is not None:
                self.remove(k)
            return
        self._dragged = k is not None
        self._select(k)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Drag the point."""
        if self._dragged and self.selected is not None and event.buttons() & Qt.MouseButton.LeftButton:
            self.move_point(self.selected, *self._value_at(event.position()))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        """Stop dragging."""
        self._dragged = False

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        """Add a point, or choose the colour of one."""
        if event.button() != Qt.MouseButton.LeftButton:
            return
        k = self._point_at(event.position())
        held = event.modifiers() & (Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
        if k is None:
            self.add(*self._value_at(event.position()))
        elif held:
            self._select(k)
            self.ask_color(k)

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
        line = [self.to_position(v, o) for v, o in zip(t.values, t.opacities, strict=True)]
        line = [QPointF(box.left(), line[0].y()), *line, QPointF(box.right(), line[-1].y())]
        gradient = QLinearGradient(box.left(), 0, box.right(), 0)
        for x, color in zip(np.linspace(0, 1, 64), t.lookup_table(*self._range, 64)[:, :3], strict=True):
            gradient.setColorAt(float(x), _to_qt(color))
        fill = QLinearGradient(gradient)
        fill.setStops([(x, QColor(c.red(), c.green(), c.blue(), 130)) for x, c in gradient.stops()])
        area = [QPointF(box.left(), box.bottom()), *line, QPointF(box.right(), box.bottom())]
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QBrush(fill))
        painter.drawPolygon(QPolygonF(area))
        painter.setPen(QPen(QColor(200, 200, 200), 1.2))
        painter.drawPolyline(QPolygonF(line))
        for k, (position, color) in enumerate(zip(line[1:-1], t.colors, strict=True)):
            chosen = k == self.selected
            painter.setBrush(_to_qt(color))
            painter.setPen(QPen(QColor(255, 200, 60) if chosen else QColor(235, 235, 235), 2.2 if chosen else 1.2))
            painter.drawEllipse(position, _RADIUS, _RADIUS)
        self._draw_axis(painter, box)

    def _draw_histogram(self, painter: QPainter, box: QRectF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(88, 92, 100))
        low, high = self._limits
        edges = np.linspace(low, high, len(self._counts) + 1)
        for count, left, right in zip(self._counts, edges[:-1], edges[1:], strict=True):
            painter.drawRect(QRectF(self.to_position(left, float(count)), self.to_position(right, 0.0)))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QColor(90, 90, 90))
        painter.drawRect(box)

    def _draw_axis(self, painter: QPainter, box: QRectF) -> None:
        font = painter.font()
        font.setPixelSize(10)
        painter.setFont(font)
        painter.setPen(QColor(190, 190, 190))
        below = QRectF(box.left(), box.bottom() + 3, box.width(), _AXIS_HEIGHT + _MARGIN - 4)
        low, high = self._range
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, f"{low:.4g}")
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{high:.4g}")
        middle = "intensity"
        if self.selected is not None:
            value, opacity = self._transfer.values[self.selected], self._transfer.opacities[self.selected]
            middle = f"{value:.4g}: opacity {opacity:.3g}"
        painter.drawText(below, Qt.AlignmentFlag.AlignHCenter, middle)


def _to_qt(color: NDArray[np.float64]) -> QColor:
    return QColor.fromRgbF(*(float(c) for c in np.clip(color, 0, 1)))


def simplify(transfer_function: TransferFunction) -> TransferFunction:
    """Return an approximation with at most `_MAX_POINTS` points (Douglas-Peucker)."""
    n = len(transfer_function.values)
    if n <= _MAX_POINTS:
        return transfer_function
    opacity = transfer_function.opacities / max(float(transfer_function.opacities.max()), 1e-12)
    columns = np.column_stack([transfer_function.colors, opacity])
    kept = [0, n - 1]
    while len(kept) < _MAX_POINTS:  # add the point with the largest error
        x = transfer_function.values
        guess = np.stack([np.interp(x, x[kept], column[kept]) for column in columns.T], 1)
        error = np.abs(guess - columns).max(1)
        if error.max() <= _TOLERANCE:
            break
        kept = sorted({*kept, int(error.argmax())})
    return replace(
        transfer_function,
        values=transfer_function.values[kept],
        colors=transfer_function.colors[kept],
        opacities=transfer_function.opacities[kept],
    )
