"""What a worker tells the tree manager, in batches that nothing on the path of a token waits for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

_log = logging.getLogger(__name__)

MAX_EVENTS = 256
"""Events that are sent at once, without waiting for more."""
MAX_DELAY_S = 0.005
"""How long an event waits for others to share its message."""


class Added(NamedTuple):
    """A node is now held.

    It continues the first `base` tokens of its parent's path with `tokens`. `parent` is None where `tokens` is
    the whole path: for a root, and for a child whose parent was released before the child was done.
    """

    tree: int
    node: int
    parent: int | None
    base: int
    tokens: tuple[int, ...]


class Released(NamedTuple):
    """The holder has given up a node. Its tokens are still lineage while it has children."""

    tree: int
    node: int


Event: TypeAlias = Added | Released


class Load(NamedTuple):
    """What a worker holds: nodes that nobody has released, and the KV pages that they own."""

    live_nodes: int
    pages_held: int


class Batch(NamedTuple):
    """Events of one worker in the order they happened, and what it held after the last of them."""

    worker: int
    events: tuple[Event, ...]
    load: Load


class Outbox:
    """Gathers a worker's events and sends them from a background task of the running event loop.

    `measure` reads the worker's load; `send` delivers one batch. A batch that cannot be delivered is dropped
    with a warning: the manager is a record of the workers, and a worker does not stop for its sake.
    """

    def __init__(
        self,
        worker: int,
        measure: Callable[[], Awaitable[Load]],
        send: Callable[[Batch], Awaitable[None]],
    ) -> None:
        self._worker, self._measure, self._send = worker, measure, send
        self._events: list[Event] = []
        self._full = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def add(self, event: Event) -> None:
        """Queue an event; never waits. Needs a running event loop."""
        self._events.append(event)
        if len(self._events) >= MAX_EVENTS:
            self._full.set()
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def flush(self) -> None:
        """Return once the manager has every event queued so far, and the worker's present load."""
        if self._sender is not None:
            self._full.set()
            await asyncio.shield(self._sender)
        await self._send_batch()

    async def _send_all(self) -> None:
        while self._events:
            if len(self._events) < MAX_EVENTS and not self._full.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), MAX_DELAY_S)
            self._full.clear()
            await self._send_batch()

    async def _send_batch(self) -> None:
        events, self._events = tuple(self._events), []
        try:
            await self._send(Batch(self._worker, events, await self._measure()))
        except Exception as error:
            lost = len(events)
            _log.warning("the tree manager missed %d events of worker %d: %s", lost, self._worker, error)
