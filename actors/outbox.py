"""How a worker's events reach the shards of the tree manager; nothing on the path of a token waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.deltas import Added, Batch, EventLog, Load, Pack, Released, Replica, Status
from actors.refs import shard_of, worker_name
from actors.topology import Changes, HeldTrees
from dendrite.errors import StaleEpoch
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

MAX_EVENTS = 256
"""Events that are packed at once, without waiting for more."""
MAX_DELAY_S = 0.005
"""How long an event waits for others to share its pack."""
MAX_QUEUED = 65_536
"""Events that wait for a shard that does not answer. Over that they are dropped, and a report takes their place."""
HEARTBEAT_S = 1.0
"""How often a worker writes to the shards if it has nothing to tell."""


class Receipt(NamedTuple):
    """A shard's answer to a batch. Where it is not `taken`, messages before it are missing: a report has to follow."""

    epoch: int
    taken: bool


class Courier:
    """Takes packs to one shard, in order, one message at a time.

    The shard's record must become what this one has in `held`. What can go wrong (the shard has restarted, a message
    was lost, too much waits) is all mended in the same way, by a report of everything instead of what has changed.
    """

    def __init__(
        self,
        worker: int,
        epoch: int,
        send: Callable[[Batch], Awaitable[Receipt]],
        status: Callable[[bool], Status] | None = None,
    ) -> None:
        """Make an idle courier; its first message will be a report.

        Args:
            worker: the worker's index.
            epoch: the worker's incarnation.
            send: delivers a message; one without `shard_epoch` is a report.
            status: what to tell besides, in a report or not.
        """
        self._worker, self._epoch, self._deliver, self._status = worker, epoch, send, status
        self.held = HeldTrees()
        self.shard_epoch = -1
        """The shard's incarnation that took this worker's last message, -1 before there is one."""
        self.reports = 0
        """Reports sent."""
        self._report_due = True
        self._number = 0
        self._queue: list[Pack] = []
        self._queued = 0
        self._sender: asyncio.Task[None] | None = None
        self._superseded = False

    def put(self, pack: Pack) -> Changes:
        """Take a pack, which may be empty, and send it in the background."""
        changes = self.held.apply(pack)
        self._queue.append(pack)
        self._queued += pack.events
        self._report_due |= self._queued > MAX_QUEUED
        if self._report_due:
            self._queue.clear()
            self._queued = 0
        if not self._superseded and (self._sender is None or self._sender.done()):
            self._sender = asyncio.get_running_loop().create_task(self._send_all())
        return changes

    async def delivered(self) -> None:
        """Return once all that was put has been sent, or a message could not be delivered."""
        if self._sender is not None:
            await asyncio.shield(self._sender)

    async def _send_all(self) -> None:
        while self._queue or self._report_due:
            try:
                await self._send()
            except StaleEpoch as error:
                self._report_due = True
                if error.process == worker_name(self._worker):
                    self._superseded = True
                    log_event(_log, logging.ERROR, {"event": "superseded", "worker": self._worker}, error)
                    return
            except Exception as error:
                self._report_due = True
                log_event(_log, logging.WARNING, {"event": "message_missed", "worker": self._worker}, error)
                return  # the next heartbeat tries again

    async def _send(self) -> None:
        packs, self._queue, self._queued = tuple(self._queue), [], 0
        report, self._report_due = self._report_due, False
        if report:
            self.reports += 1
            packs = (self.held.export(),)
        status = self._status(report) if self._status is not None else None
        number, self._number = self._number, self._number + 1
        to = None if report else self.shard_epoch
        receipt = await self._deliver(Batch(self._worker, self._epoch, to, number, packs, status))
        self.shard_epoch = receipt.epoch
        self._report_due |= not receipt.taken


class Outbox:
    """Gathers a worker's events, packs them for the shards of the tree manager, and hands them to couriers."""

    def __init__(
        self,
        worker: int,
        epoch: int,
        shards: Sequence[Callable[[Batch], Awaitable[Receipt]]],
        measure: Callable[[], Awaitable[Load]],
        expired: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        """Make an outbox that sends nothing until `start`.

        Args:
            worker: the worker's index.
            epoch: the worker's incarnation.
            shards: each delivers a message to a shard. The first also hears of the worker's load and its trees.
            measure: reads the worker's load.
            expired: the leases whose end the worker was told of.
        """
        self._worker = worker
        lead = Courier(worker, epoch, shards[0], self._take_status)
        self.couriers = (lead, *(Courier(worker, epoch, send) for send in shards[1:]))
        self.draining = False
        """Told with the load: whether the worker takes no more work."""
        self._logs = [EventLog() for _ in shards]
        self._measure, self._expired = measure, expired
        self._load = Load(0, 0)
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._replicas: dict[int, list[Replica]] = {}  # by tree, until it ends
        self._new_replicas: list[Replica] = []
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self._packing = asyncio.Lock()
        self._packer: asyncio.Task[None] | None = None

    @property
    def reports(self) -> int:
        """Reports sent to all shards."""
        return sum(courier.reports for courier in self.couriers)

    def start(self) -> None:
        """Begin to send: a report first, and then what happens. Needs a running event loop."""
        self._some.set()
        self._packer = asyncio.get_running_loop().create_task(self._pack_on())

    async def stop(self) -> None:
        """End the background task."""
        if self._packer is not None:
            self._packer.cancel()
            await asyncio.gather(self._packer, return_exceptions=True)

    def add(self, event: Added | Released) -> None:
        """Note an event; never waits."""
        log = self._logs[shard_of(event.tree, len(self._logs))]
        log.add(event)
        self._some.set()
        if log.events >= MAX_EVENTS:
            self._full.set()

    def add_replica(self, replica: Replica) -> None:
        """Note that a held node is a copy of another worker's, by its name there."""
        self._replicas.setdefault(replica.tree, []).append(replica)
        self._new_replicas.append(replica)
        self._some.set()

    async def flush(self) -> None:
        """Return once the manager has every event so far, and the worker's present load; or cannot be reached."""
        await self._pack()
        for courier in self.couriers:
            await courier.delivered()

    async def _pack_on(self) -> None:
        measured = True
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some.wait(), HEARTBEAT_S)
                await asyncio.wait_for(self._full.wait(), MAX_DELAY_S)
            try:
                await self._pack()
                measured = True
            except Exception as error:  # the engine's: whoever calls it next is told
                if measured:  # else it has been logged: it may go on for long
                    log_event(_log, logging.ERROR, {"event": "load_unknown", "worker": self._worker}, error)
                measured = False
                await asyncio.sleep(HEARTBEAT_S)

    async def _pack(self) -> None:
        async with self._packing:
            self._load = await self._measure()
            self._some.clear()
            self._full.clear()
            # The lead goes last: its status tells of the trees of all shards.
            for courier, log in reversed(list(zip(self.couriers, self._logs, strict=True))):
                begun, ended = courier.put(log.pack())
                self._begun.difference_update(ended)
                self._begun.update(begun)
                self._ended.difference_update(begun)
                self._ended.update(ended)
                for tree in ended:
                    self._replicas.pop(tree, None)

    def _take_status(self, report: bool) -> Status:
        begun, ended, replicas = self._begun, self._ended, self._new_replicas
        self._begun, self._ended, self._new_replicas = set(), set(), []
        if report:
            begun = {tree for courier in self.couriers for tree in courier.held.trees}
            replicas = [replica for replicas in self._replicas.values() for replica in replicas]
        expired = _ids(self._expired())
        return Status(self._load, self.draining, _ids(begun), _ids(ended), expired, tuple(replicas))


def _ids(ids: Sequence[int] | set[int]) -> NDArray[np.int64]:
    return np.array(sorted(ids), np.int64)
