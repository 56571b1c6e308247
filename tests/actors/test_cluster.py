from __future__ import annotations

import asyncio

import pytest

from actors import Cluster
from actors.refs import ClusterNode
from dendrite.config import SamplingParams
from dendrite.errors import Cancelled, ContextOverflow, InvalidArgument, NodeReleased, UnknownNode

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"
SHORT = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
LONG = SamplingParams(max_tokens=400, seed=1, ignore_eos=True)


async def test_expand_forks_and_decodes_in_one_message(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    branches = await cluster.expand(root, 3, SHORT)
    assert [len(branch.tokens) for branch in branches] == [6, 6, 6]
    assert all(len(branch.logprobs) == 6 and max(branch.logprobs) <= 0 for branch in branches)
    assert all(branch.value is not None and 0 <= branch.value <= 1 for branch in branches)
    assert len({branch.node for branch in branches}) == 3

    again = await cluster.expand(root, 3, SHORT)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in branches]
    deeper = await cluster.expand(branches[0].node, 1, SHORT)
    assert isinstance(deeper[0].node, ClusterNode)
    assert deeper[0].node.worker == root.worker
    await cluster.release(root, subtree=True)


async def test_append_writes_what_is_given(cluster: Cluster) -> None:
    root = await cluster.prefill("Numbers: 3 7 8 25. Target: 92.\n")
    tokens = await cluster.tokenize("7-3=4 (4 8 25)\n")
    [branch] = await cluster.append(root, [tokens])
    assert (branch.tokens, branch.text, branch.finish_reason) == (tokens, "7-3=4 (4 8 25)\n", "given")
    assert branch.value is not None
    assert list(branch.logprobs) == pytest.approx(await cluster.score(root, tokens), abs=1e-4)
    assert await cluster.lineage(branch.node) == (*await cluster.lineage(root), *tokens)
    await cluster.release(root, subtree=True)


async def test_score_and_value_leave_the_tree_as_it_was(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    [branch] = await cluster.expand(root, 1, SHORT)
    scores = await cluster.score(root, branch.tokens)
    assert scores == pytest.approx(branch.logprobs, abs=1e-4)
    assert await cluster.value(branch.node) == pytest.approx(branch.value, abs=1e-4)
    stats = await cluster.manager_stats()
    assert sum(stats.live_nodes) == 2
    await cluster.release(root, subtree=True)


async def test_prompts_spread_over_the_workers(cluster: Cluster) -> None:
    roots = [await cluster.prefill(f"{PROMPT}{number}") for number in range(4)]
    assert sorted(root.worker for root in roots) == [0, 0, 1, 1]
    await asyncio.gather(*(cluster.release(root) for root in roots))


async def test_the_manager_knows_owners_and_lineage(cluster: Cluster) -> None:
    root = await cluster.prefill(list(b"abc"))
    [first] = await cluster.expand(root, 1, SHORT)
    [second] = await cluster.expand(first.node, 1, SHORT)
    await cluster.release(first.node)
    assert (await cluster.manager_stats()).live_nodes[root.worker] == 2
    assert await cluster.lineage(second.node) == (*b"abc", *first.tokens, *second.tokens)
    await cluster.release(root, subtree=True)


async def test_a_released_node_is_told_from_an_unknown_one(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    await cluster.release(root)
    await cluster.release(root)
    await cluster.release(root, subtree=True)
    for call in (cluster.expand(root, 1, SHORT), cluster.score(root, [1]), cluster.value(root)):
        with pytest.raises(NodeReleased) as caught:
            await call
        assert (caught.value.tree, caught.value.node) == (root.tree, root.node)

    stranger = root._replace(node=99)
    with pytest.raises(UnknownNode):
        await cluster.expand(stranger, 1, SHORT)
    await cluster.release(stranger)
    with pytest.raises(UnknownNode):
        await cluster.expand(root._replace(tree=root.tree + 50), 1, SHORT)


async def test_bad_arguments_keep_their_type_and_fields_across_the_wire(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    for n in (0, -1, 10**6, True):
        with pytest.raises(InvalidArgument, match="n=") as caught:
            await cluster.expand(root, n, SHORT)
        assert (caught.value.field, caught.value.value) == ("n", repr(n))
    with pytest.raises(InvalidArgument):
        await cluster.prefill([])
    with pytest.raises(InvalidArgument):
        await cluster.prefill([10**9])
    with pytest.raises(ContextOverflow):
        await cluster.prefill([1] * 600)
    for node in ("root", root._replace(worker=7), root._replace(worker=-1)):
        with pytest.raises(InvalidArgument, match="node"):
            await cluster.expand(node, 1, SHORT)
    await cluster.release(root)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.02, 0.2])
async def test_cancelling_an_expand_frees_its_children(cluster: Cluster, delay: float) -> None:
    root = await cluster.prefill(PROMPT)
    before = (await cluster.stats()).pages_held
    task = asyncio.create_task(cluster.expand(root, 4, LONG))
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await cluster.settle()
    workers = await cluster.worker_stats(fresh=True)
    assert sum(worker.live_nodes for worker in workers) == 1
    assert sum(worker.in_flight for worker in workers) == 0
    assert (await cluster.stats()).pages_held == before
    await cluster.release(root)


async def test_cancelling_prefills_frees_their_roots(cluster: Cluster) -> None:
    tasks = [asyncio.create_task(cluster.prefill(f"{number} {PROMPT * 8}")) for number in range(12)]
    for task in tasks:
        await asyncio.sleep(0.003)
        task.cancel()
    roots = await asyncio.gather(*tasks, return_exceptions=True)
    await cluster.settle()
    for root in roots:
        if isinstance(root, ClusterNode):
            await cluster.release(root)


async def test_releasing_a_subtree_ends_what_is_decoded_below_it(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    task = asyncio.create_task(cluster.expand(root, 4, LONG))
    await asyncio.sleep(0.05)
    await cluster.release(root, subtree=True)
    with pytest.raises(Cancelled):
        await task


async def test_concurrent_expands_share_one_batch(cluster: Cluster) -> None:
    root = await cluster.prefill(PROMPT)
    before = (await cluster.worker_stats(fresh=True))[root.worker].engine.steps
    await asyncio.gather(*(cluster.expand(root, 1, LONG) for _ in range(8)))
    steps = (await cluster.worker_stats(fresh=True))[root.worker].engine.steps - before
    assert steps < 2 * LONG.max_tokens  # one after the other would take eight times 400
    await cluster.release(root, subtree=True)


async def test_health_tells_of_every_worker(cluster: Cluster) -> None:
    health = await cluster.health()
    assert [worker.worker for worker in health] == [0, 1]
    assert len({worker.pid for worker in health}) == 2
