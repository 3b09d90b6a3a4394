"""Splats in and out: PLY files in the convention of the first program for 3D Gaussian Splatting.

One element ``vertex`` of float32: ``x y z``; ``nx ny nz``, which are 0 and mean nothing; ``f_dc_0..2`` and
``f_rest_0..``, the coefficients of the spherical harmonics for red, green and blue, the constant ones first, then all
others of red, all of green, all of blue; ``opacity`` as logit; ``scale_0..2`` as natural logarithms of standard
deviations; ``rot_0..3``, a quaternion (w, x, y, z) whose matrix has the principal axes as columns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import FileFormatError, InputError
from ...io.ply import ply_path, read_vertices, write_vertices
from .model import Splats
from .spherical_harmonics import MAX_DEGREE, n_harmonics

_PLACE, _NORMAL, _CONSTANT = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")


def write_splats(path: str | os.PathLike[str], splats: Splats) -> None:
    """Write splats for viewers of 3D Gaussian Splatting; an existing file is replaced in one step, or not at all.

    `read_splats` returns splats of float32 bit by bit as they were.

    Parameters
    ----------
    path : str or path-like
        Ends in ``.ply``.
    splats : Splats
        At least one, on any device. Places and scales keep their unit (mm), which the file does not tell.

    Raises
    ------
    ValueError
        If the file's name ends otherwise, there is no splat, a quaternion is 0 or a number beyond float32.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).
    """
    path = ply_path(path)
    if not len(splats):
        raise InputError("There are no splats to write to a PLY file, and viewers need one at least.")
    names = [*_PLACE, *_NORMAL, *_CONSTANT, *_rest(splats.degree), "opacity", *_SCALES, *_ROTATION]
    parts = [
        splats.means,
        torch.zeros_like(splats.means),
        splats.sh[:, 0],
        splats.sh[:, 1:].transpose(1, 2).flatten(1),
        splats.logits[:, None],
        splats.log_scales,
        splats.quaternions,
    ]
    table = torch.cat([part.detach().cpu().float() for part in parts], 1).numpy()
    if not np.isfinite(table).all():
        raise InputError("A number of the splats is beyond float32, which is what a PLY file holds.")
    if not table[:, -len(_ROTATION) :].any(1).all():
        raise InputError("A quaternion of the splats is 0, which is no rotation.")
    write_vertices(path, names, table)


def read_splats(path: str | os.PathLike[str]) -> Splats:
    """Read splats that any program wrote in the convention of the first one.

    Properties may have any order and type, of either byte order, and further ones are ignored, as are other elements;
    without ``f_rest`` the degree of the harmonics is 0.

    Parameters
    ----------
    path : str or path-like
        A binary PLY file. Its unit of length, which it does not tell, is taken for mm.

    Returns
    -------
    Splats
        Of float32, on the CPU. Quaternions are as in the file, of any length but 0.

    Raises
    ------
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).
    FileFormatError
        If it is damaged, is no binary PLY file, lacks properties of splats, or holds NaN or infinite numbers.
    """
    path = Path(path)
    try:
        return _splats(read_vertices(path))
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error


def _rest(degree: int) -> list[str]:
    """Return the names of the coefficients beyond the constant ones."""
    return [f"f_rest_{i}" for i in range(3 * (n_harmonics(degree) - 1))]


def _splats(vertices: NDArray[Any]) -> Splats:
    """Return splats of the fields ``x``, ...; raise ValueError."""
    found = set(vertices.dtype.names or ())
    n_rest = sum(name.startswith("f_rest_") for name in found)
    n_rests = [len(_rest(degree)) for degree in range(MAX_DEGREE + 1)]
    if n_rest not in n_rests:
        raise InputError(f"it has {n_rest} f_rest, and harmonics of degree 0 to {MAX_DEGREE} have {n_rests}")
    rest = _rest(n_rests.index(n_rest))
    if missing := [n for n in (*_PLACE, *_CONSTANT, *rest, "opacity", *_SCALES, *_ROTATION) if n not in found]:
        raise InputError(f"its vertices are no splats, they lack {', '.join(missing)}")

    def columns(*names: str) -> NDArray[np.float32]:
        values = np.empty((len(vertices), len(names)), np.float32)
        with np.errstate(all="ignore"):  # refused below
            for i, name in enumerate(names):
                values[:, i] = vertices[name]
        if not (finite := np.isfinite(values).all(0)).all():
            raise InputError(f"its {names[finite.argmin()]} has numbers that are NaN, infinite or beyond float32")
        return values

    quaternions = columns(*_ROTATION)
    if not quaternions.any(1).all():
        raise InputError("a quaternion is 0, which is no rotation")
    others = columns(*rest).reshape(len(vertices), 3, n_rest // 3).transpose(0, 2, 1)
    tensors = {
        "means": columns(*_PLACE),
        "log_scales": columns(*_SCALES),
        "quaternions": quaternions,
        "logits": columns("opacity")[:, 0],
        "sh": np.concatenate([columns(*_CONSTANT)[:, None], others], 1),
    }
    return Splats(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()})
