"""Nodes whose worker was lost, made again on another from their tokens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from actors.fleet import Fleet
from actors.lineage import Copy, Segment
from actors.refs import ClusterNode, worker_name
from actors.rpc import ActorLost
from dendrite.errors import ClusterError, DendriteError, UnknownNode, WorkerDraining
from dendrite.logs import log_event

LOST = (ActorLost, WorkerDraining)
"""What a call raises whose worker is gone with all that it held, or is going."""

_log = logging.getLogger("dendrite.cluster")


class RecoveryFailed(ClusterError):
    """Whatever was tried, the workers that it was tried on were lost: `tries` says how each one went."""

    def __init__(self, what: str, tries: Sequence[str]) -> None:
        self.what, self.tries = what, tuple(tries)
        super().__init__(f"{what} failed {len(self.tries)} times: {'; '.join(self.tries)}")


@dataclass(slots=True)
class RecoveryStats:
    """Totals: losses of a worker that were noticed, calls made again for it, nodes rebuilt, tokens computed for that.

    `searches` were started again since their driver was lost.
    """

    losses: int = 0
    recoveries: int = 0
    rebuilt_nodes: int = 0
    recomputed_tokens: int = 0
    searches: int = 0

    def __add__(self, other: RecoveryStats) -> RecoveryStats:
        sums = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        return RecoveryStats(**sums)


class Tries:
    """The tries of one call, each on a worker that was lost over it but the last."""

    def __init__(self, what: str, fleet: Fleet, stats: RecoveryStats) -> None:
        self._what, self._fleet, self._stats = what, fleet, stats
        self._lost: list[str] = []

    @property
    def left(self) -> bool:
        """Whether there may be another."""
        return len(self._lost) < self._fleet.options.attempts

    def lost(self, worker: int, epoch: int, error: DendriteError) -> None:
        """A worker has lost what it held at `epoch`, as the error says."""
        if self._fleet.lost(worker, epoch, error):
            self._stats.losses += 1
        self._stats.recoveries += 1
        forgotten = isinstance(error, UnknownNode)
        self._lost.append(f"{worker_name(worker)} has lost what it held" if forgotten else str(error))
        log_event(_log, logging.WARNING, {"event": "lost", "worker": worker}, self._lost[-1])

    def failed(self) -> RecoveryFailed:
        """The error that tells of all tries."""
        return RecoveryFailed(self._what, self._lost)


class Maker(Protocol):
    """How a node is made on a worker."""

    async def make_root(self, worker: int, tokens: tuple[int, ...], seed: int | None) -> ClusterNode:
        """Prefill a path as a tree of its own."""
        ...

    async def make_child(self, parent: ClusterNode, tokens: tuple[int, ...]) -> ClusterNode:
        """Write the tokens below a node."""
        ...

    async def move(
        self, worker: int, source: ClusterNode, start: int, end: int, parent: ClusterNode | None, seed: int | None
    ) -> ClusterNode:
        """Copy tokens `start` .. `end` - 1 of a path with their KV, below a node or as a tree of its own."""
        ...

    def add_replica(self, copy: ClusterNode, original: ClusterNode) -> None:
        """Have it on record, some time, that the one node is a copy of the other."""
        ...


class Rebuilder:
    """Makes copies of nodes on workers that have none, shared ancestors first and once for all that wait for them.

    An ancestor that nobody holds, and from which no two paths part, is not made a node of its own.
    """

    def __init__(self, fleet: Fleet, maker: Maker, stats: RecoveryStats, discard: Callable[[Copy], None]) -> None:
        """Make ready to rebuild.

        Args:
            fleet: the workers.
            maker: makes the nodes.
            stats: where to count.
            discard: has a copy released that nobody needs any more.
        """
        self._fleet, self._maker, self._stats, self._discard = fleet, maker, stats, discard
        self._under_way: dict[tuple[Segment, int], asyncio.Task[Copy]] = {}

    def copy_on(self, segment: Segment, worker: int) -> Copy | None:
        """The copy of a node that a worker holds, as far as is known."""
        epoch = self._fleet.epoch(worker)
        for copy in segment.copies:
            if copy.open and copy.at.worker == worker and copy.epoch == epoch:
                return copy
        return None

    def has(self, segment: Segment, worker: int) -> bool:
        """Whether a worker holds a copy, or is about to."""
        return (segment, worker) in self._under_way or self.copy_on(segment, worker) is not None

    def is_elsewhere(self, segment: Segment, worker: int) -> bool:
        """Whether any worker but this one holds a copy."""
        return any(other != worker and self.copy_on(segment, other) is not None for other in self._fleet.up)

    async def ensure(self, segment: Segment, worker: int, origin: Copy | None = None) -> Copy:
        """The copy of a node on a worker, made if need be: by moving the KV of `origin`, a copy elsewhere, if given.

        Raises:
            ActorLost, UnknownNode: the worker has been lost meanwhile, or has lost an ancestor.
            TransferFailed, KvNotComputed: `origin` is gone, or its KV.
            DendriteError: what a prefill raises.
        """
        found = self.copy_on(segment, worker)
        if found is not None:
            return found
        key = (segment, worker)
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._rebuild(segment, worker, origin))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Return once nothing is being rebuilt."""
        while self._under_way:
            await asyncio.wait(list(self._under_way.values()))

    def _ended(self, key: tuple[Segment, int], task: asyncio.Task[Copy]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen: whoever waited may have been cancelled

    async def _rebuild(self, segment: Segment, worker: int, origin: Copy | None) -> Copy:
        epoch = self._fleet.epoch(worker)
        tokens = segment.tokens
        above = segment.parent
        while above is not None and not above.is_anchor and not self.has(above, worker):
            tokens, above = above.tokens + tokens, above.parent
        if above is not None and tokens:
            parent = await self.ensure(above, worker, origin)
        else:
            parent, tokens = None, segment.path_tokens
        at = await self._make(segment, worker, tokens, parent, origin)
        copy = Copy(at, epoch, rebuilt=True)
        segment.copies.append(copy)
        self._maker.add_replica(at, segment.name)
        if origin is None:
            self._stats.rebuilt_nodes += 1
            self._stats.recomputed_tokens += len(tokens)
        event = "rebuilt" if origin is None else "moved"
        place = {"tree": segment.name.tree, "node": segment.name.node, "worker": worker, "tokens": len(tokens)}
        log_event(_log, logging.INFO, {"event": event, **place})
        if segment.gone:
            copy.open = False
            self._discard(copy)
        return copy

    async def _make(
        self, segment: Segment, worker: int, tokens: tuple[int, ...], parent: Copy | None, origin: Copy | None
    ) -> ClusterNode:
        """Make the last `tokens` of a segment's path a node."""
        seed = segment.path[0].seed if parent is None else None  # below a node, its tree's holds
        if origin is not None:
            end = len(segment.path_tokens)
            below = parent.at if parent is not None else None
            return await self._maker.move(worker, origin.at, end - len(tokens), end, below, seed)
        if parent is not None:
            return await self._maker.make_child(parent.at, tokens)
        return await self._maker.make_root(worker, tokens, seed)
