"""Whole searches on the cluster's search drivers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from actors import Cluster
from dendrite import run_search
from dendrite.errors import InvalidArgument
from dendrite.jobs import Outcome
from dendrite.search.budget import Budget
from dendrite.search.task import Split, Task
from dendrite.search.tasks.countdown import problems

BUDGET = Budget(tokens=600)


async def solve(cluster: Cluster, count: int, algorithm: str = "mcts", **options: Any) -> list[Outcome]:
    tasks = problems(count, seed=2)
    return [outcome async for outcome in cluster.solve_many(tasks, algorithm, BUDGET, 7, **options)]


async def test_twenty_problems_leave_no_page_behind(cluster: Cluster) -> None:
    outcomes = await solve(cluster, 20, concurrency=8, in_flight=2)
    assert sorted(outcome.index for outcome in outcomes) == list(range(20))
    results = [outcome.result for outcome in outcomes]
    assert all(result is not None and 0 < result.tokens <= 600 for result in results)
    workers = await cluster.worker_stats(fresh=True)
    assert all(worker.engine.forks > 0 for worker in workers)
    stats = await cluster.manager_stats()
    assert stats.leases == 1
    assert stats.live_nodes == tuple(worker.live_nodes for worker in workers) == (0, 0)
    assert [load.pages_held for load in stats.loads] == [worker.engine.pages_held for worker in workers] == [0, 0]


@pytest.mark.parametrize("algorithm", ["best_of_n", "greedy"])
async def test_every_algorithm_runs(cluster: Cluster, algorithm: str) -> None:
    [outcome] = await solve(cluster, 1, algorithm)
    assert outcome.result is not None
    assert outcome.result.algorithm == algorithm


async def test_an_error_ends_its_own_problem(cluster: Cluster) -> None:
    outcomes = await solve(cluster, 2, "mcts", widening=3)
    assert [type(outcome.error) for outcome in outcomes] == [InvalidArgument] * 2
    assert outcomes[0].to_dict()["error"] == "InvalidArgument"


@dataclass(frozen=True)
class Secret(Task):
    """Its reward consults an answer that the prompt does not tell."""

    prompt: str = "Guess.\n"
    oracle: bool = True
    max_depth: int = 2

    @property
    def split(self) -> Split:
        return Split(8)

    def is_terminal(self, text: str) -> bool:
        return text.count("\n") >= 2 or len(text) >= 16

    def reward(self, text: str) -> float:
        return 1.0


async def test_values_and_oracle_reach_the_drivers(cluster: Cluster) -> None:
    def longer(prompt: str, text: str) -> float:
        return len(text) / (1 + len(text))

    budget = Budget(tokens=200, reward_calls=5)
    blind, seeing = [
        [each async for each in cluster.solve_many([Secret()], "mcts", budget, 3, values=longer, oracle=oracle)]
        for oracle in (False, True)
    ]
    for [outcome], oracle in ((blind, False), (seeing, True)):
        assert outcome.result is not None, outcome.error
        assert outcome.result.oracle is oracle
        assert 0 < outcome.result.reward_calls <= 5
    assert seeing[0].result is not None
    assert seeing[0].result.stop_reason == "solved"


async def test_a_function_that_gives_no_value_ends_its_own_problem(cluster: Cluster) -> None:
    [outcome] = await solve(cluster, 1, values=lambda prompt, text: 2.0)
    assert isinstance(outcome.error, InvalidArgument)
    assert outcome.error.field == "values"


async def test_leaving_early_cancels_the_searches(cluster: Cluster) -> None:
    outcomes = cluster.solve_many(problems(12, seed=3), budget=Budget(seconds=60), concurrency=4)
    pending = asyncio.create_task(anext(outcomes))
    await asyncio.sleep(0.5)
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await outcomes.aclose()
    assert sum(worker.live_nodes for worker in await cluster.worker_stats()) == 0
    assert (await cluster.manager_stats()).leases == 1


async def test_a_search_in_this_process_runs_on_the_workers(cluster: Cluster) -> None:
    [task] = problems(1, seed=4)
    result = await asyncio.to_thread(run_search, task, cluster, "mcts", BUDGET, 1)
    [other] = [outcome async for outcome in cluster.solve_many([task], "mcts", BUDGET, 1)]
    assert result.tokens > 0
    assert other.result is not None


async def test_map_search_needs_no_event_loop(cluster: Cluster) -> None:
    def first() -> Outcome:
        outcomes = cluster.map_search(problems(4, seed=5), budget=BUDGET)
        return next(outcomes)

    assert (await asyncio.to_thread(first)).result is not None
