"""How nodes come to be on workers: a prompt as a new tree where it is best, tokens below a node that is there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from actors.kv_transfer import Arrival, KvSource
from actors.places import Places
from actors.recovery import LOST, RecoveryStats, Tries
from actors.refs import ClusterNode
from actors.routing import Router
from actors.worker_calls import WorkerCalls
from dendrite.search.backend import Branch


class NodeMaker:
    """Makes nodes, measures how fast that goes, and remembers where the tree manager was not followed."""

    def __init__(self, calls: WorkerCalls, router: Router, recovery: RecoveryStats) -> None:
        self._calls, self._fleet = calls, calls.fleet
        self._router, self._recovery = router, recovery
        self._places = Places(calls)
        self._strayed: set[int] = set()

    async def prefill(self, tokens: Sequence[int], seed: int | None) -> tuple[ClusterNode, int]:
        """Compute a prompt on the worker that has most of it cached, or else on the least loaded.

        Returns the root, and the worker's epoch.

        Raises:
            RecoveryFailed: as many workers as `attempts` allows were lost over it.
        """
        tries = Tries("prefill", self._fleet, self._recovery)
        while tries.left:
            tree, suggested = await self._places.take()
            try:
                await self._fleet.alive()
                worker = self._router.for_prompt(tree, _comparable(tokens), suggested)
                if worker != suggested:
                    self._stray(tree, worker)
                epoch = self._fleet.epoch(worker)
                root = await self._prefill_on(worker, tree, tokens, seed)
            except LOST as error:
                self._places.give_back(tree)
                tries.lost(worker, epoch, error)
            except BaseException:
                self._places.give_back(tree)
                raise
            else:
                self._router.prompts.note(tokens, worker, epoch)
                return root, epoch
        raise tries.failed()

    async def append(self, at: ClusterNode, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Write continuations below a node, one a child."""
        branches: list[Branch] = await self._calls.send(
            at.worker, "append", at.tree, at.node, continuations, undo=self._calls.take_back
        )
        return branches

    async def make_root(self, worker: int, tokens: tuple[int, ...], seed: int | None) -> ClusterNode:
        """Prefill a path on a worker as a tree of its own."""
        async with self._tree_on(worker) as tree:
            return await self._prefill_on(worker, tree, tokens, seed)

    async def make_child(self, parent: ClusterNode, tokens: tuple[int, ...]) -> ClusterNode:
        """Write tokens below a node."""
        began = time.monotonic()
        [branch] = await self.append(parent, [tokens])
        self._fleet.rates(parent.worker).prefilled(time.monotonic() - began, len(tokens))
        assert isinstance(branch.node, ClusterNode)
        return branch.node

    async def move(
        self, worker: int, source: ClusterNode, start: int, end: int, parent: ClusterNode | None, seed: int | None
    ) -> ClusterNode:
        """Copy tokens `start` .. `end` - 1 of a path with their KV to a worker, below a node there or as a tree.

        Raises:
            TransferFailed, OutOfPages, KvNotComputed, KvFormatMismatch: nothing was made.
        """
        kv = KvSource(self._fleet.handle(source.worker), source, start, end)
        if parent is not None:
            return await self._import(worker, parent.tree, parent.node, kv, seed)
        async with self._tree_on(worker) as tree:
            return await self._import(worker, tree, None, kv, seed)

    async def _import(self, worker: int, tree: int, parent: int | None, kv: KvSource, seed: int | None) -> ClusterNode:
        began = time.monotonic()
        arrival: Arrival = await self._calls.send(worker, "import_kv", tree, parent, kv, seed, undo=self._turn_away)
        self._router.replicator.moved(kv.at.worker, arrival, time.monotonic() - began)
        return arrival.at

    async def _turn_away(self, arrival: Arrival) -> None:
        await self._calls.give_up(arrival.at)

    def add_replica(self, copy: ClusterNode, original: ClusterNode) -> None:
        """Have it on record, some time, that the one node is a copy of the other."""
        self._calls.add_replica(copy, original)

    async def reclaim(self) -> None:
        """Have what is held under the lease released where the tree manager may not know of it."""
        await asyncio.gather(*(self._calls.reclaim(worker) for worker in sorted(self._strayed)))
        self._strayed.clear()

    async def _prefill_on(self, worker: int, tree: int, tokens: Sequence[int], seed: int | None) -> ClusterNode:
        cached = self._router.prompts.match(_comparable(tokens), worker, self._fleet.epoch(worker))
        began = time.monotonic()
        root: ClusterNode = await self._calls.send(worker, "prefill", tree, tokens, seed, undo=self._calls.give_up)
        if not cached:
            self._fleet.rates(worker).prefilled(time.monotonic() - began, len(tokens))
        return root

    @contextlib.asynccontextmanager
    async def _tree_on(self, worker: int) -> AsyncIterator[int]:
        """A new tree on a worker, wherever the tree manager would have put it; taken back if nothing comes of it."""
        tree, suggested = await self._places.take()
        if suggested != worker:
            self._stray(tree, worker)
        try:
            yield tree
        except BaseException:
            self._places.give_back(tree)
            raise

    def _stray(self, tree: int, worker: int) -> None:
        """Put a tree where the tree manager did not place it."""
        self._places.give_back(tree)
        self._strayed.add(worker)


def _comparable(tokens: Sequence[int]) -> tuple[int, ...]:
    """Tokens to find a cached prefix by; none where they are no tokens, which the worker is left to say."""
    if isinstance(tokens, Sequence) and all(isinstance(token, int) for token in tokens):
        return tuple(tokens)
    return ()
