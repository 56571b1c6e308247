"""Work that goes on by itself, and whose errors do not get lost with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from actors.rpc import ActorLost
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")


class Background:
    """Work that nobody waits for now; `settle` does.

    An error ends its own work alone, and is logged; but not that an actor is lost, which is noticed where it matters.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin it on the running event loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def settle(self) -> None:
        """Return once all has ended."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ActorLost):
            log_event(_log, logging.WARNING, {"event": "background_failed", "kind": type(error).__name__}, error)
