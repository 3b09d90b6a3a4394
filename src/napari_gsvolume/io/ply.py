"""Vertices of PLY files, as files of splats have them.

G. Turk, "The PLY Polygon File Format", 1994.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .atomic import atomic_write

_MAX_HEADER = 1 << 20  # bytes; files of splats have about 1,500
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}


@dataclass
class _Element:
    name: str
    count: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    """Names and numpy's types of the properties, but for lists."""
    has_lists: bool = False


def ply_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to write; raise ValueError unless it ends in ``.ply``."""
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise InputError(f"The name of a PLY file ends in .ply; got {path.name}.")
    return path


def write_vertices(path: Path, names: Sequence[str], table: NDArray[np.float32]) -> None:
    """Write a table ``(N, len(names))`` as vertices; an existing file is replaced in one step, or not at all.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).
    """
    # No comment in the header: the first program's viewer takes its third line for the number of splats.
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property float {name}" for name in names]
    content = "\n".join([*header, "end_header\n"]).encode("ascii") + table.astype("<f4", copy=False).tobytes()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_vertices(path: Path) -> NDArray[Any]:
    """Return the vertices, ``(N,)``, N > 0, with the file's properties as fields, in its types and order.

    The whole file is not read: of the header at most 1 MiB, and nothing behind the vertices.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no binary PLY file, is cut short, or has no vertices, or vertices of unknown size.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_MAX_HEADER)
        # Old files end lines by carriage returns; what the first line ends in tells where the header does.
        if not (first := re.match(rb"ply(\r\n|\n|\r)", head)):
            raise InputError("it is no PLY file")
        last = first[1] + b"end_header" + first[1]  # which a comment may tell of, but not in a line of its own
        if (end := head.find(last)) < 0:
            raise InputError("its header has no end")
        dtype, count, skipped = _layout([line.decode("latin-1") for line in head[first.end() : end].split(first[1])])
        start = end + len(last) + skipped
        needed = count * dtype.itemsize
        if start + needed > size:  # before any memory is asked for
            raise InputError(f"it is cut short: its vertices end at byte {start + needed:,} and the file at {size:,}")
        file.seek(start)
        return np.frombuffer(file.read(needed), dtype, count)


def _layout(lines: list[str]) -> tuple[np.dtype[Any], int, int]:
    """Return type and number of the vertices, and the bytes between header and them; raise ValueError."""
    order, elements = "", list[_Element]()
    for line in lines:
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", "ascii", *_]:
                raise InputError("it is a PLY file of text, and only binary ones are read")
            case ["format", "binary_little_endian" | "binary_big_endian" as kind, "1.0"]:
                order = "<" if kind == "binary_little_endian" else ">"
            case ["element", name, count] if re.fullmatch("[0-9]{1,18}", count):
                elements.append(_Element(name, int(count)))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_lists = True
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].fields.append((name, _TYPES[kind]))
            case _:
                raise InputError(f"its header has a line that makes no sense, {line[:60]!r}")
    if not order:
        raise InputError("its header does not tell the format")

    skipped = 0
    for element in elements:
        if element.has_lists:
            raise InputError(f"its {element.name[:60]!r} have a list, which no file of splats has up to the vertices")
        if len({name for name, _ in element.fields}) < len(element.fields):
            raise InputError(f"its {element.name[:60]!r} have two properties of one name")
        dtype = np.dtype([(name, order + kind) for name, kind in element.fields])
        if element.name != "vertex":
            skipped += element.count * dtype.itemsize
        elif not element.count or not element.fields:
            raise InputError("it has no vertices")
        else:
            return dtype, element.count, skipped
    raise InputError("it has no vertices")
