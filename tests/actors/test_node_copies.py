"""Copies of nodes on other workers: two workers, their manager and a client, all in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.cluster_client import ClusterClient
from actors.fleet import Fleet
from actors.model_worker import ModelWorker
from actors.refs import Given
from actors.replication import Policy, Replicator
from actors.routing import Router
from dendrite.config import EngineConfig, SamplingParams
from dendrite.errors import ClusterError, UnknownNode
from tests.actors.in_process import LocalHandle, cluster_of, lent

PROMPT = list(b"Numbers: 3 7 8 25. Target: 99.\n" * 4)
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


class Client(ClusterClient):
    """A client that takes a worker for busy when told to."""

    def __init__(self, manager: LocalHandle, workers: list[LocalHandle], lease: int, policy: Policy) -> None:
        fleet = Fleet(workers)
        router = Router(fleet, Replicator(fleet, policy))
        super().__init__(manager, workers, lease, fleet=fleet, router=router)
        self.workers: list[ModelWorker] = [handle.actor for handle in workers]  # type: ignore[misc]

    def busy(self, worker: int, waited_s: float = 100.0) -> None:
        """As if a call were under way there, and the last ones had waited so long."""
        for other in range(len(self.workers)):
            self._fleet.rates(other).waited_s = waited_s if other == worker else 0.0
            self._fleet._workers[other].in_flight = int(other == worker)


@pytest.fixture
def policy() -> Policy:
    return "transfer"


@pytest.fixture
async def client(tiny_model: Path, policy: Policy) -> AsyncIterator[Client]:
    config = EngineConfig(device="cpu", kv_tokens=512, debug_checks=True)
    async with cluster_of(tiny_model, workers=2, config=config) as (manager, workers):
        lease = await manager.open_lease.remote()
        made = Client(manager, workers, lease.id, policy)
        async with lent(made, manager, lease.id):
            yield made


async def engines(client: Client) -> list[tuple[int, int]]:
    """Tokens that each worker has computed and got."""
    found = [worker.engine for worker in await client.worker_stats(fresh=True)]
    return [(engine.prefill_tokens, engine.imported_tokens) for engine in found]


async def test_a_copy_of_a_path_whose_root_was_given_up_is_cut_from_a_held_one(client: Client) -> None:
    root = await client.prefill(PROMPT)
    kids = [(await client.expand(root, 1, GREEDY))[0], *await client.append(root, [[7, 8, 9]])]
    await client.release(root)
    home, other = root.worker, 1 - root.worker
    expected = [(await client.expand(kid.node, 1, GREEDY))[0].tokens for kid in kids]
    computed = (await engines(client))[home]
    client.busy(home)
    found = [(await client.expand(kid.node, 1, GREEDY))[0] for kid in kids]
    assert [branch.node.worker for branch in found] == [other, other]
    assert [branch.tokens for branch in found] == expected
    assert (await engines(client))[other] == (0, len(PROMPT) + 12 + 3), "the root's part once"
    assert (await engines(client))[home] == computed
    assert client.replicator.stats.transfers == 3
    stats = await client.manager_stats()
    assert stats.live_nodes[other] == 5, "the root's copy serves both, with two copies and two children below it"
    for kid in kids:
        await client.release(kid.node, subtree=True)


async def test_calls_made_at_once_are_shared_between_the_copies(client: Client) -> None:
    root = await client.prefill(PROMPT)
    client.busy(root.worker)
    await client.expand(root, 1, GREEDY)
    client.busy(root.worker, waited_s=0.0)
    client._fleet._workers[root.worker].in_flight = 0
    found = await asyncio.gather(*(client.expand(root, 1, GREEDY) for _ in range(8)))
    assert Counter(branches[0].node.worker for branches in found) == {0: 4, 1: 4}
    await client.release(root, subtree=True)


async def test_a_node_stays_where_it_is_if_there_are_no_pages_elsewhere(client: Client) -> None:
    root = await client.prefill(PROMPT)
    home, other = root.worker, 1 - root.worker
    held = await client.workers[other].prefill(client._calls.new_id(), client._calls.new_id(), [5] * 450, None)
    before = (await client.worker_stats(fresh=True))[other].engine
    client.busy(home)
    for _ in range(3):
        [branch] = await client.expand(root, 1, GREEDY)
        assert branch.node.worker == home
    assert (await client.worker_stats(fresh=True))[other].engine.pages_held == before.pages_held
    assert client.replicator.stats.refusals == 1, "it is not tried again at once"
    assert client.replicator.decisions == {"transfer": 1, "stay": 3}
    await client.workers[other].release([Given(held.tree, held.node)])


@pytest.mark.parametrize("policy", ["auto"])
async def test_after_a_transfer_that_failed_the_node_is_computed(client: Client) -> None:
    root = await client.prefill(PROMPT)
    home, other = root.worker, 1 - root.worker
    [expected] = await client.expand(root, 1, GREEDY)
    engine = client.workers[home]._engine.engine
    node = client.workers[home]._nodes.get(root.tree, root.node)
    await client.release(expected.node)
    engine.cache.drop(node)  # as happens where pages are short
    client.busy(home)
    [branch] = await client.expand(root, 1, GREEDY)
    assert (branch.node.worker, branch.tokens) == (other, expected.tokens)
    assert client.replicator.decisions == {"transfer": 1, "recompute": 1}
    assert client.replicator.stats.failures == 1
    assert (await engines(client))[other] == (len(PROMPT), 0)
    await client.release(root, subtree=True)


async def test_a_node_whose_worker_dies_while_it_is_moved_is_computed(client: Client) -> None:
    root = await client.prefill(PROMPT)
    home, other = root.worker, 1 - root.worker
    [expected] = await client.expand(root, 1, GREEDY)
    await client.release(expected.node)
    await client.settle()
    dying = client.workers[home]

    async def export_kv(*_: object) -> None:
        client._fleet.lost(home, 0, UnknownNode(root.tree, root.node))
        await dying.reclaim(client._calls.lease, False)
        raise ClusterError("worker 0 is not alive, and may be restarted")

    dying.export_kv = export_kv  # type: ignore[assignment, method-assign]
    client.busy(home)
    [branch] = await client.expand(root, 1, GREEDY)
    assert (branch.node.worker, branch.tokens) == (other, expected.tokens)
    assert await engines(client) == [(len(PROMPT), 0)] * 2
    await client.release(root, subtree=True)


@pytest.mark.parametrize("policy", ["never"])
async def test_without_replication_a_node_stays(client: Client) -> None:
    root = await client.prefill(PROMPT)
    client.busy(root.worker)
    [branch] = await client.expand(root, 1, GREEDY)
    assert branch.node.worker == root.worker
    assert client.replicator.decisions == {"stay": 1}
    await client.release(root, subtree=True)
