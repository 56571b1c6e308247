"""The files that options name: what they hold, and whether they can be written, told before work is done for them."""

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


def read_text(field: str, file: Path) -> str:
    """The text of the file that `field` names.

    Raises:
        InvalidArgument: it cannot be read as UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(field, str(file), f"cannot be read: {error}") from error
