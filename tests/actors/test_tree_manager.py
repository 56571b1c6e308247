"""Leases, and what becomes of nodes whose holder has gone away. The cluster here has leases of a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import actors
from actors import Cluster
from actors.cluster_client import ClusterClient
from actors.leases import Lease
from dendrite.config import SamplingParams
from dendrite.errors import Cancelled, ClusterError, LeaseExpired, UnknownNode
from dendrite.search.budget import Budget
from dendrite.search.tasks.countdown import problems

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"
SHORT = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=450, seed=1, ignore_eos=True)
TTL_S = 1.5


@pytest.fixture(scope="module")
def cluster(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    with actors.connect(tiny_model, workers=1, cpus_per_worker=1, lease_ttl_s=TTL_S, kv_tokens=8_192) as cluster:
        yield cluster


async def silent_client(cluster: Cluster) -> ClusterClient:
    """A holder of a lease that nobody renews."""
    lease: Lease = await cluster.actors.manager.open_lease.remote()
    return ClusterClient(cluster.actors.manager, cluster.actors.workers, lease.id)


async def reclaimed(cluster: Cluster) -> None:
    """Wait until the cluster's own lease is the only one."""
    async with asyncio.timeout(30):
        while (await cluster.manager_stats()).leases > 1:
            await asyncio.sleep(0.1)


async def assert_nothing_held(cluster: Cluster) -> None:
    [worker] = await cluster.worker_stats(fresh=True)
    assert (worker.live_nodes, worker.engine.pages_held, worker.in_flight) == (0, 0, 0)
    stats = await cluster.manager_stats()
    assert (stats.trees, stats.records, stats.live_nodes, stats.loads) == (0, 0, (0,), ((0, 0),))
    await cluster.check()


async def test_nodes_of_a_silent_holder_are_reclaimed(cluster: Cluster) -> None:
    client = await silent_client(cluster)
    root = await client.prefill(PROMPT)
    [child] = await client.expand(root, 1, SHORT)
    await client.release(root)
    assert sum((await cluster.manager_stats()).live_nodes) == 1

    await reclaimed(cluster)
    await assert_nothing_held(cluster)
    for node in (root, child.node):
        with pytest.raises(LeaseExpired):
            await client.expand(node, 1, SHORT)
    with pytest.raises(LeaseExpired):
        await client.prefill(PROMPT)
    await client.release(root, subtree=True)


async def test_an_expand_under_way_ends_with_its_lease(cluster: Cluster) -> None:
    client = await silent_client(cluster)
    root = await client.prefill(PROMPT)
    expands = [asyncio.create_task(client.expand(root, 16, LONG)) for _ in range(6)]
    await reclaimed(cluster)
    for result in await asyncio.gather(*expands, return_exceptions=True):
        assert isinstance(result, LeaseExpired | list)
    await assert_nothing_held(cluster)


async def test_a_renewed_lease_keeps_its_nodes(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    await asyncio.sleep(2 * TTL_S)
    assert len(await cluster.expand(root, 2, SHORT)) == 2
    await cluster.release(root, subtree=True)
    await assert_nothing_held(cluster)


async def test_closing_a_lease_releases_at_once(cluster: Cluster) -> None:
    client = await silent_client(cluster)
    root = await client.prefill(PROMPT)
    expand = asyncio.create_task(client.expand(root, 4, LONG))
    await asyncio.sleep(0.02)
    await cluster.actors.manager.close_lease.remote(root.tree >> 32)
    with pytest.raises(Cancelled):
        await expand
    await assert_nothing_held(cluster)
    with pytest.raises(UnknownNode):
        await client.expand(root, 1, SHORT)


async def test_nodes_of_a_search_whose_driver_dies_are_reclaimed(cluster: Cluster) -> None:
    outcomes = cluster.solve_many(problems(2, seed=1), budget=Budget(seconds=60), in_flight=2)
    first = asyncio.ensure_future(anext(outcomes))
    async with asyncio.timeout(30):
        while not (await cluster.worker_stats())[0].live_nodes:
            await asyncio.sleep(0.02)
    ray.kill(cluster.actors.drivers[0])
    assert isinstance((await first).error, ClusterError)
    await outcomes.aclose()
    await reclaimed(cluster)
    await assert_nothing_held(cluster)


async def test_a_dead_worker_is_told(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    ray.kill(cluster.actors.workers[0])
    for call in (cluster.expand(root, 1, SHORT), cluster.prefill(PROMPT), cluster.health(), cluster.stats()):
        with pytest.raises(ClusterError, match="worker 0 is not alive"):
            await call
    await cluster.actors.manager.close_lease.remote(root.tree >> 32)
    assert (await cluster.actors.manager.stats.remote()).live_nodes == (0,)
