"""Errors that the package raises: all derive from `GSVolumeError`, and from the built-in error that they refine."""

from __future__ import annotations


class GSVolumeError(Exception):
    """Base of all errors that the package raises on purpose.

    Examples
    --------
    >>> import napari_gsvolume as gsv
    >>> try:
    ...     gsv.Grid((4, 0, 4))
    ... except gsv.GSVolumeError as error:
    ...     print(error)
    The grid is empty: an axis of shape (4, 0, 4) has no voxels.
    """


class InputError(GSVolumeError, ValueError):
    """Unusable argument, setting or volume; the message is one sentence with the cause and a remedy."""


class FileFormatError(InputError):
    """Damaged or foreign file; the message is one sentence with the file and the reason.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import napari_gsvolume as gsv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "notes.nii"
    ...     _ = path.write_text("no image")
    ...     try:
    ...         gsv.load(path)
    ...     except gsv.FileFormatError as error:
    ...         print(str(error).rpartition("notes.nii")[2])
     cannot be read: it is not a NIfTI file.
    """


class OutOfMemoryError(GSVolumeError, MemoryError):
    """Computation that needs more memory than is free; the message says how to make it smaller."""
