"""PLY files of splats, in the convention of the original implementation of 3D Gaussian Splatting.

One element ``vertex`` of float32: ``x y z``; ``nx ny nz``, unused, 0; ``f_dc_0..2`` and ``f_rest_0..``, the spherical
harmonics coefficients: the constant ones of red, green and blue, then all others of red, of green and of blue;
``opacity`` as logit; ``scale_0..2`` as natural logarithms of standard deviations; ``rot_0..3``, a quaternion
(w, x, y, z) whose matrix has the principal axes as columns.

References
----------
B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM
Transactions on Graphics 42 (4), 2023.
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
from .spherical_harmonics import MAX_DEGREE, n_coefficients

_POSITION, _NORMAL, _CONSTANT = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")


def write_splats(path: str | os.PathLike[str], splats: Splats) -> None:
    """Write splats to a PLY file for 3D Gaussian Splatting viewers; an existing file is replaced in one step.

    Splats in float32 are stored without loss: `read_splats` returns the same bits.

    Parameters
    ----------
    path : str or path-like
        File name ending in ``.ply``.
    splats : Splats
        At least one, on any device. Lengths stay in mm; the file does not store their unit.

    Raises
    ------
    InputError
        If the file name has another ending, there is no splat, a quaternion is 0, or a number exceeds float32.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).
    """
    path = ply_path(path)
    if not len(splats):
        raise InputError("There are no splats to write; a PLY file needs at least one.")
    names = [*_POSITION, *_NORMAL, *_CONSTANT, *_higher_order_names(splats.sh_degree), "opacity", *_SCALES, *_ROTATION]
    parts = [
        splats.means,
        torch.zeros_like(splats.means),
        splats.sh[:, 0],
        splats.sh[:, 1:].transpose(1, 2).flatten(1),
        splats.opacity_logits[:, None],
        splats.log_scales,
        splats.quaternions,
    ]
    table = torch.cat([part.detach().cpu().float() for part in parts], 1).numpy()
    if not np.isfinite(table).all():
        raise InputError("A number of the splats is beyond float32, the precision of PLY files.")
    if not table[:, -len(_ROTATION) :].any(1).all():
        raise InputError("A quaternion of the splats is 0, which is not a rotation.")
    write_vertices(path, names, table)


def read_splats(path: str | os.PathLike[str]) -> Splats:
    """Read splats from a PLY file of any 3D Gaussian Splatting program.

    Properties may have any order and type and either byte order; further properties and elements are ignored. Without
    ``f_rest`` the SH degree is 0.

    Parameters
    ----------
    path : str or path-like
        Binary PLY file; its lengths are taken as mm.

    Returns
    -------
    Splats
        Splats in float32 on the CPU; quaternions as in the file, of any nonzero length.

    Raises
    ------
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).
    FileFormatError
        If it is damaged, is not a binary PLY file, has no splats, or contains NaN or infinite numbers.
    """
    path = Path(path)
    try:
        return _splats(read_vertices(path))
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error


def _higher_order_names(degree: int) -> list[str]:
    """Return the property names of all coefficients but the constant ones."""
    return [f"f_rest_{i}" for i in range(3 * (n_coefficients(degree) - 1))]


def _splats(vertices: NDArray[Any]) -> Splats:
    """Return splats from the fields ``x``, ...; raise InputError if they are not splats."""
    found = set(vertices.dtype.names or ())
    n_rest = sum(name.startswith("f_rest_") for name in found)
    n_rests = [len(_higher_order_names(degree)) for degree in range(MAX_DEGREE + 1)]
    if n_rest not in n_rests:
        raise InputError(f"it has {n_rest} f_rest properties; SH degrees 0 to {MAX_DEGREE} have {n_rests}")
    rest = _higher_order_names(n_rests.index(n_rest))
    if missing := [n for n in (*_POSITION, *_CONSTANT, *rest, "opacity", *_SCALES, *_ROTATION) if n not in found]:
        raise InputError(f"its vertices are not splats: missing {', '.join(missing)}")

    def columns(*names: str) -> NDArray[np.float32]:
        values = np.empty((len(vertices), len(names)), np.float32)
        with np.errstate(all="ignore"):  # rejected below
            for i, name in enumerate(names):
                values[:, i] = vertices[name]
        if not (finite := np.isfinite(values).all(0)).all():
            raise InputError(f"its {names[finite.argmin()]} contains numbers that are NaN, infinite or beyond float32")
        return values

    quaternions = columns(*_ROTATION)
    if not quaternions.any(1).all():
        raise InputError("a quaternion is 0, which is not a rotation")
    others = columns(*rest).reshape(len(vertices), 3, n_rest // 3).transpose(0, 2, 1)
    tensors = {
        "means": columns(*_POSITION),
        "log_scales": columns(*_SCALES),
        "quaternions": quaternions,
        "opacity_logits": columns("opacity")[:, 0],
        "sh": np.concatenate([columns(*_CONSTANT)[:, None], others], 1),
    }
    return Splats(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()})
