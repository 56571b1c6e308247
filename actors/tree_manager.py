"""The cluster's memory: which worker holds which nodes, what tokens made them, and under whose lease."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actors.deltas import Added, Batch, Load
from actors.leases import Lease, LeaseBook
from actors.refs import lease_of
from actors.rpc import Handle, call
from actors.topology import Topology
from dendrite.errors import ClusterError, LeaseExpired


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """What the manager knows. `live_nodes` and `loads` have one entry for each worker.

    `live_nodes` is counted from the workers' events, `loads` is what the workers last measured themselves: they agree
    once the workers' outboxes are flushed. `records` includes released nodes kept as lineage of held ones.
    """

    leases: int
    trees: int
    records: int
    live_nodes: tuple[int, ...]
    loads: tuple[Load, ...]


class TreeManager:
    """Topology, placement and leases. A Ray actor; all of its methods run on one event loop.

    It follows the workers and never leads them: a worker alone decides what it holds, reports it in batches, and is
    told only to give up what an ended lease held.
    """

    def __init__(self, lease_ttl_s: float) -> None:
        self._leases = LeaseBook(lease_ttl_s)
        self._topology = Topology()
        self._workers: list[Handle] = []
        self._loads: list[Load] = []
        self._placed: dict[int, int] = {}
        self._trees_on: Counter[int] = Counter()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, workers: Sequence[Handle]) -> None:
        """Take charge of the workers' trees, and begin to look for leases that have run out."""
        self._workers = list(workers)
        self._loads = [Load(0, 0)] * len(workers)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def open_lease(self) -> Lease:
        """Grant a lease, to be renewed well within its time to live."""
        return self._leases.open(time.monotonic())

    async def renew(self, leases: Sequence[int]) -> list[int]:
        """Extend leases. Returns those that have ended."""
        return self._leases.renew(leases, time.monotonic())

    async def close_lease(self, lease: int) -> None:
        """End a lease. On return the workers have released all that was held under it."""
        if self._leases.close(lease):
            await self._reclaim(lease, expired=False)

    async def place(self, tree: int) -> int:
        """Choose the worker for a new tree: the one with the fewest trees, then the fewest pages held.

        Raises:
            LeaseExpired: the tree's lease is not open.
        """
        if lease_of(tree) not in self._leases:
            raise LeaseExpired(tree)
        worker = min(range(len(self._workers)), key=lambda w: (self._trees_on[w], self._loads[w].pages_held))
        self._placed[tree] = worker
        self._trees_on[worker] += 1
        return worker

    async def unplace(self, tree: int) -> None:
        """Take back a placement of which nothing came."""
        worker = self._placed.pop(tree, None)
        if worker is not None:
            self._trees_on[worker] -= 1

    async def apply(self, batch: Batch) -> None:
        """Record what a worker did."""
        for event in batch.events:
            if isinstance(event, Added):
                self._topology.add(batch.worker, event)
            elif self._topology.release(event.tree, event.node):
                await self.unplace(event.tree)
        self._loads[batch.worker] = batch.load

    async def lineage(self, tree: int, node: int) -> tuple[int, ...]:
        """All tokens from the root to the end of a node.

        Raises:
            UnknownNode: nothing is known of such a node, or not yet.
        """
        return self._topology.path_tokens(tree, node)

    async def stats(self) -> ManagerStats:
        """Counts of what is held now, as far as it has been reported."""
        return ManagerStats(
            leases=len(self._leases),
            trees=self._topology.trees,
            records=self._topology.records,
            live_nodes=tuple(self._topology.live_nodes(worker) for worker in range(len(self._workers))),
            loads=tuple(self._loads),
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._leases.ttl_s / 4)
            expired = self._leases.take_expired(time.monotonic())
            await asyncio.gather(*(self._reclaim(lease, expired=True) for lease in expired))

    async def _reclaim(self, lease: int, *, expired: bool) -> None:
        """Have the workers release what a lease held. Their own reports then clear the records."""
        trees = [tree for tree in self._placed if lease_of(tree) == lease]
        workers = {self._placed[tree] for tree in trees}
        for tree in trees:
            await self.unplace(tree)
        await asyncio.gather(*(self._reclaim_on(worker, lease, expired) for worker in workers))

    async def _reclaim_on(self, worker: int, lease: int, expired: bool) -> None:
        try:
            await call(self._workers[worker].reclaim.remote(lease, expired), f"worker {worker}")
        except ClusterError:
            self._topology.drop_worker(worker)
            self._loads[worker] = Load(0, 0)
