"""Workers for new trees, as the tree manager chooses them: who makes many trees has some chosen ahead of need."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from actors.worker_calls import WorkerCalls

_FRESH_S = 1.0
"""How long a choice holds: the load of workers changes."""
_ASKS_PER_S = 8
"""About how often a second the manager is asked by a client that makes more trees than that."""


class Place(NamedTuple):
    """A tree that is to be made, and where."""

    tree: int
    worker: int


class Places:
    """The places of one client. What it does not use stays on record, spread over the workers, until it asks again."""

    def __init__(self, calls: WorkerCalls, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls, self._manager, self._clock = calls, calls.manager, clock
        self._taken: deque[float] = deque()
        self._stock: deque[tuple[float, Place]] = deque()
        self._stocking = False

    async def take(self) -> Place:
        """A tree's id and the worker that the tree manager has chosen for it, which the fleet knows.

        Raises:
            LeaseExpired: the lease has ended.
        """
        now = self._clock()
        self._taken.append(now)
        while self._taken[0] < now - _FRESH_S:
            self._taken.popleft()
        stale = []
        while self._stock:
            until, place = self._stock.popleft()
            if now <= until:
                return place
            stale.append(place.tree)
        if stale:
            self.give_back(*stale)
        return await self._ask()

    def give_back(self, *trees: int) -> None:
        """Nothing has come of the places of these trees, or they are made elsewhere."""
        self._manager.unplace.remote(trees)

    async def _ask(self) -> Place:
        ahead = 0 if self._stocking else len(self._taken) // _ASKS_PER_S
        trees = [self._calls.new_id() for _ in range(1 + ahead)]
        if ahead:
            self._stocking = True
        try:
            workers: list[int] = await self._calls.ask_manager(lambda: self._manager.place.remote(trees))
            for worker in set(workers):
                await self._calls.meet(worker)
        except BaseException:
            self.give_back(*trees)
            raise
        finally:
            if ahead:
                self._stocking = False
        first, *others = map(Place, trees, workers)
        until = self._clock() + _FRESH_S
        self._stock.extend((until, place) for place in others)
        return first
