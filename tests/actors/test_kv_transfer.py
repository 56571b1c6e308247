"""KV moved between workers: what it costs, that it is right, and that nothing is left when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import actors
from actors import Cluster
from actors.kv_transfer import STALE_S, Arrival, KvSource, TransferFailed, TransferRates
from actors.refs import ClusterNode, Given
from dendrite.config import EngineConfig, SamplingParams
from dendrite.errors import Cancelled, KvFormatMismatch, LeaseExpired, OutOfPages
from tests.actors.in_process import LocalHandle, Pair, pair

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n")
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


# ---------------------------------------------------------------- what it costs


def arrival(nbytes: int, token_bytes: int = 1_000) -> Arrival:
    return Arrival(ClusterNode(0, 0, 0), nbytes // token_bytes, nbytes)


def test_nothing_is_known_before_the_first_transfer() -> None:
    rates = TransferRates()
    assert (rates.latency_s, rates.bytes_per_s, rates.seconds(5)) == (None, None, None)


def test_one_size_gives_a_rate() -> None:
    rates = TransferRates()
    for _ in range(3):
        rates.took(arrival(1_000_000), 0.5)
    assert rates.bytes_per_s == pytest.approx(2e6)
    assert rates.seconds(500) == pytest.approx(0.25)


async def test_a_source_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        async def export_kv(self, *_: int) -> None:
            await asyncio.Event().wait()

        health = export_kv

    monkeypatch.setattr("actors.kv_transfer.SILENCE_S", 0.02)
    source = KvSource(LocalHandle(Stopped()), ClusterNode(1, 0, 0), 0, 4)
    async with asyncio.timeout(30):
        with pytest.raises(TransferFailed, match="no KV from worker 1: worker 1 is not alive") as caught:
            await source.fetch()
    assert caught.value.source == 1


@given(
    latency=st.floats(0, 0.1),
    rate=st.floats(1e6, 1e10),
    sizes=st.lists(st.integers(1, 1_000), min_size=2, max_size=9, unique=True),
)
def test_latency_and_rate_are_told_apart(latency: float, rate: float, sizes: list[int]) -> None:
    rates = TransferRates()
    for size in sizes:
        rates.took(arrival(size * 1_000_000), latency + size * 1e6 / rate)
    for size in sizes:
        assert rates.seconds(size * 1_000) == pytest.approx(latency + size * 1e6 / rate, rel=1e-3, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-6, 100)), min_size=1, max_size=9))
def test_whatever_is_measured_no_time_is_negative(measured: list[tuple[int, float]]) -> None:
    rates = TransferRates()
    for size, seconds in measured:
        rates.took(arrival(size, 1), seconds)
    assert rates.latency_s is not None
    assert rates.latency_s >= 0
    assert all((rates.seconds(tokens) or 0.0) >= 0 for tokens in (0, 1, 10**9))


def test_old_measurements_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = TransferRates()
    for seconds in [10.0] + [0.1] * 100:
        rates.took(arrival(1_000_000), seconds)
    assert rates.seconds(1_000) == pytest.approx(0.1, rel=0.05)
    later = time.monotonic() + STALE_S + 1
    monkeypatch.setattr("actors.kv_transfer.time.monotonic", lambda: later)
    assert rates.seconds(1_000) is None
    rates.took(arrival(1_000_000), 0.1)
    assert rates.seconds(1_000) == pytest.approx(0.1, rel=0.05)


# ---------------------------------------------------------------- from worker to worker, in this process


class Two:
    """A worker with a manager that a client uses, and another worker that has KV to give."""

    def __init__(self, target: Pair, giver: Pair) -> None:
        self.target, self.giver = target, giver

    def source(self, at: ClusterNode, start: int, end: int) -> KvSource:
        return KvSource(LocalHandle(self.giver.worker), at, start, end)

    async def fetch(self, kv: KvSource, below: ClusterNode | None = None) -> Arrival:
        tree = below.tree if below is not None else self.target.new_id()
        parent = below.node if below is not None else None
        return await self.target.worker.import_kv(self.target.new_id(), tree, parent, kv, None)

    async def assert_nothing_is_left(self) -> None:
        for each in (self.target, self.giver):
            await each.manager.close_lease(each.lease)
            await each.worker.flush()
            stats, worker = await each.manager.stats(), await each.worker.stats()
            assert (stats.trees, stats.records, stats.live_nodes) == (0, 0, (0,))
            assert (worker.live_nodes, worker.engine.pages_held, worker.in_flight) == (0, 0, 0)
            await each.worker.check()


@pytest.fixture
async def two(tiny_model: Path) -> AsyncIterator[Two]:
    async with pair(tiny_model) as target, pair(tiny_model) as giver:
        made = Two(target, giver)
        yield made
        await made.assert_nothing_is_left()


async def test_a_moved_path_is_on_record_and_goes_on_the_same(two: Two) -> None:
    root = await two.giver.prefill(PROMPT)
    [child] = await two.giver.expand(root, 1, GREEDY)
    [expected] = await two.giver.expand(child.node, 1, GREEDY)

    moved_root = await two.fetch(two.source(child.node, 0, len(PROMPT)))
    moved = await two.fetch(two.source(child.node, len(PROMPT), len(PROMPT) + 12), below=moved_root.at)
    assert (moved_root.tokens, moved.tokens) == (len(PROMPT), 12)
    assert moved.nbytes > 12 * 2 * 2 * 2 * 8 * 4
    [found] = await two.target.expand(moved.at, 1, GREEDY)
    assert found.tokens == expected.tokens
    engine = (await two.target.worker.stats()).engine
    assert (engine.prefill_tokens, engine.imported_tokens) == (0, len(PROMPT) + 12)

    await two.target.worker.flush()
    manager = two.target.manager
    assert (await manager.stats()).live_nodes == (3,)
    assert await manager.lineage(moved.at.tree, moved.at.node) == (*PROMPT, *child.tokens)
    await two.target.worker.release([Given(moved.at.tree, moved.at.node)])
    await two.target.worker.flush()
    assert await manager.lineage(found.node.tree, found.node.node) == (*PROMPT, *child.tokens, *found.tokens)


async def test_what_the_source_has_no_more_is_a_failed_transfer(two: Two) -> None:
    root = await two.giver.prefill(PROMPT)
    with pytest.raises(TransferFailed, match="no KV from worker 0: start, end"):
        await two.fetch(two.source(root, 0, 500))
    await two.giver.worker.release([Given(root.tree, root.node)])
    with pytest.raises(TransferFailed, match="has been released") as caught:
        await two.fetch(two.source(root, 0, len(PROMPT)))
    assert caught.value.source == 0


async def test_a_target_without_pages_refuses_and_keeps_what_it_has(two: Two, tiny_model: Path) -> None:
    long = [40 + at % 50 for at in range(200)]
    root = await two.giver.prefill(long)
    small = EngineConfig(device="cpu", kv_tokens=256)
    async with pair(tiny_model, config=small) as target:
        other = Two(target, two.giver)
        held = await target.prefill(PROMPT * 3)
        before = (await target.worker.stats()).engine
        with pytest.raises(OutOfPages):
            await other.fetch(other.source(root, 0, 200))
        after = (await target.worker.stats()).engine
        assert (after.pages_held, after.pages_free) == (before.pages_held, before.pages_free)
        await target.worker.release([Given(held.tree, held.node)])
        await other.fetch(other.source(root, 0, 200))
        await target.manager.close_lease(target.lease)


async def test_kv_of_another_type_is_refused(two: Two, tiny_model: Path) -> None:
    root = await two.giver.prefill(PROMPT)
    async with pair(tiny_model, config=EngineConfig(device="cpu", dtype="bfloat16", kv_tokens=256)) as target:
        with pytest.raises(KvFormatMismatch):
            await Two(target, two.giver).fetch(two.source(root, 0, len(PROMPT)))


async def test_a_cancelled_transfer_leaves_nothing(two: Two) -> None:
    root = await two.giver.prefill(PROMPT)
    steps = [two.giver.expand(root, 4, GREEDY)]  # so that both engines are in the middle of a step at times
    target_root = await two.target.prefill(PROMPT)
    steps.append(two.target.expand(target_root, 4, GREEDY))
    running = [asyncio.create_task(step) for step in steps]
    for turns in range(0, 40, 2):
        call_id, tree = two.target.new_id(), two.target.new_id()
        kv = two.source(root, 0, len(PROMPT))
        task = asyncio.create_task(two.target.worker.import_kv(call_id, tree, None, kv, None))
        for _ in range(turns):
            await asyncio.sleep(0)
        await two.target.worker.cancel(call_id)
        with contextlib.suppress(Cancelled):
            made = await task
            await two.target.worker.release([Given(made.at.tree, made.at.node)])
    await asyncio.gather(*running)


async def test_a_transfer_under_a_lease_that_is_over_is_refused(two: Two) -> None:
    root = await two.giver.prefill(PROMPT)
    await two.target.worker.reclaim(two.target.lease, True)
    with pytest.raises(LeaseExpired):
        await two.fetch(two.source(root, 0, len(PROMPT)))
    await two.giver.worker.reclaim(two.giver.lease, True)


# ---------------------------------------------------------------- on Ray


@pytest.fixture(scope="module")
def spilling(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    with actors.connect(
        tiny_model, workers=2, cpus_per_worker=1, kv_tokens=16_384, debug_checks=True, replication="transfer"
    ) as cluster:
        yield cluster


def queue(cluster: Cluster, worker: int, seconds: float) -> None:
    """What a client measures where a worker has a queue."""
    for other in range(2):
        cluster._fleet.rates(other).waited_s = seconds if other == worker else 0.0
    cluster._fleet._workers[worker].in_flight += 1


async def test_a_long_queue_moves_a_node_to_the_other_worker(spilling: Cluster) -> None:
    root = await spilling.prefill(PROMPT * 4)
    [child] = await spilling.expand(root, 1, GREEDY)
    [expected] = await spilling.expand(child.node, 1, GREEDY)
    queue(spilling, root.worker, 100.0)
    try:
        [found] = await spilling.expand(child.node, 1, GREEDY)
    finally:
        spilling._fleet._workers[root.worker].in_flight -= 1
    assert found.tokens == expected.tokens
    assert {expected.node.worker, found.node.worker} == {0, 1}

    stats = spilling.replicator.stats
    assert (stats.transfers, stats.tokens_moved) == (2, 4 * len(PROMPT) + 12), "the root, and the child below it"
    assert spilling.replicator.decisions["transfer"] == 1
    target = (await spilling.worker_stats(fresh=True))[found.node.worker].engine
    assert (target.prefill_tokens, target.imported_tokens) == (0, stats.tokens_moved)
    assert (await spilling.recovery_stats()).recomputed_tokens == 0

    known = await spilling.manager_stats()
    assert sorted(known.live_nodes) == [3, 3], "both workers hold the root, the child and a child of that"
    assert await spilling._manager.holders.remote(root.tree, root.node) == (0, 1)
    assert await spilling._manager.holders.remote(child.node.tree, child.node.node) == (0, 1)
    await spilling.release(root, subtree=True)
    await spilling.settle()
    assert (await spilling.manager_stats()).live_nodes == (0, 0)
    assert [worker.engine.pages_held for worker in await spilling.worker_stats(fresh=True)] == [0, 0]
    await spilling.check()


async def test_many_calls_at_once_move_a_node_once(spilling: Cluster) -> None:
    root = await spilling.prefill([9, *PROMPT * 4])
    before = spilling.replicator.stats.transfers
    queue(spilling, root.worker, 100.0)
    try:
        made = await asyncio.gather(*(spilling.expand(root, 2, GREEDY) for _ in range(8)))
    finally:
        spilling._fleet._workers[root.worker].in_flight -= 1
    assert spilling.replicator.stats.transfers == before + 1
    assert len({branch.tokens for branches in made for branch in branches}) == 1
    await spilling.release(root, subtree=True)
    assert [worker.engine.pages_held for worker in await spilling.worker_stats(fresh=True)] == [0, 0]
