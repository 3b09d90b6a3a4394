"""Atomic writing of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that takes the place of `path` at the end, unless something is raised.

    The temporary file is in the same folder, which makes `os.replace` atomic, and has the same last suffix, which
    decides the compression in some libraries. Unlike tempfile's, it has the usual permissions of the user.

    Raises
    ------
    OSError
        If the body or the replacement raises one: an error of the same kind, with file, folder and reason.
    """
    target = path.resolve()  # os.replace would overwrite a link
    temporary = target.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"{path.name} cannot be written in the folder {target.parent}: {reason}.") from error
    finally:
        with suppress(OSError):  # it no longer exists after success
            temporary.unlink()
