"""A shard of the tree manager: the record of those trees whose ids fall to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from actors.deltas import Batch
from actors.incarnation import incarnation
from actors.outbox import Receipt
from actors.refs import worker_name
from actors.topology import Topology
from dendrite.errors import StaleEpoch
from dendrite.logs import set_up_logs_from_environment


class Verdict(Enum):
    """What to do with a message."""

    NEW = "new"
    KNOWN = "known"
    """It came before, or one that makes up for it did: there is nothing to do."""
    GAP = "gap"
    """A message before it is missing; only a report helps."""


@dataclass(slots=True)
class _Sender:
    epoch: int
    next: int


class Ledger:
    """Which messages of each worker have been taken in."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        """The shard's incarnation."""
        self._senders: dict[int, _Sender] = {}

    def judge(self, batch: Batch) -> Verdict:
        """Say what to do with a message, and count it as taken in if it is new.

        Raises:
            StaleEpoch: it was meant for another incarnation of the shard, or is of a worker's that has been replaced.
        """
        if batch.shard_epoch not in (None, self.epoch):
            raise StaleEpoch("the tree manager", batch.shard_epoch, self.epoch)
        sender = self._senders.get(batch.worker)
        report = batch.shard_epoch is None
        if sender is not None and batch.epoch < sender.epoch:
            raise StaleEpoch(worker_name(batch.worker), batch.epoch, sender.epoch)
        if sender is not None and batch.epoch == sender.epoch:
            if batch.number < sender.next:
                return Verdict.KNOWN
            if batch.number > sender.next and not report:
                return Verdict.GAP
        elif not report:
            return Verdict.GAP
        self._senders[batch.worker] = _Sender(batch.epoch, batch.number + 1)
        return Verdict.NEW

    def forget(self, worker: int) -> None:
        """Have the worker report before anything else of it is taken in."""
        if worker in self._senders:
            self._senders[worker].next = -1


class ShardCounts(NamedTuple):
    """What a shard has on record: trees, nodes with those kept as lineage, and held nodes of each worker."""

    trees: int
    records: int
    live_nodes: tuple[int, ...]


class TreeShard:
    """Topology, node ownership and lineage. A Ray actor; all of its methods run on one event loop.

    It follows the workers and never leads them: a worker alone decides what it holds, and reports it in batches. One
    that restarts knows nothing; the workers' next messages are stale then, and they report all that they hold.
    """

    def __init__(self, epoch: int | None = None) -> None:
        """Begin without knowing anything; `epoch` is this incarnation, None for Ray's count."""
        set_up_logs_from_environment()
        self._epoch = incarnation() if epoch is None else epoch
        self._topology = Topology()
        self._ledger = Ledger(self._epoch)

    async def apply(self, batch: Batch) -> Receipt:
        """Take in a worker's message. Nothing changes if it was taken in before.

        Raises:
            StaleEpoch: it is for another incarnation of this shard, or from a worker that has been replaced.
        """
        return Receipt(self._epoch, self._take(batch) is not Verdict.GAP)

    async def lineage(self, tree: int, node: int) -> tuple[int, ...]:
        """All tokens from the root to the end of a node.

        Raises:
            UnknownNode: nothing is known of such a node, or not yet.
        """
        return self._topology.path_tokens(tree, node)

    async def holders(self, tree: int, node: int) -> tuple[int, ...]:
        """The workers that have a copy of a node: held, or for the sake of a descendant that they hold."""
        return self._topology.holders(tree, node)

    async def forget(self, worker: int) -> None:
        """Drop all that a dead worker held."""
        self._ledger.forget(worker)
        self._topology.drop_worker(worker)

    async def counts(self, workers: int) -> ShardCounts:
        """What is on record, of workers 0 to `workers` - 1."""
        live = tuple(self._topology.live_nodes(worker) for worker in range(workers))
        return ShardCounts(self._topology.trees, self._topology.records, live)

    async def epoch(self) -> int:
        """The shard's incarnation."""
        return self._epoch

    def _take(self, batch: Batch) -> Verdict:
        verdict = self._ledger.judge(batch)
        if verdict is Verdict.NEW:
            if batch.shard_epoch is None:
                self._topology.replace(batch.worker, batch.packs[0])
            else:
                for pack in batch.packs:
                    self._topology.apply(batch.worker, pack)
        return verdict
