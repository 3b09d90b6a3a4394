"""Reader of the evolution table of a tracked training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...errors import FileFormatError, InputError
from .records import COLUMNS, Evolution


def read_evolutions(path: str | Path) -> dict[str, Evolution]:
    """Read the evolution of all layers from a table of `Tracker.to_csv`; directions of concepts are not in it.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If it is no such table.
    """
    path = Path(path)
    rows: dict[str, dict[float, dict[int, list[float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise InputError(f"the columns of a tracked training are missing ({', '.join(COLUMNS[:4])}, ...)")
            for row in reader:
                if row["group"]:
                    continue
                numbers = [float(row[c]) if row[c] else np.nan for c in COLUMNS[5:]]
                rows.setdefault(row["layer"], {}).setdefault(float(row["epoch"]), {})[int(row["component"])] = numbers
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as the table of a tracked training: {error}.") from error
    if not rows:
        raise FileFormatError(f"{path} has no rows.")
    return {layer: _evolution(of) for layer, of in rows.items()}


def _evolution(epochs: dict[float, dict[int, list[float]]]) -> Evolution:
    ordered = sorted(epochs)
    k = 1 + max(max(components) for components in epochs.values())
    table = np.full((len(ordered), k, len(COLUMNS) - 5), np.nan)
    for i, epoch in enumerate(ordered):
        for j, numbers in epochs[epoch].items():
            table[i, j] = numbers
    values, shares, previous, first = (table[:, :, c] for c in range(4))
    angle, effective, stable, sharp = (
        table[np.arange(len(ordered)), [min(epochs[e]) for e in ordered], c] for c in range(4, 8)
    )
    none = np.empty((len(ordered), 0, k), np.float32)
    return Evolution(
        np.array(ordered),
        np.nan_to_num(values),
        np.nan_to_num(shares),
        previous,
        first,
        none,
        angle,
        effective,
        stable,
        sharp,
    )
