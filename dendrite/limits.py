"""The limits that arguments have again and again, each checked and told in one way."""

from __future__ import annotations

from dendrite.errors import InvalidArgument


def check_whole(field: str, value: object, least: int, most: int | None = None) -> None:
    """Refuse anything but an integer, a boolean included, from `least` to `most` (None: without end).

    Raises:
        InvalidArgument: names the field and the limit.
    """
    if not is_whole(value, least, most):
        limit = f"at least {least}" if most is None else f"{least} to {most}"
        raise InvalidArgument(field, value, f"must be a whole number, {limit}")


def is_whole(value: object, least: int, most: int | None = None) -> bool:
    """Whether this is an integer, not a boolean, from `least` to `most` (None: without end)."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value and (most is None or value <= most)


def check_positive_seconds(field: str, value: float) -> None:
    """Refuse a duration that is not above 0.

    Raises:
        InvalidArgument: names the field and the limit.
    """
    if not value > 0:
        raise InvalidArgument(field, value, "must be a positive number of seconds")
