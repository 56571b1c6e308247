"""Backpressure, health and draining of a worker, with the real engine and manager in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors import held_nodes
from actors.admission import Admission
from actors.refs import Given, unique_id
from dendrite.config import SamplingParams
from dendrite.errors import (
    Cancelled,
    InvalidArgument,
    LeaseExpired,
    Overloaded,
    StaleEpoch,
    UnknownNode,
    WorkerDraining,
)
from tests.actors.in_process import Pair, pair

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n")
SHORT = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, seed=1, ignore_eos=True)


@pytest.fixture
async def both(tiny_model: Path) -> AsyncIterator[Pair]:
    async with pair(tiny_model, max_calls=3) as made:
        yield made


async def assert_nothing_held(both: Pair) -> None:
    await both.worker.flush()
    stats, worker = await both.manager.stats(), await both.worker.stats()
    assert (stats.trees, stats.records, stats.live_nodes, stats.loads) == (0, 0, (0,), ((0, 0),))
    assert (worker.live_nodes, worker.engine.pages_held, worker.in_flight) == (0, 0, 0)
    await both.worker.check()


async def test_calls_over_the_limit_are_refused_with_a_time_to_retry(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    calls = [asyncio.create_task(both.expand(root, 1, LONG)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await both.expand(root, 1, SHORT)
    assert (caught.value.worker, caught.value.limit) == (0, 3)
    assert caught.value.retry_after_s > 0
    assert (await both.worker.stats()).refused == 1
    await asyncio.gather(*calls)
    assert len(await both.expand(root, 1, SHORT)) == 1
    await both.manager.close_lease(both.lease)
    await assert_nothing_held(both)


async def test_a_refused_call_takes_no_place(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    for _ in range(5):
        with pytest.raises(InvalidArgument):
            await both.expand(root, 0, SHORT)
        task = asyncio.create_task(both.expand(root, 1, LONG))
        await asyncio.sleep(0)
        await both.worker.reclaim(both.lease, False)
        with pytest.raises(Cancelled):
            await task
        root = await both.prefill(PROMPT)
    await both.manager.close_lease(both.lease)
    await assert_nothing_held(both)


def test_the_time_to_retry_follows_the_measured_rate() -> None:
    admission = Admission(0, 10)
    for _ in range(200):
        admission.enter(1)
        admission.leave(1, 2.0)
    for _ in range(10):
        admission.enter(1)
    with pytest.raises(Overloaded) as caught:
        admission.enter(2)
    assert caught.value.retry_after_s == pytest.approx(0.2)
    admission.leave(1, 2.0)
    admission.enter(2)
    assert admission.leases == [1, 2]


async def test_health_and_stats_answer_while_the_engine_is_stuck(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    expand = asyncio.create_task(both.expand(root, 1, LONG))
    step = both.worker._engine.engine.step

    def stuck() -> object:
        time.sleep(2.5)
        both.worker._engine.engine.step = step  # type: ignore[method-assign]
        return step()

    both.worker._engine.engine.step = stuck  # type: ignore[method-assign,assignment]
    await asyncio.sleep(1.2)
    began = time.monotonic()
    health = await both.worker.health()
    assert time.monotonic() - began < 0.1
    assert health.engine_silent_s > 0.1
    stats = await both.worker.stats()
    assert time.monotonic() - began < 1.0, "the last answer has to do"
    assert stats.age_s > 0
    assert (stats.live_nodes, stats.in_flight) == (1, 1)
    await expand
    assert (await both.worker.stats()).age_s == 0.0
    await both.worker.flush()
    assert (await both.worker.health()).engine_silent_s == 0.0


async def test_draining_ends_what_runs_and_releases_everything(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    expand = asyncio.create_task(both.expand(root, 2, LONG))
    await asyncio.sleep(0.01)
    drain = asyncio.create_task(both.worker.drain())
    await asyncio.sleep(0)
    with pytest.raises(WorkerDraining):
        await both.expand(root, 1, SHORT)
    assert [len(branch.tokens) for branch in await expand] == [400, 400]
    await drain
    await assert_nothing_held(both)
    assert (await both.worker.health()).draining
    await both.worker.drain()


async def test_draining_cancels_what_takes_too_long(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    expand = asyncio.create_task(both.expand(root, 2, LONG))
    await asyncio.sleep(0.01)
    await both.worker.drain(timeout_s=0.01)
    with pytest.raises(Cancelled):
        await expand
    await assert_nothing_held(both)


async def test_a_replaced_manager_reclaims_nothing(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    both.worker._outbox.couriers[0].shard_epoch = 2
    with pytest.raises(StaleEpoch) as caught:
        await both.worker.reclaim(both.lease, True, 1)
    assert (caught.value.epoch, caught.value.current) == (1, 2)
    assert len(await both.expand(root, 1, SHORT)) == 1


async def test_what_comes_to_be_under_an_ended_lease_is_reclaimed(both: Pair) -> None:
    """A tree that the manager has not placed, so that it could not know of it."""
    await both.manager.close_lease(both.lease)
    await both.worker.prefill(both.new_id(), both.new_id(), PROMPT, None)
    await both.worker.flush()
    async with asyncio.timeout(5):
        while (await both.worker.stats()).live_nodes:
            await asyncio.sleep(0.01)
    await assert_nothing_held(both)


async def test_expand_goes_on_while_the_manager_stands_still(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    await both.worker.flush()
    both.handle.running.clear()
    for _ in range(20):
        [branch] = await both.expand(root, 1, SHORT)
        await asyncio.sleep(0.002)
    assert sum((await both.manager.stats()).live_nodes) == 1
    both.handle.running.set()
    await both.worker.flush()
    assert sum((await both.manager.stats()).live_nodes) == 21
    assert await both.manager.lineage(branch.node.tree, branch.node.node) == (*PROMPT, *branch.tokens)
    assert (await both.worker.stats()).reports == 1


async def test_a_restarted_manager_learns_everything_from_the_worker(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    branches = await both.expand(root, 3, SHORT)
    [leaf] = await both.expand(branches[0].node, 1, SHORT)
    for node in (root.node, branches[0].node.node):
        await both.worker.release([Given(root.tree, node)])
    await both.worker.flush()
    before = await both.manager.stats()
    assert (before.trees, before.records, before.live_nodes) == (1, 5, (3,))
    both.restart_manager()
    await both.worker.flush()
    after = await both.manager.stats()
    assert (after.leases, after.trees, after.records, after.live_nodes, after.epoch) == (1, 1, 5, (3,), 1)
    assert after.loads == before.loads
    assert await both.manager.lineage(root.tree, leaf.node.node) == (*PROMPT, *branches[0].tokens, *leaf.tokens)
    assert await both.manager.place([both.new_id()]) == [0]

    await both.manager.close_lease(both.lease)
    await assert_nothing_held(both)
    assert (await both.manager.stats()).leases == 0
    with pytest.raises(LeaseExpired):
        await both.manager.place([both.new_id()])


async def test_only_the_latest_leases_that_ran_out_are_remembered(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_nodes, "MOST_EXPIRED", 3)
    leases = [both.lease + count for count in range(1, 6)]
    for lease in leases:
        await both.worker.reclaim(lease, expired=True)
    for lease, error in zip(leases, [UnknownNode] * 2 + [LeaseExpired] * 3, strict=True):
        with pytest.raises(error):
            await both.worker.expand(unique_id(lease, 1), unique_id(lease, 0), 0, 1, SHORT)


async def test_closing_a_lease_waits_for_the_reports_after_a_restart(both: Pair) -> None:
    await both.prefill(PROMPT)
    both.restart_manager()
    await both.manager.close_lease(both.lease)
    await assert_nothing_held(both)


async def test_a_lease_that_nobody_renews_after_a_restart_runs_out(both: Pair) -> None:
    root = await both.prefill(PROMPT)
    both.restart_manager(ttl_s=0.4)
    await both.worker.flush()
    assert (await both.manager.stats()).leases == 1
    async with asyncio.timeout(20):
        while (await both.worker.stats()).live_nodes:
            await asyncio.sleep(0.05)
    with pytest.raises(LeaseExpired):
        await both.expand(root, 1, SHORT)
    await assert_nothing_held(both)
    both.restart_manager()
    await both.worker.flush()
    assert await both.manager.renew([both.lease]) == [both.lease]  # the worker has told that it is over
