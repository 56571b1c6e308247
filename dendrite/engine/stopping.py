"""Noticing a stop text while tokens arrive one by one."""

from __future__ import annotations

from typing import Protocol


class Detokenizer(Protocol):
    """Turns tokens into text as they come."""

    def push(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is still partial."""
        ...


class StopText:
    """Watches the text of one generation for any of a few strings, in O(new text + longest stop) a token."""

    def __init__(self, stops: tuple[str, ...], detokenizer: Detokenizer) -> None:
        self._stops = stops
        self._keep = max(map(len, stops)) - 1
        self._detokenizer = detokenizer
        self._tail = ""

    def push(self, token: int) -> bool:
        """Take one more token; True if it completes a stop text."""
        text = self._tail + self._detokenizer.push(token)
        self._tail = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stops)
