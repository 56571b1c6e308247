"""The actor that owns one engine and all that lives in it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.calls import RunningCalls
from actors.deltas import Added, Batch, Load, Outbox, Released
from actors.node_table import NodeTable
from actors.refs import ClusterNode, lease_of
from actors.rpc import Handle, call
from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine.stats import EngineStats
from dendrite.errors import Cancelled, InvalidArgument, LeaseExpired, NodeReleased
from dendrite.kv.node import Node
from dendrite.search.backend import Branch

T = TypeVar("T")

MAX_CHILDREN = 65_536
"""Most children of one `expand`, so that a slip of a caller cannot fill a worker with nodes."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker has done (`engine`), and what it holds for others. `in_flight` counts calls under way."""

    worker: int
    engine: EngineStats
    live_nodes: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """Sign of life of a worker whose engine answers between two steps."""

    worker: int
    pid: int
    threads: int
    seconds_up: float


class ModelWorker:
    """One engine behind messages. A Ray actor: its methods run on one event loop, the engine's steps on a thread.

    Concurrent calls join the engine's running batch. The worker decides alone what is held here; it tells the tree
    manager afterwards, in batches, and no call waits for that.
    """

    def __init__(self, index: int, model: str, config: EngineConfig, threads: int, manager: Handle) -> None:
        self._index, self._model, self._config, self._threads = index, model, config, threads
        self._manager = manager
        self._nodes = NodeTable()
        self._calls = RunningCalls()
        self._expired: set[int] = set()
        self._outbox = Outbox(index, self._load, self._report)
        self._began = time.monotonic()

    async def load(self) -> None:
        """Load the model. Apart from the constructor, so that a typed error reaches the caller.

        Raises:
            ModelError: the model cannot be loaded.
        """
        import torch  # here and below: a process that only names this class should not load torch

        from dendrite.engine.async_engine import AsyncEngine
        from dendrite.engine.engine import Engine

        torch.set_num_threads(self._threads)
        self._engine = AsyncEngine(Engine.from_pretrained(self._model, config=self._config), threaded=True)

    async def prefill(self, call_id: int, tree: int, prompt: str | Sequence[int], seed: int | None) -> ClusterNode:
        """Compute a prompt as the root of `tree`. The caller has made both ids under its lease.

        Raises:
            LeaseExpired: the lease has run out.
            Cancelled: by `cancel` with the id of this call, as in every method that takes one.
        """
        return await self._run(call_id, tree, self._prefill(tree, prompt, seed))

    async def expand(self, call_id: int, tree: int, node: int, n: int, params: SamplingParams) -> list[Branch]:
        """Fork a node `n` times and decode all children, in one message.

        Raises:
            Released: the node has been released, be it while its children were decoded.
            UnknownNode, LeaseExpired, InvalidArgument: nothing was done.
        """
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHILDREN:
            raise InvalidArgument("n", n, f"must be a whole number, 1 to {MAX_CHILDREN}")
        return await self._run(call_id, tree, self._grow(tree, node, lambda at: self._engine.expand(at, n, params)))

    async def append(self, call_id: int, tree: int, node: int, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork a node once a continuation and write it there. Raises what `expand` raises."""
        if not 1 <= len(continuations) <= MAX_CHILDREN:
            raise InvalidArgument("continuations", len(continuations), f"must be 1 to {MAX_CHILDREN} of them")
        grown = self._grow(tree, node, lambda parent: self._engine.append(parent, continuations))
        return await self._run(call_id, tree, grown)

    async def tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        """The token ids of a text, with those that begin a sequence if `special`."""
        return await self._engine.tokenize(text, special=special)

    async def score(self, call_id: int, tree: int, node: int, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` as a continuation of a node."""
        return await self._run(call_id, tree, self._engine.score(self._get(tree, node), tokens))

    async def value(self, call_id: int, tree: int, node: int) -> float | None:
        """The value head's estimate at a node, None without a value head."""
        return await self._run(call_id, tree, self._engine.value(self._get(tree, node)))

    async def cancel(self, call_id: int) -> None:
        """Cancel a call under way; what it was making is released."""
        self._calls.cancel(call_id)

    async def release(self, tree: int, node: int, subtree: bool) -> None:
        """Give a node up, with `subtree` all below it. Idempotent: a node that is not held is nothing to do."""
        await self._release([(tree, held) for held in self._nodes.pop(tree, node, subtree=subtree)], subtree)

    async def reclaim(self, lease: int, expired: bool) -> None:
        """Cancel what runs under a lease and release all that is held under it.

        With `expired`, later calls under the lease are refused: its holder may not know yet. Otherwise its holder
        has closed it, and makes no more.
        """
        if expired:
            self._expired.add(lease)
        await self._calls.cancel_lease(lease)
        await self._release(list(self._nodes.close(lease)), subtree=False)

    async def stats(self) -> WorkerStats:
        """Totals of the engine, and what is held here now."""
        engine = await self._engine.run(self._engine.engine.stats)
        return WorkerStats(self._index, engine, len(self._nodes), len(self._calls))

    async def health(self) -> WorkerHealth:
        """Return once the engine has been found between two steps."""
        await self._engine.run(lambda: None)
        return WorkerHealth(self._index, os.getpid(), self._threads, time.monotonic() - self._began)

    async def check(self) -> None:
        """Verify the engine's KV invariants.

        Raises:
            InvariantViolation: one does not hold.
        """
        await self._engine.run(self._engine.engine.check)

    async def flush(self) -> None:
        """Return once the tree manager knows all that has happened here."""
        await self._outbox.flush()

    # What a call does is one task, from the engine's work to the note of what it made, so that whoever cancels it and
    # waits for its end finds either nothing made or everything on record.

    async def _run(self, call_id: int, tree: int, work: Coroutine[Any, Any, T]) -> T:
        if lease_of(tree) in self._expired:
            work.close()
            raise LeaseExpired(tree)
        try:
            return await self._calls.run(call_id, work)
        except Cancelled:
            if lease_of(tree) in self._expired:
                raise LeaseExpired(tree) from None
            raise

    async def _prefill(self, tree: int, prompt: str | Sequence[int], seed: int | None) -> ClusterNode:
        root = await self._engine.prefill(prompt, seed=seed)
        self._nodes.add(tree, root)
        self._outbox.add(Added(tree, root.id, None, 0, tuple(root.path_tokens)))
        return ClusterNode(self._index, tree, root.id)

    async def _grow(self, tree: int, node: int, make: Callable[[Node], Awaitable[list[Branch]]]) -> list[Branch]:
        """Make children of a node, and put them on record."""
        parent = self._get(tree, node)
        try:
            branches = await make(parent)
        except NodeReleased:
            raise NodeReleased(tree, node) from None  # the engine has numbers of its own for trees
        children = [_node(branch) for branch in branches]
        if any(child.released for child in children):  # with the subtree of an ancestor, in the last step
            await self._engine.run(lambda: _release_all(children))
            raise Cancelled(f"the children of node {node} of tree {tree} were released while they were decoded")
        for child in children:
            self._nodes.add(tree, child)
            self._outbox.add(self._added(tree, parent, child))
        return [
            dataclasses.replace(branch, node=ClusterNode(self._index, tree, child.id), worker=self._index)
            for branch, child in zip(branches, children, strict=True)
        ]

    def _get(self, tree: int, node: int) -> Node:
        if lease_of(tree) in self._expired:
            raise LeaseExpired(tree)
        return self._nodes.get(tree, node)

    def _added(self, tree: int, parent: Node, child: Node) -> Added:
        """Describe a new child; by its whole path where its parent is not on record any more."""
        if (tree, parent.id) in self._nodes:
            return Added(tree, child.id, parent.id, child.base, tuple(child.tokens))
        return Added(tree, child.id, None, 0, tuple(child.path_tokens))

    async def _release(self, held: list[tuple[int, Node]], subtree: bool) -> None:
        for tree, node in held:
            self._outbox.add(Released(tree, node.id))
        await self._engine.run(lambda: _release_all([node for _, node in held], subtree))

    async def _load(self) -> Load:
        stats = await self.stats()
        return Load(stats.live_nodes, stats.engine.pages_held)

    async def _report(self, batch: Batch) -> None:
        await call(self._manager.apply.remote(batch), "the tree manager")


def _node(branch: Branch) -> Node:
    assert isinstance(branch.node, Node)
    return branch.node


def _release_all(nodes: Sequence[Node], subtree: bool = False) -> None:
    for node in nodes:
        node.release(subtree=subtree)
