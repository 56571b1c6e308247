"""Writing files so that what is in them is whole, also where the disk is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def append(file: int, data: bytes) -> None:
    """Write all of `data` at the end of a file that this process alone writes, or nothing of it.

    Args:
        file: descriptor, opened with O_APPEND.
        data: written by one call of the operating system, unless that takes a part only.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    written = 0
    try:
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError:
        with contextlib.suppress(OSError):  # what is no file, such as a pipe, keeps what it has got
            os.ftruncate(file, os.fstat(file).st_size - written)
        raise


def replace(path: Path, data: bytes) -> None:
    """Put a file of this content at `path` in one step, on the disk at the return.

    Raises:
        OSError: it cannot be written; at `path` is what was there, whole, or the new content.
    """
    beside = path.with_name(path.name + ".new")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    try:
        append(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name is the folder's content
    finally:
        os.close(folder)
