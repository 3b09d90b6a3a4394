"""Access to safetensors files, with errors of one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import FileFormatError


@contextmanager
def open_safetensors(path: str | os.PathLike[str], framework: str, what: str = "") -> Iterator[Any]:
    """Open a file like `safe_open`; a ValueError in the block becomes a FileFormatError.

    Parameters
    ----------
    path : str or path-like
    framework : {"np", "pt"}
        Framework of the tensors.
    what : str
        Expected content, for the error message.

    Raises
    ------
    OSError
        If the file does not exist or may not be read (FileNotFoundError, PermissionError, ...).
    FileFormatError
        If it is damaged, or the block raised a ValueError.
    """
    path = Path(path)
    try:
        path.open("rb").close()  # for the system's error messages, better than those of safe_open
        with safe_open(path, framework=framework) as file:  # maps the file: a header's false claims cost no memory
            yield file
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path} is damaged, or no safetensors file ({one_line(error)}).") from error
    except ValueError as error:
        as_what = f" as {what}" if what else ""
        raise FileFormatError(f"{path} cannot be read{as_what}: {one_line(error)}.") from error


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
