"""Whole jobs while workers, drivers and the tree manager are killed: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import ray

import actors
from actors import Cluster
from actors.fleet import RecoveryOptions
from benchmarks.chaos import Job, calm, compare, disturbed, leaked
from tests.actors.killing import assert_nothing_held


@pytest.fixture
async def cluster(mortal_cluster: Cluster) -> AsyncIterator[Cluster]:
    await mortal_cluster.worker_stats()  # what an earlier test has killed is back
    yield mortal_cluster
    await assert_nothing_held(mortal_cluster)


async def test_forty_searches_survive_the_death_of_every_process(cluster: Cluster, tmp_path: Path) -> None:
    expected = await calm(cluster, Job(40, tokens=400))
    before = await cluster.recovery_stats()
    found = await disturbed(cluster, Job(40, tokens=400, traces=tmp_path), every_s=3.0)
    assert found.results == expected.results
    assert len(found.results) == 40
    assert [each for each in found.results if "error" in each] == []
    assert sum(each["solved"] for each in found.results) > 0
    assert found.kills["worker"] >= 2
    assert (found.kills["manager"], found.kills["driver"]) == (1, 1)
    after = await cluster.recovery_stats()
    assert after.searches > before.searches, "the driver died in the middle of searches"


@pytest.mark.slow
async def test_two_minutes_of_it(cluster: Cluster) -> None:
    metrics, raw = await compare(cluster, Job(40, tokens=1_000), every_s=3.0, seconds=120.0)
    assert (metrics["chaos.equal"], metrics["chaos.lost"], metrics["chaos.leaked"]) == (1.0, 0.0, 0.0), raw


async def test_without_a_driver_each_problem_says_why_it_failed(ray_here: None, tiny_model: Path) -> None:
    recovery = RecoveryOptions(attempts=2, restart_timeout_s=20)
    with actors.connect(tiny_model, workers=1, cpus_per_worker=1, kv_tokens=8_192, recovery=recovery) as cluster:
        job = asyncio.create_task(calm(cluster, Job(2, tokens=1_000)))
        async with asyncio.timeout(30):
            while not (await cluster.worker_stats())[0].live_nodes:
                await asyncio.sleep(0.02)
        ray.kill(cluster.actors.drivers[0])
        results = (await job).results
        assert [each["message"] for each in results] == ["the search driver is not alive"] * 2
        assert await leaked(cluster) == 0
