"""One ancestor on three workers: the tree manager knows them all, and each frees its own when it is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

import actors
from actors import Cluster
from actors.cluster_client import ClusterClient
from actors.fleet import Fleet
from actors.leases import Lease
from actors.lineage import Segment
from actors.routing import Route, Router
from dendrite.config import SamplingParams
from tests.actors.killing import assert_nothing_held

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n")
SHORT = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)
WORKERS = 3


class Pinned(Router):
    """Sends every call at a node to one worker."""

    worker = 0

    def for_node(self, segment: Segment, has: Callable[[Segment, int], bool]) -> Route:
        return Route(self.worker)


@pytest.fixture(scope="module")
def cluster(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    with actors.connect(tiny_model, workers=WORKERS, shards=2, cpus_per_worker=1, kv_tokens=8_192) as cluster:
        yield cluster


async def test_an_ancestor_is_freed_on_each_worker_with_its_last_descendant_there(cluster: Cluster) -> None:
    lease: Lease = await cluster.actors.manager.open_lease.remote()
    fleet = Fleet(cluster.actors.workers)
    router = Pinned(fleet)
    client = ClusterClient(cluster.actors.manager, cluster.actors.workers, lease.id, fleet=fleet, router=router)
    root = await client.prefill(PROMPT)
    router.worker = root.worker
    [ancestor] = await client.expand(root, 1, SHORT)

    children = {}
    for worker in range(WORKERS):
        router.worker = worker
        children[worker] = await client.expand(ancestor.node, 2, SHORT)
        assert {branch.worker for branch in children[worker]} == {worker}
    assert len({tuple(branch.tokens for branch in pair) for pair in children.values()}) == 1
    assert await client.holders(ancestor.node) == (0, 1, 2)
    ray.kill(cluster.actors.manager, no_restart=False)
    assert await client.holders(ancestor.node) == (0, 1, 2), "the workers have told the next manager"

    await client.release(root)
    await client.release(ancestor.node)
    assert await client.holders(ancestor.node) == (0, 1, 2), "children are left everywhere"
    held = {0, 1, 2}
    for worker in range(WORKERS):
        first, last = children[worker]
        await client.release(first.node)
        assert await client.holders(ancestor.node) == tuple(sorted(held))
        await client.release(last.node)
        held.discard(worker)
        assert await client.holders(ancestor.node) == tuple(sorted(held))
        pages = [stats.engine.pages_held for stats in await client.worker_stats(fresh=True)]
        assert [number > 0 for number in pages] == [each in held for each in range(WORKERS)]
    await client.reclaim()
    await cluster.actors.manager.close_lease.remote(lease.id)
    await assert_nothing_held(cluster)
