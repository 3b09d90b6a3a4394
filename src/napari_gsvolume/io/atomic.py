"""Writing files in one step, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that takes the place of `path` at the end, unless something is raised.

    It lies in the same folder, which `os.replace` needs to be atomic, and has the same last suffix, as some libraries
    choose the compression by it. Unlike tempfile's, it gets the user's usual permissions.

    Raises
    ------
    OSError
        Whatever kind the body or the replacement raised, as one sentence that names file, folder and reason.
    """
    target = path.resolve()  # through a link, which os.replace would overwrite
    temporary = target.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"{path.name} cannot be written in the folder {target.parent}: {reason}.") from error
    finally:
        with suppress(OSError):  # it is gone after success, and never was in a folder that cannot be written to
            temporary.unlink()
