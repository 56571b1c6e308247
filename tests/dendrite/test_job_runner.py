"""Working through a job: attempts, failures, and that it ends the same however often it is interrupted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.engine.engine import Engine
from dendrite.errors import Cancelled, ClusterError, InvalidArgument
from dendrite.job_file import JobFile, task_digest
from dendrite.job_runner import Searches, SolverLost, Traces, run_job
from dendrite.jobs import LocalSolver, Outcome, as_solved
from dendrite.search.backend import BackendStats
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.task import Split, Task
from dendrite.search.tasks.countdown import Countdown
from tests.tiny_model import write_tiny_model

TASKS = [Countdown((1, number), 1 + number) for number in range(2, 8)]
INPUTS = [task_digest(task) for task in TASKS]


class Scripted:
    """A solver of which each problem fails as often, and with the error, that it is told."""

    def __init__(self, failures: dict[int, list[Exception]], lost: bool = False) -> None:
        self.failures, self.lost = failures, lost
        self.calls: list[int] = []

    def solve_many(self, tasks: Iterable[Task], *_: Any, concurrency: int = 1, **__: Any) -> AsyncGenerator[Outcome]:
        async def solve(_: int, task: Task) -> SearchResult:
            index = TASKS.index(task)  # type: ignore[arg-type]
            self.calls.append(index)
            if self.failures.get(index):
                raise self.failures[index].pop(0)
            return SearchResult("mcts", task.name, 0, True, 1.0, "", "1+2", 5, 1, 0.1, 2, "solved")

        return as_solved(tasks, solve, concurrency)

    async def stats(self) -> BackendStats:
        if self.lost:
            raise ClusterError("worker 0 is not alive")
        return BackendStats(0, 0, 0, 0, 0, 0, 0.0)


async def work(solver: Any, path: Path, **options: Any) -> list[int]:
    with JobFile(path, INPUTS) as file:
        return [each.index async for each in run_job(solver, file, TASKS, Searches(), backoff_s=0.001, **options)]


def lines(path: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: int(line["index"]))


async def test_attempts_are_counted_and_failures_told(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    given_up = [Cancelled("given up") for _ in range(9)]
    solver = Scripted(
        {1: [ClusterError("worker 0 is not alive")], 3: list(given_up), 4: [ZeroDivisionError("by zero")] * 9}
    )
    assert sorted(await work(solver, path, attempts=2)) == list(range(6))
    found = lines(path)
    assert [line["attempts"] for line in found] == [1, 2, 1, 2, 2, 1]
    assert [(line.get("error"), line.get("message")) for line in found] == [
        *[(None, None)] * 3,
        ("Cancelled", "given up"),
        ("SearchFailed", "ZeroDivisionError: by zero"),
        (None, None),
    ]
    assert await work(solver, path) == []
    again = Scripted({4: [ZeroDivisionError("by zero")]})
    assert sorted(await work(again, path, attempts=1, retry_failed=True)) == [3, 4]
    assert again.calls == [3, 4]
    with JobFile(path, INPUTS) as file:
        file.compact()
        assert [file.contents.entries[index].attempts for index in (3, 4)] == [3, 3]
        assert file.pending(retry_failed=True) == [4]


async def test_a_lost_cluster_ends_the_run_and_fails_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    gone = [ClusterError("worker 0 is not alive") for _ in range(9)]
    with pytest.raises(SolverLost, match="the cluster is lost: worker 0 is not alive"):
        await work(Scripted({2: list(gone)}, lost=True), path, attempts=2, concurrency=1)
    assert [line["index"] for line in lines(path)] == [0, 1]
    assert await work(Scripted({2: list(gone)}), path, attempts=2, concurrency=1) == [2, 3, 4, 5]
    assert lines(path)[2]["error"] == "ClusterError"


async def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="attempts"):
        await work(Scripted({}), tmp_path / "o.jsonl", attempts=0)
    with pytest.raises(InvalidArgument, match="concurrency"):
        await work(Scripted({}), tmp_path / "o.jsonl", concurrency=0)
    with JobFile(tmp_path / "o.jsonl", INPUTS[:2]) as file, pytest.raises(InvalidArgument, match="tasks"):
        await anext(run_job(Scripted({}), file, TASKS, Searches()))


class Short(Task):
    """A few bytes of the tiny model, judged by their number of vowels."""

    max_depth = 4
    split = Split(max_tokens=6)

    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def name(self) -> str:
        return f"short {self.number}"

    @property
    def prompt(self) -> str:
        return f"number {self.number}\n"

    def is_terminal(self, text: str) -> bool:
        return len(text) > 20

    def reward(self, text: str) -> float:
        return sum(letter in "aeiou" for letter in text) / (1 + len(text))


SHORT = [Short(number) for number in range(4)]
SHORT_INPUTS = [task_digest(task) for task in SHORT]
HOW = Searches(budget=Budget(tokens=60), seed=3, options={"in_flight": 1})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("model"))) as engine:
        yield engine


async def search(engine: Engine, path: Path, traces: Path, most: int) -> None:
    """Go on with the job until so many problems have ended in this run."""
    with JobFile(path, SHORT_INPUTS) as file:
        outcomes = run_job(LocalSolver(engine), file, SHORT, HOW, concurrency=2, traces=traces)
        async with aclosing(outcomes):
            while most and await anext(outcomes, None) is not None:
                most -= 1


def told(path: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0, "elapsed": 0} for line in lines(path)]


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


Interruption = st.tuples(st.integers(0, 3), st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=6, deadline=None)
@given(interruptions=st.lists(Interruption, min_size=1, max_size=3))
async def test_a_job_ends_the_same_wherever_its_files_are_cut(
    engine: Engine, whole: list[dict[str, Any]], interruptions: list[tuple[int, float, float]]
) -> None:
    with TemporaryDirectory() as folder:
        path, traces = Path(folder) / "o.jsonl", Path(folder) / "traces"
        for most, share, trace_share in interruptions:
            await search(engine, path, traces, most)
            truncate(path, share)
            for trace in traces.rglob("*.jsonl"):
                truncate(trace, trace_share)
        await search(engine, path, traces, len(SHORT))
        assert told(path) == whole
        assert sorted(each.name for each in traces.iterdir()) == [f"{index:05}.jsonl" for index in range(len(SHORT))]
    assert engine.stats().pages_held == 0


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    asyncio.run(search(engine, folder / "o.jsonl", folder / "traces", len(SHORT)))
    found = told(folder / "o.jsonl")
    assert [line["index"] for line in found] == list(range(len(SHORT)))
    assert all(line["attempts"] == 1 and line["expansions"] > 2 for line in found)
    return found


async def test_searches_under_way_go_on_from_their_traces(engine: Engine, tmp_path: Path) -> None:
    path, traces = tmp_path / "o.jsonl", tmp_path / "traces"
    await search(engine, path, traces, len(SHORT))
    before = told(path)
    decoded = engine.stats().decode_tokens
    # As if the process had been killed when the last two searches were nearly done.
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    done = [line["index"] for line in lines(path)]
    for index in set(range(len(SHORT))) - set(done):
        where = traces / f"{index:05}"
        where.mkdir()
        trace = where / "00000.jsonl"
        (traces / f"{index:05}.jsonl").rename(trace)
        trace.write_bytes(b"".join(trace.read_bytes().splitlines(keepends=True)[:-4]))
    await search(engine, path, traces, len(SHORT))
    assert told(path) == before
    assert engine.stats().decode_tokens - decoded < 60, "one search alone would have cost that"


async def test_a_trace_of_another_search_is_dropped(engine: Engine, tmp_path: Path) -> None:
    path, traces = tmp_path / "o.jsonl", tmp_path / "traces"
    (traces / "00001").mkdir(parents=True)
    (traces / "00001" / "00000.jsonl").write_text('{"event": "search", "schema": 99}\n' * 2)
    await search(engine, path, traces, len(SHORT))
    assert [(line["attempts"], "error" in line) for line in lines(path)] == [(1, False)] * len(SHORT)


def test_what_a_dying_process_appends_goes_nowhere(tmp_path: Path) -> None:
    traces = Traces(tmp_path)
    trace = tmp_path / "00003" / "00000.jsonl"
    trace.parent.mkdir()
    with trace.open("w") as dying:
        dying.write("whole\n")
        dying.flush()
        assert traces.begin(3) == trace.parent
        dying.write("late\n")
    assert trace.read_text() == "whole\n"
    traces.settle(3)
    assert [each.name for each in tmp_path.iterdir()] == ["00003.jsonl"]
    assert not traces.drop(3)
