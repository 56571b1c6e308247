"""Releases on their way to the workers: those of one moment go in one message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

from actors.fleet import Fleet
from actors.refs import worker_name
from actors.rpc import call


class Given(NamedTuple):
    """A node that its holder gives up, with `subtree` all below it too."""

    tree: int
    node: int
    subtree: bool = False


class ReleaseQueue:
    """Gathers what is released in one turn of the event loop, by worker: a search gives up many nodes at once."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._waiting: dict[tuple[asyncio.AbstractEventLoop, int], tuple[list[Given], asyncio.Task[None]]] = {}

    def send(self, worker: int, nodes: Sequence[Given]) -> Awaitable[None]:
        """Have a worker release nodes. They are on their way at once; to await the result is to wait until they are.

        Raises:
            ActorLost: when awaited: the worker is gone, with all that it held.
        """
        key = asyncio.get_running_loop(), worker
        if key not in self._waiting:
            self._waiting[key] = [], key[0].create_task(self._send(key))
        gathered, sending = self._waiting[key]
        gathered.extend(nodes)
        return asyncio.shield(sending)

    async def _send(self, key: tuple[asyncio.AbstractEventLoop, int]) -> None:
        nodes, _ = self._waiting.pop(key)
        reply = self._fleet.handle(key[1]).release.remote(nodes)
        await call(self._fleet.watch(key[1], reply), worker_name(key[1]))
