"""The `Backend` verbs over a cluster's actors."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ray import ObjectRef

from actors.calls import CancellableCalls
from actors.model_worker import WorkerHealth, WorkerStats
from actors.refs import ClusterNode, unique_id
from actors.rpc import Handle, call
from actors.tree_manager import ManagerStats
from dendrite.config import SamplingParams
from dendrite.errors import InvalidArgument
from dendrite.search.backend import BackendStats, Branch, NodeRef

T = TypeVar("T")

MANAGER = "the tree manager"


class ClusterClient:
    """Prefill, expand, score and release on the workers of a cluster, under one lease.

    Implements `dendrite.search.backend.Backend`; its node references are `ClusterNode`s. A new prompt goes to the
    worker with the fewest trees; children are made where their parent's KV lies. May be used from several event
    loops, one after the other.
    """

    def __init__(self, manager: Handle, workers: Sequence[Handle], lease: int) -> None:
        self._manager, self._workers, self._lease = manager, tuple(workers), lease
        self._count = itertools.count()
        self._calls = CancellableCalls()

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`. All workers have one tokenizer."""
        tokens: tuple[int, ...] = await call(self._workers[0].tokenize.remote(text, special), _name(0))
        return tokens

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> ClusterNode:
        """Compute a prompt on the least loaded worker and return its root."""
        tree, call_id = self._new_id(), self._new_id()
        try:
            worker: int = await call(self._manager.place.remote(tree), MANAGER)
            reply = self._workers[worker].prefill.remote(call_id, tree, prompt, seed)
            return await self._cancellable(worker, call_id, reply, undo=self.release)
        except BaseException:
            self._manager.unplace.remote(tree)
            raise

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        """Fork `node` n times and decode all children, in one message. Cancelling the awaiting task releases them."""
        at, call_id = self._known(node), self._new_id()
        reply = self._workers[at.worker].expand.remote(call_id, at.tree, at.node, n, params)
        return await self._cancellable(at.worker, call_id, reply, undo=self._release_branches)

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork `node` once a continuation and write it there. Cancelling the awaiting task releases the children."""
        at, call_id = self._known(node), self._new_id()
        reply = self._workers[at.worker].append.remote(call_id, at.tree, at.node, continuations)
        return await self._cancellable(at.worker, call_id, reply, undo=self._release_branches)

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` as a continuation of `node`."""
        at, call_id = self._known(node), self._new_id()
        reply = self._workers[at.worker].score.remote(call_id, at.tree, at.node, tokens)
        return await self._cancellable(at.worker, call_id, reply)

    async def value(self, node: NodeRef) -> float | None:
        """The value head's estimate at `node`, None without a value head."""
        at, call_id = self._known(node), self._new_id()
        reply = self._workers[at.worker].value.remote(call_id, at.tree, at.node)
        return await self._cancellable(at.worker, call_id, reply)

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """Give the node up (and all below it); idempotent."""
        at = self._known(node)
        await call(self._workers[at.worker].release.remote(at.tree, at.node, subtree), _name(at.worker))

    async def stats(self) -> BackendStats:
        """Totals over the workers."""
        return _total(await self.worker_stats())

    async def worker_stats(self) -> list[WorkerStats]:
        """What each worker has done, and holds."""
        return await self._ask_all("stats")

    async def health(self) -> list[WorkerHealth]:
        """Signs of life of all workers.

        Raises:
            ClusterError: a worker is not alive.
        """
        return await self._ask_all("health")

    async def manager_stats(self) -> ManagerStats:
        """What the tree manager knows, once it has heard of all that has happened on the workers."""
        await self._ask_all("flush")
        stats: ManagerStats = await call(self._manager.stats.remote(), MANAGER)
        return stats

    async def lineage(self, node: NodeRef) -> tuple[int, ...]:
        """All tokens from the root to the end of `node`, as the tree manager has them on record.

        Raises:
            UnknownNode: the manager has not heard of the node, or it is released and nothing held descends from it.
        """
        at = self._known(node)
        tokens: tuple[int, ...] = await call(self._manager.lineage.remote(at.tree, at.node), MANAGER)
        return tokens

    async def check(self) -> None:
        """Verify the KV invariants of all workers.

        Raises:
            InvariantViolation: one does not hold.
        """
        await self._ask_all("check")

    async def settle(self) -> None:
        """Return once calls that were cancelled have left nothing behind."""
        await self._calls.settle()

    def _new_id(self) -> int:
        return unique_id(self._lease, next(self._count))

    def _known(self, node: NodeRef) -> ClusterNode:
        if not isinstance(node, ClusterNode) or not 0 <= node.worker < len(self._workers):
            raise InvalidArgument("node", node, "must be a node of this cluster")
        return node

    async def _cancellable(
        self,
        worker: int,
        call_id: int,
        reply: ObjectRef[T],
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        def cancel() -> None:
            self._workers[worker].cancel.remote(call_id)

        return await self._calls.call(reply, _name(worker), cancel=cancel, undo=undo)

    async def _release_branches(self, branches: list[Branch]) -> None:
        await asyncio.gather(*(self.release(branch.node) for branch in branches))

    async def _ask_all(self, method: str) -> list[Any]:
        replies = [getattr(worker, method).remote() for worker in self._workers]
        calls = (call(reply, _name(index)) for index, reply in enumerate(replies))
        return list(await asyncio.gather(*calls))


def _name(worker: int) -> str:
    return f"worker {worker}"


def _total(workers: Sequence[WorkerStats]) -> BackendStats:
    engines = [worker.engine for worker in workers]
    decoded = sum(engine.decode_tokens for engine in engines)
    shared = sum(engine.shared_ratio * engine.decode_tokens for engine in engines)
    return BackendStats(
        prefill_tokens=sum(engine.prefill_tokens for engine in engines),
        recomputed_tokens=sum(engine.recomputed_tokens for engine in engines),
        decode_tokens=decoded,
        cached_tokens=sum(engine.cached_tokens for engine in engines),
        forks=sum(engine.forks for engine in engines),
        pages_held=sum(engine.pages_held for engine in engines),
        shared_ratio=shared / decoded if decoded else 0.0,
        page_tokens=engines[0].page_tokens,
        page_bytes=engines[0].page_bytes,
    )
