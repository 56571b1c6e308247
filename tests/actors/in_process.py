"""Actors without Ray: the same objects and messages, on the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from actors.cluster_client import ClusterClient
from actors.model_worker import ModelWorker
from actors.refs import ClusterNode, unique_id
from actors.tree_manager import TreeManager
from dendrite.config import EngineConfig, SamplingParams
from dendrite.search.backend import Branch

TTL_S = 60.0
_CONFIG = EngineConfig(device="cpu", kv_tokens=16_384)


_HANDLES: WeakValueDictionary[int, LocalHandle] = WeakValueDictionary()


class LocalHandle:
    """Stands for an actor's handle: `handle.method.remote(…)` starts the call and gives something to await."""

    def __init__(self, actor: object) -> None:
        self.actor = actor
        _HANDLES[id(self)] = self

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        """A handle that is sent stands for the same actor."""
        return _handle, (id(self),)

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self.actor, name))


def _handle(id: int) -> LocalHandle:
    return _HANDLES[id]


class _Method:
    def __init__(self, call: Any) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(self._call(*arguments))


class _ManagerHandle(LocalHandle):
    """Where a Ray actor would send its own handle, this one puts the worker's."""

    def __init__(self, manager: TreeManager) -> None:
        super().__init__(self)
        self.manager = manager
        self.worker: ModelWorker | None = None
        self.running = asyncio.Event()
        self.running.set()

    async def call(self, name: str, *arguments: Any) -> Any:
        await self.running.wait()
        if name == "report":
            return await self.manager.report(arguments[0], LocalHandle(self.worker))
        return await getattr(self.manager, name)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return _Method(functools.partial(self.call, name))


class Pair:
    """A manager and a worker, and what a client does: it makes ids under a lease."""

    def __init__(self, handle: _ManagerHandle, worker: ModelWorker, lease: int) -> None:
        self.handle, self.worker, self.lease = handle, worker, lease
        self._count = 0

    @property
    def manager(self) -> TreeManager:
        """The present incarnation."""
        return self.handle.manager

    def restart_manager(self, ttl_s: float = TTL_S) -> None:
        """Put another incarnation in its place, which knows nothing."""
        self.handle.manager = TreeManager(ttl_s, workers=1, epoch=self.manager._epoch + 1)

    def new_id(self) -> int:
        self._count += 1
        return unique_id(self.lease, self._count)

    async def prefill(self, prompt: str | Sequence[int]) -> ClusterNode:
        tree = self.new_id()
        await self.manager.place([tree])
        return await self.worker.prefill(self.new_id(), tree, prompt, None)

    async def expand(self, at: ClusterNode, n: int, params: SamplingParams) -> list[Branch]:
        return await self.worker.expand(self.new_id(), at.tree, at.node, n, params)


@contextlib.asynccontextmanager
async def pair(model: Path, *, max_calls: int = 64, config: EngineConfig = _CONFIG) -> AsyncIterator[Pair]:
    """Make a manager and a worker that has loaded the model and introduced itself."""
    handle = _ManagerHandle(TreeManager(TTL_S, workers=1, epoch=0))
    worker = ModelWorker(0, str(model), config, 1, lambda: [handle], max_calls)
    handle.worker = worker
    await worker.load()
    yield Pair(handle, worker, (await handle.manager.open_lease()).id)
    await worker._outbox.stop()
    await worker._engine.aclose()


@contextlib.asynccontextmanager
async def cluster_of(
    model: Path, *, workers: int, config: EngineConfig = _CONFIG
) -> AsyncIterator[tuple[LocalHandle, list[LocalHandle]]]:
    """Make a manager and workers that have loaded the model, and give their handles, for a client."""
    manager = TreeManager(TTL_S, workers=workers, epoch=0)
    made: list[ModelWorker] = []
    for index in range(workers):
        handle = _ManagerHandle(manager)
        handle.worker = worker = ModelWorker(index, str(model), config, 1, functools.partial(list, [handle]), 64)
        await worker.load()
        made.append(worker)
    yield handle, [LocalHandle(worker) for worker in made]
    for worker in made:
        await worker._outbox.stop()
        await worker._engine.aclose()


@contextlib.asynccontextmanager
async def lent(client: ClusterClient, manager: LocalHandle, lease: int) -> AsyncIterator[None]:
    """A client's life under its lease, after which two workers and their manager must have nothing left."""
    yield
    await client.settle()
    await manager.close_lease.remote(lease)
    await client.reclaim()
    stats = await client.manager_stats()
    assert (stats.trees, stats.records, stats.live_nodes) == (0, 0, (0, 0))
    assert [worker.engine.pages_held for worker in await client.worker_stats(fresh=True)] == [0, 0]
    await client.check()
