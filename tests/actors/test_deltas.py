from __future__ import annotations

import asyncio

from actors.deltas import MAX_EVENTS, Batch, Load, Outbox, Released


class Inbox:
    """The far end of an outbox: keeps what arrives, or refuses it."""

    def __init__(self, refuse: bool = False) -> None:
        self.batches: list[Batch] = []
        self.refuse = refuse
        self.load = Load(0, 0)
        self.outbox = Outbox(3, self.measure, self.receive)

    async def measure(self) -> Load:
        return self.load

    async def receive(self, batch: Batch) -> None:
        if self.refuse:
            raise ConnectionError("the manager is gone")
        self.batches.append(batch)

    @property
    def nodes(self) -> list[int]:
        return [event.node for batch in self.batches for event in batch.events]


async def test_events_close_in_time_share_a_message_in_order() -> None:
    inbox = Inbox()
    for node in range(40):
        inbox.outbox.add(Released(0, node))
    assert not inbox.batches
    await asyncio.sleep(0.2)
    assert inbox.nodes == list(range(40))
    assert len(inbox.batches) == 1
    assert inbox.batches[0].worker == 3


async def test_many_events_are_sent_without_waiting_for_more() -> None:
    inbox = Inbox()
    for node in range(MAX_EVENTS):
        inbox.outbox.add(Released(0, node))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inbox.nodes == list(range(MAX_EVENTS))


async def test_flush_delivers_everything_and_the_present_load() -> None:
    inbox = Inbox()
    inbox.outbox.add(Released(0, 1))
    inbox.load = Load(live_nodes=7, pages_held=11)
    await inbox.outbox.flush()
    assert inbox.nodes == [1]
    assert inbox.batches[-1].load == Load(7, 11)

    inbox.load = Load(0, 0)
    await inbox.outbox.flush()
    assert inbox.batches[-1] == Batch(3, (), Load(0, 0))


async def test_a_manager_that_is_gone_stops_nothing() -> None:
    inbox = Inbox(refuse=True)
    inbox.outbox.add(Released(0, 1))
    await inbox.outbox.flush()
    inbox.refuse = False
    inbox.outbox.add(Released(0, 2))
    await inbox.outbox.flush()
    assert inbox.nodes == [2]
