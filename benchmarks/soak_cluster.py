"""Random operations on a cluster's workers by messages, as a search makes them, and whole searches by a driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.cluster_client import ClusterClient
from actors.driver_pool import DriverPool
from actors.fleet import Fleet
from actors.lease_keeper import LeaseKeeper
from actors.leases import Lease
from actors.peers import peers
from actors.recovery import RecoveryStats
from actors.rpc import Handle, call
from actors.search_driver import SearchDriver, SearchJob
from actors.worker_calls import WorkerCalls
from benchmarks.soak_tally import Operation
from dendrite.config import SamplingParams
from dendrite.errors import Cancelled, LeaseExpired, NodeReleased, UnknownNode
from dendrite.grammar.spec import Grammar
from dendrite.search.backend import NodeRef
from dendrite.search.budget import Budget
from dendrite.search.task import Task

_MOST_TREES, _MOST_NODES = 24, 32
_UNIQUE_TOKENS = 256
_RACED = (NodeReleased, Cancelled)
"""What an operation on a tree may meet where another one has released the tree meanwhile."""
_ALGORITHMS = ("mcts", "best_of_n", "beam", "self_consistency")


@dataclass
class _Tree:
    root: NodeRef
    nodes: list[NodeRef] = field(default_factory=list)


class ClusterOperations:
    """Holds some trees on a cluster, grows them, and gives them up."""

    def __init__(self, manager: Handle, workers: Sequence[Handle], lease: Lease, driver_lease: Lease) -> None:
        """Use a cluster under two open leases: one for the nodes, and one for the calls of a search driver."""
        self._manager, self._workers = manager, workers
        fleet = Fleet(workers)
        self.client = ClusterClient(manager, workers, lease.id, fleet=fleet)
        self._leases = (lease, driver_lease)
        self._keeper = LeaseKeeper(manager, lease.ttl_s)
        for each in self._leases:
            self._keeper.add(each.id)
        options = {"num_cpus": 0, "max_concurrency": 64}
        made = ray.remote(SearchDriver).options(**options)
        self._driver: Handle = made.remote(peers([manager, *workers]), lease.ttl_s)
        self._calls = WorkerCalls(manager, driver_lease.id, fleet)
        self._drivers = DriverPool([self._driver], self._calls, RecoveryStats())
        self._trees: list[_Tree] = []
        self.tasks: Sequence[Task] = ()
        self._grammars = 0

    @property
    def drivers(self) -> list[Handle]:
        """The search drivers that searches run on."""
        return [self._driver]

    @property
    def operations(self) -> list[Operation]:
        """Everything but the expiry of leases, which takes as long as leases last."""
        return [
            Operation("plant", self._plant, 2),
            Operation("fork", self._fork, 6, _RACED),
            Operation("decode", self._decode, 3),
            Operation("score", self._score, 3, _RACED),
            Operation("release", self._release, 2),
            Operation("cancel", self._cancel, 2),
            Operation("constrained", self._constrained, 2),
            Operation("search", self._search, 1),
            Operation("search_cancelled", self._search_cancelled, 1),
        ]

    async def warm_up(self, draws: random.Random) -> None:
        """Have the search driver's process there, and each page of the workers' used: memory is taken at first use."""
        await call(self._driver.__ray_ready__.remote(), "the search driver")

        async def used() -> None:
            root = await self.client.prefill([draws.randrange(30) for _ in range(_UNIQUE_TOKENS)])
            await self.client.release(root)

        while not all(worker.engine.evicted_pages for worker in await self.client.worker_stats(fresh=True)):
            await asyncio.gather(*(used() for _ in range(8)))

    async def expire(self, draws: random.Random) -> None:
        """Hold nodes under a lease that nobody renews, until they are gone.

        Raises:
            AssertionError: they still could be used.
        """
        lease: Lease = await call(self._manager.open_lease.remote(), "the tree manager")
        client = ClusterClient(self._manager, self._workers, lease.id)
        root = await client.prefill(self._prompt(draws))
        await client.expand(root, 3, SamplingParams(max_tokens=8))
        await asyncio.sleep(1.5 * lease.ttl_s)  # the manager looks for leases that are over every quarter of that
        try:
            await client.expand(root, 1, SamplingParams(max_tokens=1))
        except (LeaseExpired, UnknownNode):
            return
        raise AssertionError("a node outlives its lease")

    async def close(self) -> None:
        """Release everything, and end the driver and the leases."""
        for tree in self._trees:
            await self.client.release(tree.root, subtree=True)
        self._trees.clear()
        await self.client.settle()
        await self._calls.settle()
        await asyncio.to_thread(self._keeper.close)
        for lease in self._leases:
            await call(self._manager.close_lease.remote(lease.id), "the tree manager")

    def end(self) -> None:
        """End the search driver."""
        ray.kill(self._driver)

    # ---------------------------------------------------------------- what is done

    async def _plant(self, draws: random.Random) -> None:
        if len(self._trees) < _MOST_TREES:
            root = await self.client.prefill(self._prompt(draws))
            self._trees.append(_Tree(root, [root]))

    async def _fork(self, draws: random.Random) -> None:
        tree = self._some_tree(draws)
        if tree is None or len(tree.nodes) >= _MOST_NODES:
            return await self._plant(draws)
        params = SamplingParams(max_tokens=draws.randint(1, 24), seed=draws.getrandbits(32))
        branches = await self.client.expand(draws.choice(tree.nodes), draws.randint(1, 4), params)
        tree.nodes += [branch.node for branch in branches]
        return None

    async def _decode(self, draws: random.Random) -> None:
        root = await self.client.prefill(self._prompt(draws))
        try:
            await self.client.expand(root, draws.randint(1, 8), SamplingParams(max_tokens=48))
        finally:
            await self.client.release(root, subtree=True)

    async def _score(self, draws: random.Random) -> None:
        tree = self._some_tree(draws)
        if tree is not None:
            await self.client.score(draws.choice(tree.nodes), [draws.randrange(30) for _ in range(draws.randint(1, 8))])

    async def _release(self, draws: random.Random) -> None:
        tree = self._some_tree(draws)
        if tree is not None:
            if len(tree.nodes) > 1 and draws.random() < 0.5:
                await self.client.release(tree.nodes.pop(draws.randrange(1, len(tree.nodes))))
            else:
                self._trees.remove(tree)
                await self.client.release(tree.root, subtree=True)

    async def _cancel(self, draws: random.Random) -> None:
        root = await self.client.prefill(self._prompt(draws))
        try:
            grown = self.client.expand(root, 8, SamplingParams(max_tokens=200, ignore_eos=True))
            await _cancelled(grown, 0.3 * draws.random())
        finally:
            await self.client.release(root, subtree=True)

    async def _constrained(self, draws: random.Random) -> None:
        """Mostly by one of few grammars, and now and then by a new one, which has to be compiled."""
        if draws.random() < 0.1:
            self._grammars += 1
        number = self._grammars if draws.random() < 0.5 else draws.randrange(4)
        grammar = Grammar(regex=rf"[0-9]{{1,3}}[-+*/][0-9]{{1,3}}={number}[0-9]{{0,2}}")
        root = await self.client.prefill(self._prompt(draws))
        try:
            branches = await self.client.expand(root, 2, SamplingParams(max_tokens=16, grammar=grammar))
            for branch in branches:
                if branch.error is not None:
                    raise branch.error
        finally:
            await self.client.release(root, subtree=True)

    async def _search(self, draws: random.Random) -> None:
        await self._drivers.solve(self._job(draws, tokens=300))

    async def _search_cancelled(self, draws: random.Random) -> None:
        await _cancelled(self._drivers.solve(self._job(draws, tokens=4_000)), 0.5 * draws.random())

    # ---------------------------------------------------------------- helpers

    def _job(self, draws: random.Random, tokens: int) -> SearchJob:
        return SearchJob(
            draws.choice(self.tasks), draws.choice(_ALGORITHMS), Budget(tokens=tokens), draws.getrandbits(32)
        )

    def _prompt(self, draws: random.Random) -> str:
        return draws.choice(self.tasks).prompt

    def _some_tree(self, draws: random.Random) -> _Tree | None:
        return draws.choice(self._trees) if self._trees else None


async def _cancelled(work: Awaitable[Any], after_s: float) -> None:
    """Begin something, and cancel it after a while unless it has ended."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task], timeout=after_s)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
