"""The cluster's memory: which worker holds which nodes, what tokens made them, and under whose lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.background import Background
from actors.deltas import Batch, Load
from actors.leases import Lease, LeaseBook
from actors.metrics import Recorder
from actors.metrics_reporter import report_manager, report_on
from actors.outbox import HEARTBEAT_S, Receipt
from actors.peers import Peers
from actors.placement_book import PlacementBook
from actors.refs import lease_of, shard_of, worker_name
from actors.replica_book import ReplicaBook
from actors.rpc import Handle, call
from actors.tree_shard import ShardCounts, TreeShard, Verdict
from dendrite.errors import ClusterError, DendriteError, LeaseExpired, StaleEpoch
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

_SILENT_AFTER_S = 5 * HEARTBEAT_S
_REBUILT_WITHIN_S = 3 * HEARTBEAT_S
_WORKER_WITHIN_S = 60.0
_SHARD = "a shard of the tree manager"


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
    epoch: int = 0
    """How often the manager has been restarted."""


class TreeManager(TreeShard):
    """The first shard, which also has the leases and the placement of new trees. A Ray actor.

    Leases and placement lie on one shard, for placement has to see the load of all workers, and both are rare: once a
    tree, and four times a lease's time to live for all leases of a process together. What is frequent, the workers'
    events, is divided among the shards.

    A manager that has been restarted is rebuilt by the workers' reports, and for one time to live it takes in every
    lease that somebody renews or that a worker holds nodes of.
    """

    def __init__(self, lease_ttl_s: float, workers: int, shards: Peers = tuple, epoch: int | None = None) -> None:
        """Begin without knowing anything.

        Args:
            lease_ttl_s: how long a lease lasts without renewal.
            workers: how many workers there are at first; each introduces itself, and so does one that comes later.
            shards: gives all other shards, in order.
            epoch: this incarnation, None for Ray's count.
        """
        super().__init__(epoch)
        self._began = time.monotonic()
        self._leases = LeaseBook(lease_ttl_s, self._epoch, self._began)
        self._book = PlacementBook(_SILENT_AFTER_S)
        self._replicas = ReplicaBook()
        self._count, self._shards = workers, shards()
        self._introduced = asyncio.Condition()
        self._closing: set[int] = set()
        self._expiries = 0
        self._recorder = Recorder()
        self._background = Background()
        self._looking = False

    async def start(self) -> None:
        """Begin to look for leases that have run out. The first report does it too."""
        if not self._looking:
            self._looking = True
            self._background.start(self._sweep())
            self._background.start(report_on(self._report))

    async def open_lease(self) -> Lease:
        """Grant a lease, to be renewed well within its time to live."""
        return self._leases.open(time.monotonic())

    async def renew(self, leases: Sequence[int]) -> list[int]:
        """Extend leases. Returns those that have ended."""
        return self._leases.renew(leases, time.monotonic())

    async def close_lease(self, lease: int) -> None:
        """End a lease. On return the workers have released all that was held under it."""
        if self._leases.close(lease, time.monotonic()):
            self._closing.add(lease)
            try:
                await self._wait_for(self._count, self._began + _REBUILT_WITHIN_S)
                await self._reclaim(lease, expired=False)
            finally:
                self._closing.discard(lease)

    async def place(self, trees: Sequence[int]) -> list[int]:
        """Choose the workers for new trees of one lease: each time that with the fewest trees, then the fewest pages.

        Raises:
            LeaseExpired: the trees' lease is not open.
            ClusterError: no worker has introduced itself.
        """
        self._check_lease(trees[0])
        if not await self._wait_for(1, time.monotonic() + _WORKER_WITHIN_S):
            raise ClusterError(f"no worker has introduced itself to the tree manager within {_WORKER_WITHIN_S:g} s")
        self._check_lease(trees[0])  # which may have run out meanwhile
        now = time.monotonic()
        return [self._book.place(tree, now) for tree in trees]

    async def unplace(self, trees: Sequence[int]) -> None:
        """Take back placements of which nothing came."""
        for tree in trees:
            self._book.unplace(tree)

    async def handles(self, first: int, end: int) -> list[Handle | None]:
        """The actors of workers `first` to `end` - 1; None for one that has not introduced itself, or is retired."""
        return [self._book.handle(worker) if worker in self._book else None for worker in range(first, end)]

    async def retire(self, worker: int) -> None:
        """A worker has been taken away for good: forget it, and place nothing there."""
        if worker in self._book:
            await self._forget(worker)
            self._book.remove(worker)

    async def apply(self, batch: Batch) -> Receipt:
        """Take in a worker's message (see `TreeShard.apply`) with what it says of its load and its trees."""
        verdict = self._take(batch)
        if verdict is Verdict.NEW:
            self._hear(batch)
        return Receipt(self._epoch, verdict is not Verdict.GAP)

    async def report(self, batch: Batch, worker: Handle) -> Receipt:
        """Take in all that a worker holds, and the worker's own handle.

        Raises:
            StaleEpoch: it is from a worker that has been replaced.
        """
        if self._take(batch) is Verdict.NEW:
            await self.start()
            self._book.introduce(batch.worker, worker)
            self._replicas.forget(batch.worker)
            self._count = max(self._count, batch.worker + 1)
            self._hear(batch)
            async with self._introduced:
                self._introduced.notify_all()
        return Receipt(self._epoch, True)

    async def lineage(self, tree: int, node: int) -> tuple[int, ...]:
        """All tokens from the root to the end of a node, from whichever shard has them.

        Raises:
            UnknownNode: nothing is known of such a node, or not yet.
        """
        shard = self._shard(tree)
        if shard is None:
            return await super().lineage(tree, node)
        tokens: tuple[int, ...] = await call(shard.lineage.remote(tree, node), _SHARD)
        return tokens

    async def holders(self, tree: int, node: int) -> tuple[int, ...]:
        """The workers that have a node, or a copy of it under another name, from whichever shards know."""
        names = [(tree, node), *self._replicas.copies(tree, node)]
        found = await asyncio.gather(*(self._holders(*name) for name in names))
        return tuple(sorted({worker for workers in found for worker in workers}))

    async def _holders(self, tree: int, node: int) -> tuple[int, ...]:
        shard = self._shard(tree)
        if shard is None:
            return await super().holders(tree, node)
        workers: tuple[int, ...] = await call(shard.holders.remote(tree, node), _SHARD)
        return workers

    async def stats(self) -> ManagerStats:
        """Counts of what is held now, as far as it has been reported, over all shards."""
        count = self._count  # another worker may come while the shards count
        replies = [shard.counts.remote(count) for shard in self._shards]
        parts: list[ShardCounts] = [await call(reply, _SHARD) for reply in replies]
        parts.append(await self.counts(count))
        return ManagerStats(
            leases=len(self._leases),
            trees=sum(part.trees for part in parts),
            records=sum(part.records for part in parts),
            live_nodes=tuple(sum(live) for live in zip(*(part.live_nodes for part in parts), strict=True)),
            loads=tuple(self._book.load(worker) for worker in range(count)),
            epoch=self._epoch,
        )

    def _check_lease(self, tree: int) -> None:
        if not self._leases.hear_of(lease_of(tree), time.monotonic()):
            raise LeaseExpired(tree)

    def _shard(self, tree: int) -> Handle | None:
        """The other shard that has a tree; None if it is this one."""
        index = shard_of(tree, len(self._shards) + 1)
        return self._shards[index - 1] if index else None

    def _hear(self, batch: Batch) -> None:
        """Note a worker's status. Leases that are over, of which it holds something all the same, are reclaimed."""
        status = batch.status
        if status is None:
            return
        now = time.monotonic()
        for lease in status.expired.tolist() if self._leases.in_grace(now) else ():
            self._leases.close(lease, now)
        self._book.hear(batch.worker, status, now)
        self._replicas.hear(batch.worker, status)
        for lease in {lease_of(tree) for tree in status.begun.tolist()}:
            if not self._leases.hear_of(lease, now) and lease not in self._closing:
                self._background.start(self._reclaim(lease, expired=True))

    async def _wait_for(self, workers: int, deadline: float) -> bool:
        """Return once so many workers have introduced themselves, which they all do after a restart."""
        if len(self._book) < workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline - time.monotonic()), self._introduced:
                    await self._introduced.wait_for(lambda: len(self._book) >= workers)
        return len(self._book) >= workers

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._leases.ttl_s / 4)
            expired = self._leases.take_expired(time.monotonic())
            self._expiries += len(expired)
            for lease in expired:  # a worker that does not answer holds up its own lease only
                self._background.start(self._reclaim(lease, expired=True))

    async def _report(self) -> None:
        report_manager(self._recorder, leases=len(self._leases), expiries=self._expiries, restarts=self._epoch)

    async def _reclaim(self, lease: int, *, expired: bool) -> None:
        """Have the workers release what a lease held. Their own reports then clear the records."""
        while workers := self._book.end(lease):  # others may turn out to hold something in the meantime
            await asyncio.gather(*(self._reclaim_on(worker, lease, expired) for worker in workers))

    async def _reclaim_on(self, worker: int, lease: int, expired: bool) -> None:
        if worker not in self._book:
            return  # retired meanwhile
        try:
            await call(self._book.handle(worker).reclaim.remote(lease, expired, self._epoch), worker_name(worker))
        except StaleEpoch:
            pass  # this manager has been replaced
        except DendriteError as error:  # it is dead, or its engine has failed: if it lives, it reports anew
            log_event(_log, logging.WARNING, {"event": "reclaim_failed", "worker": worker, "lease": lease}, error)
            await self._forget(worker)

    async def _forget(self, worker: int) -> None:
        self._book.forget(worker)
        self._replicas.forget(worker)
        await self.forget(worker)
        replies = [shard.forget.remote(worker) for shard in self._shards]
        await asyncio.gather(*(call(reply, _SHARD) for reply in replies))
