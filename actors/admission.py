"""How many calls a worker takes at once, and what the others are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from dendrite.errors import Overloaded, WorkerDraining

MAX_CALLS = 4_096
"""Calls under way in one worker, unless it is told otherwise."""
_MEMORY = 0.05  # weight of the newest call in the mean duration: the last twenty or so count
_SOONEST_S = 0.001


class Admission:
    """Refuses calls over a limit, with the time after which another try is likely to succeed."""

    def __init__(self, worker: int, limit: int) -> None:
        """Admit at most `limit` calls at once."""
        self._worker, self._limit = worker, limit
        self._under_way: Counter[int] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_s = 0.0
        self.refused = 0
        """Calls refused for the limit."""
        self.closed = False
        """Whether all calls are refused."""

    @property
    def leases(self) -> list[int]:
        """Leases under which calls are under way."""
        return list(self._under_way)

    def enter(self, lease: int) -> None:
        """Admit one more call.

        Raises:
            Overloaded: there are as many as there may be. By Little's law one ends every (mean duration / their
                number) seconds.
            WorkerDraining: no call is admitted any more.
        """
        if self.closed:
            raise WorkerDraining(self._worker)
        if self._under_way.total() >= self._limit:
            self.refused += 1
            raise Overloaded(self._worker, self._limit, max(_SOONEST_S, self._mean_s / self._limit))
        self._under_way[lease] += 1
        self._idle.clear()

    def leave(self, lease: int, duration_s: float) -> None:
        """Note that an admitted call has ended, and how long it took."""
        self._mean_s += (duration_s - self._mean_s) * (_MEMORY if self._mean_s else 1.0)
        self._under_way[lease] -= 1
        if not self._under_way[lease]:
            del self._under_way[lease]
        if not self._under_way:
            self._idle.set()

    def close(self) -> None:
        """Admit no more."""
        self.closed = True

    async def idle(self, timeout_s: float) -> bool:
        """Return whether every call has ended within the time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._under_way
