"""NIfTI files: (x, y, z, t) on disk, (T, Z, Y, X) in memory."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import ArrayLike, NDArray

from ..errors import FileFormatError, InputError
from ..grid import Grid
from ..units import metres_per_unit
from .atomic import atomic_write

# The two halves of the header's `xyzt_units`.
_SPACE_BITS, _TIME_BITS = 0b000111, 0b111000
_SPACE_UNITS = {1: "meter", 2: "mm", 3: "micrometer"}
_TIME_UNITS = {
    8: "second",
    16: "millisecond",
    24: "microsecond",
    32: "hertz",
    40: "ppm",
    48: "radian/second",
}
_TIME_CODES = {unit: code for code, unit in _TIME_UNITS.items()} | {"pixel": 0}

# Codes of the lengths that NIfTI has, in metres.
_SPACE_CODES = {1.0: 1, 1e-3: 2, 1e-6: 3}

_ALIGNED = 2  # the code of a world that is none of those NIfTI names
_NIFTI1_MAX_AXIS = 32767

# What nibabel's parsers raise on a bad header; they share no base class.
_HEADER_ERRORS = (HeaderDataError, ImageFileError, KeyError, OverflowError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class NiftiImage:
    """Content of a NIfTI file.

    Attributes
    ----------
    data : ndarray
        ``(Y, X)``, ``(Z, Y, X)`` or ``(T, Z, Y, X)``, and a last axis of 3 or 4 channels when `rgb`. The
        stored integers where the file does not scale them, float32 otherwise, uint8 for colours.
    grid : Grid
        The spatial axes of `data`. The world's axes are NIfTI's, reversed: ``(z, y, x)``, growing towards
        superior, anterior and right. Units are ``"pixel"`` if the header has none.
    header : nibabel.Nifti1Header or nibabel.Nifti2Header
        Header of the file, for `write_nifti` to preserve.
    rgb : bool
        True if the last axis of `data` is colour, RGB or RGBA.
    time_step : float or None
        Step along T in `time_unit`, 1 if the header has none; None without this axis.
    time_unit : str or None
        Unit of `time_step` in pint's spelling, ``"pixel"`` if the header has none; None without T.
    """

    data: NDArray[Any]
    grid: Grid
    header: Any
    rgb: bool = False
    time_step: float | None = None
    time_unit: str | None = None


def read_nifti(path: str | os.PathLike[str]) -> NiftiImage:
    """Read a NIfTI-1 or NIfTI-2 file, gzipped or not.

    Axes of length one at the end, beyond the third, are dropped. A 2D file whose plane is tilted out of the
    world's x-y plane becomes a volume of one slice, as a 2D grid could not say where it is.

    Parameters
    ----------
    path : str or path-like
        A ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    NiftiImage
        Data, grid and header; the file itself is closed.

    Raises
    ------
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).
    FileFormatError
        If the file is empty, damaged or not NIfTI, if it holds complex numbers or does not have 2 to 4 axes,
        or if its affine has no inverse.
    """
    path = Path(path)
    content = _read_bytes(path)
    try:
        return _parse(content)
    except ValueError as error:
        raise FileFormatError(f"{path} cannot be read: {_one_line(error)}.") from error


def write_nifti(
    path: str | os.PathLike[str],
    data: ArrayLike,
    grid: Grid,
    *,
    like: NiftiImage | None = None,
    time_step: float | None = None,
    time_unit: str | None = None,
) -> None:
    """Write float32 numbers to a NIfTI file; an existing file is replaced in one step, or not at all.

    The affine is written as sform and qform, with the codes of `like`. An sform without a code would not
    count and gets one; a qform cannot hold a sheared affine and loses its own. Lengths that NIfTI has no unit
    for (nanometres, or a different unit on each axis) are converted; units that are not lengths are left out.

    Parameters
    ----------
    path : str or path-like
        Path ending in ``.nii`` or ``.nii.gz`` (compressed).
    data : array_like
        Real numbers, ``(Y, X)`` or ``(Z, Y, X)`` as `grid` has it, or ``(T, Z, Y, X)`` on a 3D grid.
    grid : Grid
        The spatial axes of `data`.
    like : NiftiImage, optional
        Keep the header of this image (description, codes, extensions, ...) but for shape, type and scaling.
    time_step : float, optional
        Step along T. That of `like` when omitted, else 1.
    time_unit : str, optional
        Unit of `time_step`: one of those that `read_nifti` returns. That of `like` when omitted.

    Raises
    ------
    ValueError
        If the file's name, the data's shape or type, or the time unit is not one of the above.
    OSError
        If the folder does not exist or cannot be written to (FileNotFoundError, PermissionError, ...).
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"The name of a NIfTI file ends in .nii or .nii.gz; got {path.name}.")
    image = _image(data, grid, like, time_step, time_unit)

    with atomic_write(path) as temporary, Opener(temporary, "wb") as file:  # the suffix has nibabel compress
        image.to_stream(file)


def _read_bytes(path: Path) -> bytes:
    """Return the whole file, unpacked; read to its end, gzip checks the CRC, which nibabel never reaches."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return gzip.GzipFile(fileobj=file).read() if packed else file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(f"{path} cannot be read: its gzip stream is damaged or cut short.") from error
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(content: bytes) -> NiftiImage:
    """Return the image in a file's bytes; a ValueError says what is wrong with them."""
    image = _load(content)
    stored = image.dataobj
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise InputError(f"an image has 2 to 4 axes and no empty one, and its shape is {shape}")
    wanted, there = math.prod(shape) * stored.dtype.itemsize, len(content) - stored.offset
    if there < wanted:
        raise InputError(f"it is cut short, with {max(there, 0)} of {wanted} bytes of data")
    if len(shape) == 2 and not _lies_in_xy(image.affine):
        shape += (1,)

    units = int(image.header["xyzt_units"])
    ndim = min(len(shape), 3)
    unit = _SPACE_UNITS.get(units & _SPACE_BITS, "pixel")
    grid = Grid(shape[:3][::-1], image.affine[_reversed_axes(ndim)], (unit,) * ndim)
    data = _values(stored).reshape(shape, order="F").T
    rgb = data.dtype.names is not None
    if rgb:
        data = structured_to_unstructured(data)
    if len(shape) < 4:
        return NiftiImage(data, grid, image.header, rgb)
    time_unit = _TIME_UNITS.get(units & _TIME_BITS, "pixel")
    time_step = float(image.header["pixdim"][4])
    if not 0 < time_step < math.inf:  # many headers leave it at 0
        time_step = 1.0
    return NiftiImage(data, grid, image.header, rgb, time_step, time_unit)


def _load(content: bytes) -> Any:
    """Return nibabel's image; a ValueError says why there is none."""
    if not content:
        raise InputError("it is empty")
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(content):
            try:
                return kind.from_bytes(content)
            except _HEADER_ERRORS as error:
                raise InputError(f"its header is damaged ({_one_line(error)})") from error
    raise InputError("it is not a NIfTI file")


def _values(stored: Any) -> NDArray[Any]:
    """Return the numbers behind nibabel's array proxy in its axis order, structured if they are colours."""
    dtype = stored.dtype.newbyteorder("=")
    if dtype.names is not None or (dtype.kind in "iu" and stored.slope == 1 and stored.inter == 0):
        return np.asarray(stored.get_unscaled()).astype(dtype, copy=False)
    if dtype.kind not in "iuf":
        raise InputError(f"its numbers are {dtype}, and only real ones can be shown")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for every cast
        return np.asarray(stored, dtype=np.float32)


def _image(data: ArrayLike, grid: Grid, like: NiftiImage | None, time_step: float | None, time_unit: str | None) -> Any:
    """Return nibabel's image, ready to be written."""
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise InputError(f"A NIfTI file is written from real numbers; got {array.dtype}.")
    timed = grid.ndim == 3 and array.ndim == 4
    if array.shape[timed:] != grid.shape or array.size == 0:
        raise InputError(f"Data of shape {array.shape} do not lie on a grid of shape {grid.shape}.")

    if like is None:
        header = nib.Nifti1Header()
        header["qform_code"] = _ALIGNED
    else:
        header = like.header.copy()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    if max(array.shape) > _NIFTI1_MAX_AXIS and kind is nib.Nifti1Image:
        kind = nib.Nifti2Image
        header = kind.header_class.from_header(header)
    header.set_data_dtype(np.float32)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(array.shape[::-1])
    header["pixdim"] = pixdim  # with the repetition time, which nibabel drops from a 3D header
    header.set_data_offset(0)  # wherever the extensions end

    affine, space = _file_affine(grid)
    _set_affine(header, affine)
    time = int(header["xyzt_units"]) & _TIME_BITS
    if timed:
        step = time_step if like is None or time_step is not None else like.time_step
        header["pixdim"][4] = 1 if step is None else step
        if time_unit is not None:
            if time_unit not in _TIME_CODES:
                raise InputError(f"NIfTI has no time unit {time_unit}; choose from {', '.join(_TIME_CODES)}.")
            time = _TIME_CODES[time_unit]
    header["xyzt_units"] = space | time
    return kind(array.astype(np.float32, copy=False).T, None, header)


def _file_affine(grid: Grid) -> tuple[NDArray[np.float64], int]:
    """Return the 4x4 affine in xyz order and the code of its unit."""
    affine = grid.affine.copy()
    code = 0
    metres = [length for unit in grid.units if (length := metres_per_unit(unit)) is not None]
    if len(metres) == grid.ndim:
        unit = metres[0]
        if unit not in _SPACE_CODES or len(set(metres)) > 1:
            unit = 1e-6 if max(metres) <= 1e-6 else 1e-3
        affine[:-1] *= np.array(metres)[:, None] / unit
        code = _SPACE_CODES[unit]
    full = np.eye(4)
    full[_reversed_axes(grid.ndim)] = affine
    return full, code


def _set_affine(header: Any, affine: NDArray[np.float64]) -> None:
    """Write the affine as sform and qform and keep their codes, as far as they then tell the truth."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = not np.allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    qform_code = int(header["qform_code"])
    header.set_sform(affine, int(header["sform_code"]) or qform_code or _ALIGNED)
    header.set_qform(affine, 0 if sheared else qform_code)


def _reversed_axes(ndim: int) -> tuple[NDArray[np.intp], ...]:
    """Return the index of a 4x4 affine's part on `ndim` axes, with both index and world axes reversed."""
    order = [*reversed(range(ndim)), 3]
    return np.ix_(order, order)


def _lies_in_xy(affine: NDArray[np.float64]) -> bool:
    """Whether the first two index axes stay in the world's x-y plane."""
    lengths = np.linalg.norm(affine[:3, :2], axis=0)
    return bool((abs(affine[2, :2]) <= 1e-5 * lengths).all())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
