"""Tables: results of a study, and PSNR of super-resolution models and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from ....ablation import COLUMNS, CaseResult, format_row

_CASE, _PSNR = (list(COLUMNS).index(name) for name in ("case", "psnr_db"))


class CaseTable(QTableWidget):
    """Table with one row per case; the best PSNR is bold. Titles sort on a click, rows select their case."""

    case_selected = Signal(str)

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(list(COLUMNS.values()))
        self.verticalHeader().hide()
        self.setMinimumSize(340, 160)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)  # unsorted
        self.setSortingEnabled(True)
        self.itemSelectionChanged.connect(self._on_choice)
        self.cellClicked.connect(self._on_choice)  # also for the row that is already selected

    def add(self, result: CaseResult) -> None:
        """Add a case, and select it."""
        self.setSortingEnabled(False)  # otherwise a row moves while it is being filled
        row = self.rowCount()
        self.insertRow(row)
        for column, (name, text) in enumerate(zip(COLUMNS, format_row(result), strict=True)):
            self.setItem(row, column, _Cell(text, getattr(result, name)))
        case = self.item(row, _CASE)
        self._embolden_best()
        self.setSortingEnabled(True)
        self.resizeColumnsToContents()
        self.selectRow(case.row())

    def cases(self) -> list[str]:
        """Return the cases in their current order."""
        return [self.item(row, _CASE).text() for row in range(self.rowCount())]

    def _embolden_best(self) -> None:
        cells = [self.item(row, _PSNR) for row in range(self.rowCount())]
        best = max(cells)
        for cell in cells:
            font = cell.font()
            font.setBold(cell is best)
            cell.setFont(font)

    def _on_choice(self, *_: Any) -> None:
        if cells := self.selectedItems():
            self.case_selected.emit(self.item(cells[0].row(), _CASE).text())


class PSNRTable(QTableWidget):
    """Table of PSNR in dB, with the gain over a reference row; the row of the trained model is bold."""

    def __init__(self) -> None:
        super().__init__(0, 3)
        self.verticalHeader().hide()
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)

    def show_figures(self, figures: Mapping[str, float], beside: str, learned: str) -> None:
        """Show PSNR by name, the gain over the row `beside`, and the row `learned` in bold; none hide the table."""
        self.setVisible(bool(figures))
        self.setHorizontalHeaderLabels(["Held-out slices", "PSNR (dB)", "Gain (dB)"])
        self.setRowCount(len(figures))
        for row, (name, psnr) in enumerate(figures.items()):
            gain = "" if name == beside or beside not in figures else f"{psnr - figures[beside]:+.2f}"
            for column, text in enumerate((name, f"{psnr:.2f}", gain)):
                cell = _Cell(text, psnr if column else name)
                font = cell.font()
                font.setBold(name == learned)
                cell.setFont(font)
                self.setItem(row, column, cell)
        self.resizeRowsToContents()
        height = self.horizontalHeader().sizeHint().height() + sum(map(self.rowHeight, range(self.rowCount())))
        self.setFixedHeight(height + 2 * self.frameWidth())


class _Cell(QTableWidgetItem):
    """Cell with a text that is sorted by its value; missing values and NaN come first."""

    def __init__(self, text: str, value: Any) -> None:
        super().__init__(text)
        number = isinstance(value, float | int)
        self._key = -math.inf if value is None or (number and math.isnan(value)) else value
        if number or value is None:
            self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        return bool(self._key < other._key)
