"""Lossless files of Gaussians: safetensors, with grid, background and metadata as texts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save

from ..errors import InputError
from ..gaussians import GaussianVolume
from ..grid import Grid
from .atomic import atomic_write
from .safetensors_file import one_line, open_safetensors

_PROGRAM = "napari-gsvolume/"
_FORMAT = f"{_PROGRAM}1"  # the number grows with incompatible changes
_TENSORS = ("means", "factors", "weights")
_TEXTS = ("grid", "background", "metadata")


def write_safetensors(path: str | os.PathLike[str], gaussians: GaussianVolume) -> None:
    """Write Gaussians; an existing file is replaced in one step, or not at all.

    `read_safetensors` returns every number, grid, background and metadata bit by bit as they were.

    Parameters
    ----------
    path : str or path-like
        Path ending in ``.safetensors``.
    gaussians : GaussianVolume
        Gaussians to write.

    Raises
    ------
    ValueError
        If the file's name ends otherwise, or the metadata cannot be written as JSON.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"The name of a file of Gaussians ends in .safetensors; got {path.name}.")
    try:
        metadata = json.dumps(gaussians.metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The metadata of the Gaussians cannot be written as JSON: {one_line(error)}.") from error
    texts = {
        "format": _FORMAT,
        "grid": json.dumps(gaussians.grid.to_dict()),
        "background": repr(float(gaussians.background)),  # the shortest digits that read back as the same float
        "metadata": metadata,
    }
    # safetensors writes the memory of an array, so it has to be contiguous.
    tensors = {name: getattr(gaussians, name).detach().cpu().contiguous().numpy() for name in _TENSORS}
    content = save(tensors, texts)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_safetensors(path: str | os.PathLike[str]) -> GaussianVolume:
    """Read a file of Gaussians that `write_safetensors` wrote.

    Parameters
    ----------
    path : str or path-like
        A ``.safetensors`` file.

    Returns
    -------
    GaussianVolume
        Gaussians on the CPU; the file is closed.

    Raises
    ------
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).
    FileFormatError
        If the file is damaged, was written by another program, or has an unknown format version.
    """
    with open_safetensors(path, "np") as file:
        return _parse(file)


def _parse(file: Any) -> GaussianVolume:
    """Return the Gaussians in an open safetensors file; a ValueError says what is wrong with it."""
    texts: dict[str, str] = file.metadata() or {}
    written_as = texts.get("format", "")
    if not written_as.startswith(_PROGRAM):
        raise InputError("it is a safetensors file of another program")
    if written_as != _FORMAT:
        raise InputError(f"its format is {written_as}, and this version reads {_FORMAT}; try a newer napari-gsvolume")
    missing = [name for name in _TENSORS if name not in file.keys()]  # noqa: SIM118 - no mapping
    missing += [name for name in _TEXTS if name not in texts]
    if missing:
        raise InputError(f"it has no {', '.join(missing)}")
    for name in _TENSORS:
        stored = file.get_slice(name)
        if stored.get_dtype() != "F32" or not stored.get_shape():
            raise InputError(f"its {name} are not an array of float32")
    try:
        grid = Grid.from_dict(_json_object(texts["grid"]))
    except KeyError as error:
        raise InputError(f"its grid has no {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"its grid is damaged ({one_line(error)})") from error
    try:
        metadata = _json_object(texts["metadata"])
    except ValueError as error:
        raise InputError(f"its metadata are damaged ({one_line(error)})") from error
    tensors = {name: torch.from_numpy(file.get_tensor(name)) for name in _TENSORS}
    return GaussianVolume(**tensors, grid=grid, background=float(texts["background"]), metadata=metadata)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise InputError("JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise InputError("no JSON object")
    return value
