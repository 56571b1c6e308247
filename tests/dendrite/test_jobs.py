from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dendrite.engine.engine import Engine
from dendrite.errors import Cancelled, InvalidArgument
from dendrite.jobs import LocalSolver, Outcome, OutcomeFile, as_solved
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.task import Split, Task
from dendrite.search.tasks.countdown import Countdown
from tests.full_disk import full_disk

TASKS = [Countdown((1, number), 1 + number) for number in range(2, 8)]


def solved(task: Task) -> SearchResult:
    return SearchResult("mcts", task.name, 0, True, 1.0, "", "1+2", 5, 1, 0.1, 2, "solved")


async def test_outcomes_come_as_they_are_ready_and_no_more_run_than_allowed() -> None:
    running, most = 0, 0

    async def solve(_: int, task: Task) -> SearchResult:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05 if task is TASKS[0] else 0.001)
        running -= 1
        return solved(task)

    order = [outcome.index async for outcome in as_solved(TASKS, solve, concurrency=2)]
    assert sorted(order) == list(range(6))
    assert order[-1] == 0
    assert most == 2


async def test_tasks_are_drawn_when_there_is_room() -> None:
    drawn: list[Task] = []

    def endless() -> Iterator[Task]:
        for number in range(2, 1_000):
            drawn.append(Countdown((1, number), 5))
            yield drawn[-1]

    async def solve(_: int, task: Task) -> SearchResult:
        return solved(task)

    outcomes = as_solved(endless(), solve, concurrency=3)
    await anext(outcomes)
    await outcomes.aclose()
    assert len(drawn) <= 6


async def test_an_expected_error_ends_its_own_problem_alone() -> None:
    async def solve(_: int, task: Task) -> SearchResult:
        if task is TASKS[1]:
            raise Cancelled("given up")
        return solved(task)

    outcomes = {outcome.index: outcome async for outcome in as_solved(TASKS, solve, concurrency=3)}
    assert [index for index, outcome in outcomes.items() if outcome.error] == [1]
    expected = {"index": 1, "task": "countdown 1 3 = 4", "error": "Cancelled", "message": "given up"}
    assert outcomes[1].to_dict() == expected


async def test_an_unexpected_error_ends_the_job() -> None:
    ended = []

    async def solve(_: int, task: Task) -> SearchResult:
        if task is TASKS[0]:
            raise ZeroDivisionError
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(task)
        return solved(task)

    with pytest.raises(ZeroDivisionError):
        _ = [outcome async for outcome in as_solved(TASKS, solve, concurrency=3)]
    assert set(ended) == set(TASKS[1:3])


async def test_there_is_room_for_one_problem_at_least() -> None:
    with pytest.raises(InvalidArgument, match="concurrency"):
        await anext(as_solved(TASKS, lambda _, task: asyncio.sleep(0, solved(task)), concurrency=0))


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
        return len(text) >= 16

    def reward(self, text: str) -> float:
        return 1.0


@pytest.mark.parametrize("oracle", [False, True])
async def test_values_and_oracle_reach_each_search(oracle: bool) -> None:
    seen = []

    def function(prompt: str, text: str) -> float:
        seen.append(text)
        return 0.5

    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as engine:
        solver = LocalSolver(engine)
        outcomes = solver.solve_many([Secret()] * 2, budget=Budget(reward_calls=4), values=function, oracle=oracle)
        results = [outcome.result async for outcome in outcomes]
        assert engine.stats().pages_held == 0
    for result in results:
        assert result is not None
        assert (result.oracle, result.stop_reason == "solved") == (oracle, oracle)
        assert 0 < result.reward_calls <= 4
    assert len(seen) >= sum(result.reward_calls for result in results if result is not None)


def test_every_line_is_there_once_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with OutcomeFile(path) as file:
        for index, task in enumerate(TASKS):
            file.write(Outcome(index, task, solved(task)))
            lines = path.read_text().splitlines()
            assert [json.loads(line)["index"] for line in lines] == list(range(index + 1))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"out=.*cannot be written: Is a directory"):
        OutcomeFile(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="out="):
        OutcomeFile(tmp_path / "file" / "out.jsonl")


def test_a_line_that_the_disk_had_no_room_for_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutcomeFile(path) as file:
        file.write(Outcome(0, TASKS[0], solved(TASKS[0])))
        whole = path.read_bytes()
        with full_disk(len(whole) + 20), pytest.raises(InvalidArgument, match=r"out=.*cannot be written"):
            file.write(Outcome(1, TASKS[1], solved(TASKS[1])))
        assert path.read_bytes() == whole
