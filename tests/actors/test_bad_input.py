"""Whatever is asked of a cluster, the answer is a typed error, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import Cluster
from actors.deltas import Batch
from actors.refs import IDS_PER_LEASE, ClusterNode
from actors.rpc import call
from dendrite.config import SamplingParams
from dendrite.errors import ContextOverflow, InvalidArgument, LeaseExpired, StaleEpoch, UnknownNode

PROMPT = [65, 66, 67]
PARAMS = SamplingParams(max_tokens=2, seed=1, ignore_eos=True)

Case: TypeAlias = tuple[str, Any, tuple[type[Exception], ...]]

vocabulary_misses = st.lists(st.one_of(st.integers(max_value=-1), st.integers(min_value=10**6)), min_size=1, max_size=4)
wrong_counts = st.one_of(
    st.sampled_from([0, 10**6]),
    st.integers(max_value=0),
    st.integers(min_value=65_537),
    st.booleans(),
    st.none(),
    st.floats(),
    st.text(max_size=2),
)
cases: st.SearchStrategy[Case] = st.one_of(
    st.tuples(st.just("n"), wrong_counts, st.just((InvalidArgument,))),
    st.tuples(st.just("prompt"), vocabulary_misses, st.just((InvalidArgument,))),
    st.tuples(st.just("prompt"), st.sampled_from([[], "", None, 7, [1.5], ["a"], [None]]), st.just((InvalidArgument,))),
    st.tuples(st.just("prompt"), st.integers(600, 5_000).map(lambda n: [1] * n), st.just((ContextOverflow,))),
    st.tuples(st.just("append"), st.lists(vocabulary_misses, max_size=2), st.just((InvalidArgument,))),
    st.tuples(st.just("append"), st.sampled_from([None, 3, [3], [[1.5]], [[]]]), st.just((InvalidArgument,))),
    st.tuples(st.just("score"), vocabulary_misses, st.just((InvalidArgument,))),
    st.tuples(st.just("tree"), st.integers(-(2**70), 2**70), st.just((UnknownNode,))),
    st.tuples(st.just("lease"), st.integers(1, 2**20), st.just((UnknownNode,))),
    st.tuples(st.just("lease unopened"), st.integers(10**6, 2**20 - 1), st.just((LeaseExpired,))),
    st.tuples(st.just("epoch of the manager"), st.integers(max_value=-1), st.just((StaleEpoch,))),
    st.tuples(st.just("epoch of a worker"), st.integers(1, 2**40), st.just((StaleEpoch,))),
    st.tuples(st.just("node"), st.one_of(st.integers(max_value=-1), st.integers(100)), st.just((UnknownNode,))),
    st.tuples(st.just("ref"), st.one_of(st.none(), st.text(), st.integers()), st.just((InvalidArgument,))),
)


async def ask(cluster: Cluster, root: ClusterNode, what: str, value: Any) -> object:
    match what:
        case "n":
            return await cluster.expand(root, value, PARAMS)
        case "prompt":
            return await cluster.prefill(value)
        case "append":
            return await cluster.append(root, value)
        case "score":
            return await cluster.score(root, value)
        case "tree":
            return await cluster.expand(root._replace(tree=value), 1, PARAMS)
        case "lease":
            return await cluster.value(root._replace(tree=root.tree + value * IDS_PER_LEASE))
        case "lease unopened":
            return await call(cluster.actors.manager.place.remote([value * IDS_PER_LEASE]), "the manager")
        case "epoch of the manager":
            reply = cluster.actors.workers[root.worker].reclaim.remote(root.tree // IDS_PER_LEASE, True, value)
            return await call(reply, "a worker")
        case "epoch of a worker":
            batch = Batch(root.worker, -value, 0, 0, (), None)
            return await call(cluster.actors.manager.apply.remote(batch), "the manager")
        case "node":
            return await cluster.append(root._replace(node=value), [PROMPT])
        case _:
            return await cluster.expand(value, 1, PARAMS)


async def all_refused(cluster: Cluster, asked: list[Case]) -> None:
    root = await cluster.prefill(PROMPT)
    try:
        answers = await asyncio.gather(
            *(ask(cluster, root, what, value) for what, value, _ in asked), return_exceptions=True
        )
        for (what, value, kinds), answer in zip(asked, answers, strict=True):
            assert isinstance(answer, kinds), (what, value, answer)
        assert len(await cluster.expand(root, 1, PARAMS)) == 1, "the cluster still works"
        workers = await cluster.worker_stats(fresh=True)
        assert sum(worker.live_nodes for worker in workers) == 2
        assert sum(worker.in_flight for worker in workers) == 0
        assert sum(worker.engine.pages_held for worker in workers) > 0
    finally:
        await cluster.release(root, subtree=True)
    workers = await cluster.worker_stats(fresh=True)
    assert sum(worker.live_nodes + worker.engine.pages_held for worker in workers) == 0


async def test_bad_input_is_refused_by_name(cluster: Cluster) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(cases, min_size=4, max_size=16))
    def fuzz(asked: list[Case]) -> None:
        asyncio.run_coroutine_threadsafe(all_refused(cluster, asked), loop).result(60)

    await asyncio.to_thread(fuzz)
