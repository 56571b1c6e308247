"""A worker under too much work, and one that is drained, on Ray: refusals are typed, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import actors
from actors import Cluster
from actors.rpc import call
from dendrite.config import SamplingParams
from dendrite.errors import Overloaded, WorkerDraining
from tests.actors.killing import assert_nothing_held

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n")
SHORT = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, seed=1, ignore_eos=True)
MAX_CALLS = 2


@pytest.fixture(scope="module")
def cluster(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    settings = {"kv_tokens": 32_768, "max_calls": MAX_CALLS, "replication": "never"}
    with actors.connect(tiny_model, 2, cpus_per_worker=1, **settings) as cluster:
        yield cluster


async def test_what_a_worker_refuses_is_tried_again(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    worker = cluster.actors.workers[root.worker]
    calls = [worker.expand.remote(root.tree + 1 + each, root.tree, root.node, 1, LONG) for each in range(8)]
    answers = await asyncio.gather(*(call(each, "a worker") for each in calls), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refused) == 8 - MAX_CALLS
    for error in refused:
        assert isinstance(error, Overloaded)
        assert (error.worker, error.limit) == (root.worker, MAX_CALLS)
        assert error.retry_after_s > 0
    await cluster.release(root, subtree=True)
    await asyncio.gather(*(worker.reclaim.remote(cluster._lease, False) for worker in cluster.actors.workers))

    root = await cluster.prefill(PROMPT)
    families = await asyncio.gather(*(cluster.expand(root, 2, SHORT) for _ in range(16)))
    assert len({tuple(branch.tokens for branch in family) for family in families}) == 1
    await cluster.release(root, subtree=True)
    await assert_nothing_held(cluster)


async def test_stats_and_health_do_not_wait_for_a_decode(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    expand = asyncio.create_task(cluster.expand(root, 64, LONG))
    answers = 0
    while not expand.done():
        began = time.monotonic()
        health, stats = await asyncio.gather(cluster.health(), cluster.worker_stats())
        assert time.monotonic() - began < 2.0
        answers += not expand.done() and stats[root.worker].in_flight == 1
        assert not health[root.worker].draining
        await asyncio.sleep(0.05)
    assert answers >= 2, "they came while it decoded"
    await cluster.release(root, subtree=True)
    await assert_nothing_held(cluster)


async def test_a_drained_worker_s_nodes_go_on_elsewhere(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    expected = await cluster.expand(root, 2, SHORT)
    drained = cluster.actors.workers[root.worker]
    under_way = asyncio.create_task(cluster.expand(root, 2, LONG))
    while not (await cluster.worker_stats())[root.worker].in_flight:
        await asyncio.sleep(0.01)
    await call(drained.drain.remote(), "a worker")
    assert [len(branch.tokens) for branch in await under_way] == [400, 400], "what ran was ended first"
    with pytest.raises(WorkerDraining):
        await call(drained.prefill.remote(root.tree + 1, root.tree + 2, PROMPT, None), "a worker")
    again = await cluster.expand(root, 2, SHORT)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    assert {branch.worker for branch in again} == {1 - root.worker}
    assert (await cluster.worker_stats())[root.worker].live_nodes == 0
    assert (await cluster.prefill(PROMPT)).worker == 1 - root.worker
    await cluster.reclaim()
    await asyncio.gather(*(worker.reclaim.remote(cluster._lease, False) for worker in cluster.actors.workers))
    await assert_nothing_held(cluster)
