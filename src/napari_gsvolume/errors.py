"""Errors that the package raises: all derive from `GSVolumeError`, and from the built-in error that they refine."""

from __future__ import annotations


class GSVolumeError(Exception):
    """Base of all errors that the package raises on purpose."""


class InputError(GSVolumeError, ValueError):
    """Unusable argument, setting or volume; the message is one sentence that says what was met and what to do."""


class FileFormatError(InputError):
    """Damaged or foreign file; the message is one sentence that names the file and the reason."""


class OutOfMemoryError(GSVolumeError, MemoryError):
    """Computation that needs more memory than is free; the message says how to make it smaller."""
