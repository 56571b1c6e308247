"""Nodes outlive the workers that hold them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from actors import Cluster
from actors.cluster_client import ClusterClient
from actors.fleet import Fleet, RecoveryOptions
from actors.leases import Lease
from actors.recovery import RecoveryFailed, RecoveryStats
from actors.refs import ClusterNode
from dendrite.config import SamplingParams
from dendrite.errors import NodeReleased
from dendrite.search.backend import NodeRef
from tests.actors.killing import assert_nothing_held, kill_worker, pid

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"
SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=300, seed=1, ignore_eos=True)


@pytest.fixture
async def cluster(mortal_cluster: Cluster) -> AsyncIterator[Cluster]:
    await mortal_cluster.worker_stats()  # what an earlier test has killed is back
    yield mortal_cluster
    await assert_nothing_held(mortal_cluster)


async def recovered(cluster: Cluster, before: RecoveryStats) -> tuple[int, int]:
    """Nodes rebuilt and tokens recomputed since."""
    now = await cluster.recovery_stats()
    return now.rebuilt_nodes - before.rebuilt_nodes, now.recomputed_tokens - before.recomputed_tokens


async def test_a_call_on_a_lost_node_gives_what_it_would_have(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    prompt = await cluster.tokenize(PROMPT)
    children = await cluster.expand(root, 2, SHORT)
    child = children[0].node
    expected = await cluster.expand(child, 3, SHORT)
    score = await cluster.score(child, expected[0].tokens)
    before = await cluster.recovery_stats()
    await kill_worker(cluster, root.worker)

    again = await cluster.expand(child, 3, SHORT)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    assert [branch.value for branch in again] == pytest.approx([branch.value for branch in expected], abs=1e-4)
    assert {branch.worker for branch in again} == {1 - root.worker}
    assert await recovered(cluster, before) == (2, len(prompt) + 6)
    assert await cluster.score(child, expected[0].tokens) == pytest.approx(score, abs=1e-3)
    deeper = await cluster.expand(again[0].node, 1, SHORT)
    await cluster.manager_stats()
    assert await cluster.lineage(deeper[0].node) == (
        *prompt,
        *children[0].tokens,
        *again[0].tokens,
        *deeper[0].tokens,
    )
    assert (await recovered(cluster, before))[0] == 2
    await cluster.release(root, subtree=True)
    with pytest.raises(NodeReleased) as caught:
        await cluster.expand(child, 1, SHORT)
    assert isinstance(child, ClusterNode)
    assert (caught.value.tree, caught.value.node) == (child.tree, child.node)


async def test_siblings_share_the_rebuild_of_their_ancestors(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT * 6, seed=4)
    prompt = len(await cluster.tokenize(PROMPT * 6))
    [above] = await cluster.expand(root, 1, SHORT)
    siblings = await cluster.expand(above.node, 8, SHORT)
    await cluster.release(root)
    await cluster.release(siblings[7].node)
    before, prefilled = await cluster.recovery_stats(), (await cluster.worker_stats(fresh=True))[1 - root.worker]
    await kill_worker(cluster, root.worker)

    await asyncio.gather(*(cluster.expand(branch.node, 1, SHORT) for branch in siblings[:7]))
    nodes, tokens = await recovered(cluster, before)
    stats = await cluster.worker_stats(fresh=True)
    spread = {worker.worker for worker in stats if worker.live_nodes}
    assert nodes <= 7 + len(spread), "the node above them, once a worker; not the root, nor a node that was released"
    assert tokens <= len(spread) * (prompt + 6) + 7 * 6
    if spread == {1 - root.worker}:
        assert (nodes, tokens) == (8, prompt + 6 + 7 * 6)
        computed = stats[1 - root.worker].engine.prefill_tokens - prefilled.engine.prefill_tokens
        assert computed <= tokens + 8, "besides them, a tip of each parent at most"
    await cluster.release(above.node, subtree=True)


async def test_a_call_under_way_is_made_again(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    expected = await cluster.expand(root, 4, LONG)
    call = asyncio.create_task(cluster.expand(root, 4, LONG))
    await asyncio.sleep(0.1)
    await kill_worker(cluster, root.worker)
    assert [branch.tokens for branch in await call] == [branch.tokens for branch in expected]
    await cluster.release(root, subtree=True)


async def test_a_stream_goes_on_elsewhere(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    params = LONG.model_copy(update={"max_tokens": 200})
    [expected] = await cluster.expand(root, 1, params)
    before = await cluster.recovery_stats()
    tokens: tuple[int, ...] = ()
    nodes: list[NodeRef] = []
    async for branch in cluster.stream(root, params, 0.02):
        tokens += branch.tokens
        if branch.node not in nodes:
            nodes.append(branch.node)
        if len(tokens) > 20 and (await cluster.recovery_stats()).losses == before.losses and len(nodes) == 1:
            await kill_worker(cluster, root.worker)
    assert tokens == expected.tokens
    assert len(nodes) == 2
    assert (await recovered(cluster, before))[1] < 200, "what had come was not generated again"
    again = await cluster.expand(nodes[1], 1, SHORT)
    assert again[0].tokens == (await cluster.expand(expected.node, 1, SHORT))[0].tokens
    await cluster.release(root, subtree=True)


async def test_where_no_worker_is_alive_calls_wait_for_one(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    expected = await cluster.expand(root, 2, SHORT)
    await asyncio.gather(*(kill_worker(cluster, worker) for worker in (0, 1)))
    root_again, again = await asyncio.gather(cluster.prefill(PROMPT), cluster.expand(root, 2, SHORT))
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    await asyncio.gather(cluster.release(root, subtree=True), cluster.release(root_again))


async def test_a_worker_that_was_restarted_unnoticed_has_lost_its_nodes(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    expected = await cluster.expand(root, 2, SHORT)
    await kill_worker(cluster, root.worker)
    await cluster.worker_stats()
    again = await cluster.expand(root, 2, SHORT)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    await cluster.release(root, subtree=True)


async def test_cancelling_a_call_that_rebuilds_leaves_nothing(cluster: Cluster) -> None:
    for delay in (0.0, 0.02):
        root = await cluster.prefill(PROMPT * 8)
        [child] = await cluster.expand(root, 1, SHORT)
        await kill_worker(cluster, root.worker)
        await cluster.worker_stats()
        call = asyncio.create_task(cluster.expand(child.node, 4, LONG))
        await asyncio.sleep(delay)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await cluster.release(root, subtree=True)
        await assert_nothing_held(cluster)


async def client_with(cluster: Cluster, options: RecoveryOptions) -> ClusterClient:
    lease: Lease = await cluster.actors.manager.open_lease.remote()
    workers = cluster.actors.workers
    return ClusterClient(cluster.actors.manager, workers, lease.id, fleet=Fleet(workers, options))


async def end(cluster: Cluster, client: ClusterClient, node: ClusterNode) -> None:
    await client.release(node, subtree=True)
    await client.reclaim()
    await cluster.actors.manager.close_lease.remote(node.tree >> 32)


async def test_what_was_tried_is_told_when_all_tries_fail(cluster: Cluster) -> None:
    client = await client_with(cluster, RecoveryOptions(attempts=1))
    root = await client.prefill(PROMPT)
    await kill_worker(cluster, root.worker)
    with pytest.raises(RecoveryFailed, match=f"failed 1 times: worker {root.worker} is not alive") as caught:
        await client.expand(root, 1, SHORT)
    assert len(caught.value.tries) == 1
    assert len(await client.expand(root, 1, SHORT)) == 1
    await end(cluster, client, root)


async def test_a_silent_worker_is_given_up_and_its_late_answer_taken_back(cluster: Cluster) -> None:
    client = await client_with(cluster, RecoveryOptions(silence_s=0.5))
    root = await client.prefill(PROMPT)
    expected = await client.expand(root, 2, SHORT)
    stopped = await pid(cluster, root.worker)
    os.kill(stopped, signal.SIGSTOP)
    try:
        again = await client.expand(root, 2, SHORT)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    assert {branch.worker for branch in again} == {1 - root.worker}
    await end(cluster, client, root)
    async with asyncio.timeout(20):
        while sum(worker.live_nodes for worker in await cluster.worker_stats()):
            await asyncio.sleep(0.05)
