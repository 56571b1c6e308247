"""Checks of the files that commands are to write, before work is done for them."""

from __future__ import annotations

from pathlib import Path

from dendrite.errors import InvalidArgument


def check_folder(field: str, file: Path) -> None:
    """Make sure that a file can be written where `field` says.

    Raises:
        InvalidArgument: there is no folder for it, or it is a folder itself.
    """
    if not file.parent.is_dir():
        raise InvalidArgument(field, str(file), f"there is no folder {file.parent}")
    if file.is_dir():
        raise InvalidArgument(field, str(file), "is a folder")
