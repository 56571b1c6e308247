"""A log of numbered events that readers follow, and come back to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Events with their ids, in order. After those of an `ended` page there are no more."""

    events: list[tuple[int, Event]] = field(default_factory=list)
    ended: bool = False


class EventLog:
    """Events of one stream, the first of which has the id 1. Kept whole, so that a reader may begin anywhere."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._ended = False
        self._news = asyncio.Event()

    def add(self, event: Event) -> None:
        """Append an event; its dictionary must not change after."""
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """No event will follow."""
        self._ended = True
        self._wake()

    def reopen(self) -> None:
        """Events will follow after all."""
        self._ended = False

    async def read(self, after: int, wait_s: float) -> Page:
        """The events after the one of id `after`; waits up to `wait_s` seconds for the first of them."""
        if len(self._events) <= after and not self._ended:
            try:
                await asyncio.wait_for(self._news.wait(), wait_s)
            except TimeoutError:
                return Page()
        new = self._events[after:]
        return Page(list(enumerate(new, after + 1)), self._ended)

    def _wake(self) -> None:
        self._news.set()  # all that wait now; whoever reads later waits for the next event
        self._news = asyncio.Event()
