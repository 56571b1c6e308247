"""An outbox with the real far end: the ledger and topology of a shard that can be stopped, cut off and restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

import actors.outbox
from actors.deltas import Added, Batch, Load, Released, Replica
from actors.outbox import MAX_EVENTS, Outbox, Receipt
from actors.tree_shard import TreeShard


class Line:
    """Between a worker and a shard: notes what passes, and breaks when told to."""

    def __init__(self) -> None:
        self.shard = TreeShard()
        self.batches: list[Batch] = []
        self.broken = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def send(self, batch: Batch) -> Receipt:
        self.batches.append(batch)
        await self.answers.wait()
        if self.broken:
            raise ConnectionError("the manager is gone")
        return await self.shard.apply(batch)

    def restart(self) -> None:
        epoch = self.shard._epoch + 1
        self.shard = TreeShard(epoch)

    @property
    def reports(self) -> int:
        return sum(batch.shard_epoch is None for batch in self.batches)

    async def live(self) -> int:
        return (await self.shard.counts(4)).live_nodes[3]


class Ends:
    """An outbox and the shards that it writes to."""

    def __init__(self, shards: int = 1, epoch: int = 0) -> None:
        self.lines = [Line() for _ in range(shards)]
        self.load = Load(0, 0)
        self.outbox = self.make(epoch)

    def make(self, epoch: int) -> Outbox:
        return Outbox(3, epoch, [line.send for line in self.lines], self.measure)

    async def measure(self) -> Load:
        return self.load

    def add(self, *nodes: int) -> None:
        for node in nodes:
            self.outbox.add(Added(5, node, None, 0, (node, 1)))


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    made.outbox.start()
    await made.outbox.flush()
    made.lines[0].batches.clear()
    yield made
    await made.outbox.stop()


async def test_events_close_in_time_share_a_message_in_order(ends: Ends) -> None:
    ends.add(*range(40))
    [line] = ends.lines
    assert not line.batches
    await asyncio.sleep(0.2)
    [batch] = line.batches
    assert batch.packs[0].added["node"].tolist() == list(range(40))
    assert (batch.worker, await line.live()) == (3, 40)


async def test_many_events_are_sent_without_waiting_for_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.outbox, "MAX_DELAY_S", 30.0)
    ends.add(*range(MAX_EVENTS - 1))
    await asyncio.sleep(0.1)
    assert await ends.lines[0].live() == 0
    ends.add(MAX_EVENTS)
    await asyncio.sleep(0.1)
    assert await ends.lines[0].live() == MAX_EVENTS


async def test_flush_delivers_everything_and_the_present_load(ends: Ends) -> None:
    ends.add(1)
    ends.load = Load(live_nodes=7, pages_held=11)
    await ends.outbox.flush()
    [line] = ends.lines
    status = line.batches[-1].status
    assert status is not None
    assert (await line.live(), status.load, status.begun.tolist()) == (1, Load(7, 11), [5])

    ends.load = Load(0, 0)
    ends.outbox.add(Released(5, 1))
    await ends.outbox.flush()
    status = line.batches[-1].status
    assert status is not None
    assert (await line.live(), status.load, status.ended.tolist()) == (0, Load(0, 0), [5])
    assert line.reports == 0


async def test_an_idle_worker_is_heard_of(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.outbox, "HEARTBEAT_S", 0.02)
    ends.add(1)
    await asyncio.sleep(0.3)
    assert len(ends.lines[0].batches) > 3


async def test_after_a_lost_message_everything_is_reported(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    [line] = ends.lines
    ends.add(1)
    line.broken = True
    with caplog.at_level(logging.WARNING):
        await ends.outbox.flush()
    assert caplog.messages == ["event=message_missed worker=3: the manager is gone"]
    line.broken = False
    ends.add(2)
    await ends.outbox.flush()
    assert (await line.live(), line.reports) == (2, 1)
    ends.outbox.add(Released(5, 1))
    await ends.outbox.flush()
    assert (await line.live(), line.reports) == (1, 1)


async def test_a_restarted_shard_is_told_everything(ends: Ends) -> None:
    [line] = ends.lines
    ends.add(1, 2)
    await ends.outbox.flush()
    line.restart()
    ends.outbox.add(Released(5, 1))
    await ends.outbox.flush()
    assert (await line.live(), line.reports) == (1, 1)
    assert await line.shard.lineage(5, 2) == (2, 1)


async def test_what_waits_for_a_shard_is_bounded(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.outbox, "MAX_QUEUED", 50)
    [line] = ends.lines
    line.answers.clear()
    for first in range(0, 200, 20):
        ends.add(*range(first, first + 20))
        await asyncio.sleep(0.02)
    [courier] = ends.outbox.couriers
    assert courier._queued <= 50
    line.answers.set()
    await ends.outbox.flush()
    assert (await line.live(), line.reports) == (200, 1)


async def test_a_report_under_way_misses_nothing_that_happens_meanwhile(ends: Ends) -> None:
    [line] = ends.lines
    line.restart()
    ends.add(1)
    await ends.outbox.flush()
    line.restart()
    line.answers.clear()
    for node in range(2, 8):
        ends.add(node)
        await asyncio.sleep(0.01)
    line.answers.set()
    await ends.outbox.flush()
    assert await line.live() == 7


async def test_a_load_that_cannot_be_measured_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("actors.outbox.HEARTBEAT_S", 0.001)
    ends, tries, enough = Ends(), 0, asyncio.Event()

    async def fail() -> Load:
        nonlocal tries
        tries += 1
        if tries > 5:
            enough.set()
        raise ValueError("the engine has failed")

    ends.measure = fail  # type: ignore[method-assign]
    outbox = ends.make(0)
    outbox.start()
    async with asyncio.timeout(30):
        await enough.wait()
    await outbox.stop()
    assert caplog.messages == ["event=load_unknown worker=3: the engine has failed"]


async def test_a_replaced_worker_falls_silent(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    [line] = ends.lines
    ends.add(1)
    await ends.outbox.flush()
    successor = ends.make(epoch=1)
    successor.start()
    await successor.flush()
    assert await line.live() == 0
    ends.add(2)
    await ends.outbox.flush()
    assert any(message.startswith("event=superseded worker=3: ") for message in caplog.messages)
    sent = len(line.batches)
    ends.add(3)
    await ends.outbox.flush()
    assert (await line.live(), len(line.batches)) == (0, sent)
    await successor.stop()


async def test_each_tree_goes_to_its_shard_and_the_first_hears_of_all() -> None:
    ends = Ends(shards=3)
    ends.outbox.start()
    for tree in range(60):
        ends.outbox.add(Added(tree << 32, 0, None, 0, (1,)))
    await ends.outbox.flush()
    live = [await line.live() for line in ends.lines]
    assert sum(live) == 60
    assert min(live) > 5
    first = ends.lines[0].batches[-1].status
    assert first is not None
    assert sorted(tree >> 32 for tree in first.begun.tolist()) == list(range(60))
    assert all(batch.status is None for line in ends.lines[1:] for batch in line.batches)
    await ends.outbox.stop()


async def test_replicas_are_told_once_in_reports_again_and_not_after_their_tree(ends: Ends) -> None:
    def told() -> list[list[tuple[int, ...]]]:
        return [list(batch.status.replicas) for batch in line.batches if batch.status is not None]

    [line] = ends.lines
    ends.add(1, 2)
    ends.outbox.add_replica(Replica(5, 1, 70, 3))
    await ends.outbox.flush()
    ends.outbox.add_replica(Replica(5, 2, 70, 4))
    await ends.outbox.flush()
    await ends.outbox.flush()
    assert [rows for rows in told() if rows] == [[(5, 1, 70, 3)], [(5, 2, 70, 4)]]
    line.batches.clear()
    line.restart()
    await ends.outbox.flush()
    assert told()[-1] == [(5, 1, 70, 3), (5, 2, 70, 4)]
    for node in (1, 2):
        ends.outbox.add(Released(5, node))
    await ends.outbox.flush()
    line.batches.clear()
    line.restart()
    await ends.outbox.flush()
    assert told()[-1] == []
