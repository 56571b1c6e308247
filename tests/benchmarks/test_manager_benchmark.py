"""The tree manager's benchmark: it takes in every event of its searches, and nothing of them is left."""

from __future__ import annotations

import asyncio
import pickle

from actors.tree_manager import TreeManager
from benchmarks.manager import EPOCH, WORKERS, Worker, take, throughput


def test_every_event_is_counted_and_the_record_is_empty_after_them() -> None:
    workers = [Worker(index) for index in range(WORKERS)]
    messages = [worker.run(2_000) for worker in workers]
    events, cpu_s, _ = asyncio.run(take(messages))
    packed = sum(pack.events for each in messages for one in each for pack in pickle.loads(one.data).packs)
    assert events == packed >= WORKERS * 2_000
    assert cpu_s > 0
    assert all(worker.packing_s > 0 for worker in workers)


async def test_the_searches_hold_nodes_in_between() -> None:
    messages = Worker(0).run(2_000)
    manager = TreeManager(60.0, workers=1, epoch=EPOCH)
    await manager.report(pickle.loads(messages[0].data), None)
    for message in messages[1 : len(messages) // 2]:
        await manager.apply(pickle.loads(message.data))
    stats = await manager.stats()
    assert 0 < stats.trees <= 64
    assert sum(stats.live_nodes) > stats.trees


def test_a_run_s_rates_come_with_what_they_were_made_of() -> None:
    found = throughput(runs=1, events=4_000)
    assert found.counts["events"] >= 4_000
    assert found.counts["lookups"] > 0
    assert found.taken["median"] > 0
    assert len(found.taken["runs"]) == 1
