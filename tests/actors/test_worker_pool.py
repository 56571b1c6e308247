"""A pool on real Ray: workers come with the load and go with it, and nodes survive that."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup

import actors
from actors import Cluster
from actors.actor_group import ActorGroup
from actors.fleet import Fleet
from actors.placement import WorkerShare
from actors.pool_policy import PoolOptions
from actors.reservations import NoRoom, reserve
from actors.rpc import Handle
from actors.worker_pool import WorkerPool
from dendrite.config import SamplingParams
from dendrite.errors import ClusterError, InvalidArgument

SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=60, seed=2, ignore_eos=True)
QUICK = PoolOptions(
    1, 2, delay_s=0.01, grow_after_s=0.4, shrink_after_s=1.0, cooldown_s=1.0, place_timeout_s=60.0, period_s=0.2
)


def pool_of(cluster: Cluster) -> WorkerPool:
    assert cluster.pool is not None
    return cluster.pool


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_workers_come_and_go_with_the_load_and_are_replaced(ray_here: None, tiny_model: Path) -> None:
    with actors.connect(tiny_model, workers=QUICK, cpus_per_worker=1, kv_tokens=16_384) as cluster:
        pool = pool_of(cluster)
        assert pool.workers == {0}
        first = await cluster.prefill(list(range(1, 30)))
        before = await cluster.expand(first, 2, SHORT)

        async def load() -> None:
            root = await cluster.prefill(list(range(1, 60)))
            while len(pool.workers) < 2:
                await cluster.expand(root, 4, LONG)
                await cluster.release(root, subtree=True)
                root = await cluster.prefill(list(range(1, 60)))
            await cluster.release(root, subtree=True)

        await asyncio.wait_for(asyncio.gather(*(load() for _ in range(16))), 120)
        assert pool.workers == {0, 1}

        others = [await cluster.prefill([token] * 20) for token in range(40, 46)]
        assert {other.worker for other in others} == {0, 1}
        [on_new] = [other for other in others if other.worker == 1][:1]
        expected = await cluster.expand(on_new, 2, SHORT)
        assert [worker.worker for worker in await cluster.worker_stats()] == [0, 1]
        for node in others:
            if node != on_new:
                await cluster.release(node, subtree=True)

        await until(lambda: len(pool.workers) == 1)
        [left] = pool.workers
        again = await cluster.expand(on_new, 2, SHORT)
        assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
        after = await cluster.expand(first, 2, SHORT)
        assert [branch.tokens for branch in after] == [branch.tokens for branch in before]
        assert {branch.worker for branch in [*again, *after]} == {left}
        assert [worker.worker for worker in await cluster.worker_stats()] == [left]

        ray.kill(cluster.actors.workers[left])
        await until(lambda: pool.workers == {2})
        after = await cluster.expand(first, 2, SHORT)
        assert [branch.tokens for branch in after] == [branch.tokens for branch in before]
        assert {branch.worker for branch in after} == {2}
        for node in (first, on_new):
            await cluster.release(node, subtree=True)
        await cluster.settle()
        stats = await cluster.manager_stats()
        assert sum(stats.live_nodes) == 0
        assert [worker.live_nodes for worker in await cluster.worker_stats()] == [0]
        await cluster.check()


def test_no_room_is_told_with_what_was_asked_for_and_what_there_is(ray_here: None) -> None:
    with pytest.raises(NoRoom, match=r"2 times 99 CPU free within .* s; all together have [\d.]+ CPU free") as caught:
        reserve(WorkerShare("cpu", cpus=99.0, gpus=0, threads=99), 2, 1.2, threading.Event())
    assert (caught.value.asked, caught.value.ranks) == ({"CPU": 99.0}, 2)
    assert caught.value.free["CPU"] <= ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    with pytest.raises(NoRoom, match=r"1 CPU and 1 GPU free within .*; all together have .* CPU, 0 GPU free"):
        reserve(WorkerShare("cuda", cpus=1.0, gpus=1, threads=1), 1, 1.2, threading.Event())


def test_a_wait_for_room_can_be_ended(ray_here: None) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(NoRoom):
        reserve(WorkerShare("cpu", cpus=99.0, gpus=0, threads=99), 1, 600.0, stop)


def test_bounds_that_make_no_sense_are_refused(tiny_model: Path) -> None:
    for wrong in ((2, 1), (0, 2), (1, 2, 3), (1, 10**6)):
        with pytest.raises(InvalidArgument, match="workers"):
            actors.connect(tiny_model, workers=wrong)  # type: ignore[arg-type]


def test_who_is_not_of_the_pool_cannot_be_taken_away() -> None:
    pool = WorkerPool(ActorGroup(), Fleet([]), PoolOptions(1, 2, period_s=600.0))
    with pytest.raises(InvalidArgument, match="worker=3: must be one of the pool's: there is none now"):
        pool.shrink(3)
    pool.close()
    pool.close()


class Stuck:
    """A worker that never loads its model."""

    async def load(self) -> None:
        await asyncio.Event().wait()


class Manager:
    """Of the tree manager, what a group tells it of a worker."""

    def __init__(self) -> None:
        self._retired: list[int] = []

    async def retire(self, worker: int) -> None:
        self._retired.append(worker)

    async def retired(self) -> list[int]:
        return self._retired


def test_of_a_worker_that_does_not_start_nothing_is_left(ray_here: None) -> None:
    group = ActorGroup()
    group.part, group.ranks = WorkerShare("cpu", cpus=0.01, gpus=0, threads=1), 1
    group.manager = ray.remote(Manager).options(num_cpus=0).remote()
    places: list[PlacementGroup] = []

    def start(index: int, place: dict[str, Any]) -> Handle:
        places.append(place["scheduling_strategy"].placement_group)
        return ray.remote(Stuck).options(**place).remote()

    group._new_worker = start
    stop = threading.Event()
    with pytest.raises(ClusterError, match=r"worker 0 did not start: it was not ready within 0\.5 s"):
        group.add_worker(0.5, stop)
    stop.set()
    with pytest.raises(ClusterError, match="worker 0 did not start: the pool was closed"):
        group.add_worker(600.0, stop)
    assert list(group.workers) == []
    assert [placement_group_table(place)["state"] for place in places] == ["REMOVED"] * 2
    assert ray.get(group.manager.retired.remote()) == [0, 0]
    ray.kill(group.manager)
