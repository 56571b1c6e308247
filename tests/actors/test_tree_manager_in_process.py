"""What a tree manager does while somebody else is slow, wrong, or new: without Ray, with workers that only answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from actors.deltas import NO_EVENTS, Batch, Load, Status
from actors.refs import unique_id
from actors.tree_manager import TreeManager
from actors.tree_shard import ShardCounts, TreeShard
from dendrite.errors import InvariantViolation, LeaseExpired
from tests.actors.in_process import LocalHandle

TTL_S = 0.2
NONE = np.zeros(0, np.int64)


class Worker:
    """Notes the leases that it is asked to reclaim; it may fail, or never answer."""

    def __init__(self, *, fails: bool = False, answers: bool = True) -> None:
        self.fails, self.answers = fails, answers
        self.reclaimed: list[int] = []
        self.asked = asyncio.Event()

    async def reclaim(self, lease: int, expired: bool, epoch: int) -> None:
        self.reclaimed.append(lease)
        self.asked.set()
        if not self.answers:
            await asyncio.Event().wait()
        if self.fails:
            raise InvariantViolation("a page is owned twice")


async def introduce(manager: TreeManager, index: int, worker: Worker) -> None:
    status = Status(Load(0, 0), False, NONE, NONE, NONE)
    await manager.report(Batch(index, 0, None, 0, (NO_EVENTS,), status), LocalHandle(worker))


async def placed(manager: TreeManager, trees: int) -> int:
    """A lease with so many trees, on as many workers, that nobody renews."""
    lease = (await manager.open_lease()).id
    for count in range(trees):
        await manager.place([unique_id(lease, count)])
    return lease


@pytest.mark.parametrize("trouble", [{"answers": False}, {"fails": True}])
async def test_a_worker_in_trouble_keeps_no_lease_of_others_from_running_out(trouble: dict[str, bool]) -> None:
    manager, bad, good = TreeManager(TTL_S, workers=2, epoch=0), Worker(**trouble), Worker()
    await introduce(manager, 0, bad)
    await introduce(manager, 1, good)
    async with asyncio.timeout(30):
        first = await placed(manager, 1)
        await bad.asked.wait()
        assert bad.reclaimed == [first]
        later = await placed(manager, 2)
        await good.asked.wait()
    assert good.reclaimed == [later]


async def test_a_worker_in_trouble_does_not_fail_who_closes_a_lease() -> None:
    manager, bad, good = TreeManager(60.0, workers=2, epoch=0), Worker(fails=True), Worker()
    await introduce(manager, 0, bad)
    await introduce(manager, 1, good)
    lease = await placed(manager, 2)
    await manager.close_lease(lease)
    assert bad.reclaimed == good.reclaimed == [lease]


async def test_a_tree_is_not_placed_under_a_lease_that_ran_out_meanwhile() -> None:
    manager = TreeManager(TTL_S, workers=1, epoch=0)
    await manager.start()
    lease = (await manager.open_lease()).id
    placing = asyncio.create_task(manager.place([unique_id(lease, 0)]))
    async with asyncio.timeout(30):
        while (await manager.stats()).leases:
            await asyncio.sleep(TTL_S / 4)
        await introduce(manager, 0, Worker())
        with pytest.raises(LeaseExpired):
            await placing


async def test_a_worker_that_comes_while_the_shards_count_is_counted_the_next_time() -> None:
    class Shard(TreeShard):
        async def counts(self, workers: int) -> ShardCounts:
            await introduce(manager, workers, Worker())
            return await super().counts(workers)

    def shards() -> Sequence[LocalHandle]:
        return [LocalHandle(Shard(epoch=0))]

    manager = TreeManager(60.0, workers=1, shards=shards, epoch=0)
    await introduce(manager, 0, Worker())
    first, second = await manager.stats(), await manager.stats()
    assert (len(first.live_nodes), len(first.loads)) == (1, 1)
    assert (len(second.live_nodes), len(second.loads)) == (2, 2)
