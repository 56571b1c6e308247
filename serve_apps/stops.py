"""Ending a text before a stop, while it streams: what might begin one is held back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token with its natural-log probability, and the likeliest in its place if they were asked for."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of text and the tokens that it came from."""

    text: str
    tokens: tuple[Token, ...] = ()


class StopCutter:
    """Passes items on, whole, until a stop text is complete; that and what follows is left out.

    Of an item that the stop begins within, the text before it is passed on, with all tokens of the item: they have
    begun before the stop.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held: deque[Item] = deque()
        self._text = ""
        self.stopped = False
        """Whether a stop text has come."""

    def push(self, item: Item) -> list[Item]:
        """Take one more item; returns those that no stop can reach any more."""
        if self.stopped:
            return []
        if not self._stops:
            return [item]
        self._held.append(item)
        self._text += item.text
        found = [at for at in map(self._text.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._before(min(found))
        return self._release(len(self._text) - self._may_begin())

    def flush(self) -> list[Item]:
        """What is held back; no item will follow."""
        return [] if self.stopped else self._release(len(self._text))

    def _may_begin(self) -> int:
        """Length of the longest end of the text that a stop begins with."""
        longest = min(max(map(len, self._stops)) - 1, len(self._text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> list[Item]:
        """The held items that end within the first `length` characters."""
        released = []
        while self._held and len(self._held[0].text) <= length:
            item = self._held.popleft()
            length -= len(item.text)
            self._text = self._text[len(item.text) :]
            released.append(item)
        return released

    def _before(self, at: int) -> list[Item]:
        kept = self._release(at)
        at -= sum(len(item.text) for item in kept)
        if at > 0:
            kept.append(replace(self._held[0], text=self._held[0].text[:at]))
        self._held.clear()
        self._text = ""
        return kept
