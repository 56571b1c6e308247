"""Many problems at once: each solved on its own, results as they come."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from dendrite.errors import DendriteError, InvalidArgument
from dendrite.files import append
from dendrite.search.backend import Backend, BackendStats
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import DEFAULT_BUDGET, run_search_async
from dendrite.search.task import Task
from dendrite.search.values import Values

if TYPE_CHECKING:
    from dendrite.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one problem of a job: a result, or the error that its search ended with."""

    index: int
    task: Task
    result: SearchResult | None
    error: DendriteError | None = None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values: the result's fields after `index`, or `task`, `error` and `message`."""
        if self.result is not None:
            return {"index": self.index, **self.result.to_dict()}
        error = {"error": type(self.error).__name__, "message": str(self.error)}
        return {"index": self.index, "task": self.task.name, **error}


class Solver(Protocol):
    """What solves jobs: a cluster, or an engine in this process."""

    def solve_many(
        self,
        tasks: Iterable[Task],
        algorithm: str = ...,
        budget: Budget = ...,
        seed: int = ...,
        *,
        concurrency: int = ...,
        values: Values = ...,
        oracle: bool = ...,
        ordered: bool = ...,
        traces: Path | None = ...,
        resume: bool = ...,
        **options: Any,
    ) -> AsyncGenerator[Outcome, None]:
        """Search all problems, at most `concurrency` at once, and yield each outcome when it is there.

        Every problem has the same seed, so that its result does not depend on which others there are. `values`,
        `oracle` and `ordered` are as in `run_search`, and `options` are the algorithm's. With `traces` each search
        writes its trace into that folder, under its number (see `trace_path`), and with `resume` takes up the one that
        is there. Closing the iterator cancels what is under way and waits until nothing of it is left.
        """
        ...

    async def stats(self) -> BackendStats:
        """Totals so far."""
        ...


class LocalSolver:
    """Solves jobs on one engine of this process; the searches share its running batch."""

    def __init__(self, engine: Engine) -> None:
        from dendrite.engine.async_engine import AsyncEngine  # loads torch, which a solver on a cluster does without

        self._backend: Backend = AsyncEngine(engine)

    def solve_many(
        self,
        tasks: Iterable[Task],
        algorithm: str = "mcts",
        budget: Budget = DEFAULT_BUDGET,
        seed: int = 0,
        *,
        concurrency: int = 8,
        values: Values = "head",
        oracle: bool = False,
        ordered: bool = False,
        traces: Path | None = None,
        resume: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Outcome, None]:
        """See `Solver.solve_many`."""

        async def solve(index: int, task: Task) -> SearchResult:
            return await run_search_async(
                task,
                self._backend,
                algorithm,
                budget,
                seed,
                values=values,
                oracle=oracle,
                ordered=ordered,
                trace=trace_path(traces, index),
                resume=resume,
                **options,
            )

        return as_solved(tasks, solve, concurrency)

    async def stats(self) -> BackendStats:
        """Totals of the engine."""
        return await self._backend.stats()


Solve: TypeAlias = Callable[[int, Task], Awaitable[SearchResult]]
"""Searches one problem, which is told by its place among them too."""


def trace_path(traces: Path | None, index: int) -> Path | None:
    """Where the search of the problem of this `index` keeps its trace: 00000.jsonl and so on."""
    return None if traces is None else traces / f"{index:05}.jsonl"


async def as_solved(tasks: Iterable[Task], solve: Solve, concurrency: int) -> AsyncGenerator[Outcome, None]:
    """Run `solve` on every task, at most `concurrency` at once, and yield each outcome when it is there.

    A `DendriteError` ends its own problem alone; any other error ends the job. Leaving early cancels what is under
    way and waits for it.

    Raises:
        InvalidArgument: `concurrency` is below 1.
    """
    if concurrency < 1:
        raise InvalidArgument("concurrency", concurrency, "must be at least 1")
    waiting = enumerate(tasks)
    running: set[asyncio.Task[Outcome]] = set()
    try:
        while True:
            while len(running) < concurrency and (following := next(waiting, None)) is not None:
                running.add(asyncio.ensure_future(_outcome(*following, solve)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for outcome in sorted((task.result() for task in done), key=lambda outcome: outcome.index):
                yield outcome
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _outcome(index: int, task: Task, solve: Solve) -> Outcome:
    try:
        return Outcome(index, task, await solve(index, task))
    except DendriteError as error:
        return Outcome(index, task, None, error)


class OutcomeFile:
    """Outcomes as JSONL, one line each, written whole: however the process ends, the file holds complete lines.

    Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, or empty it, and make its folder.

        Raises:
            InvalidArgument: it cannot be written there.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, outcome: Outcome) -> None:
        """Append one line.

        Raises:
            InvalidArgument: it cannot be written; the lines before it stay whole.
        """
        try:
            append(self._file, json.dumps(outcome.to_dict()).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InvalidArgument:
        return InvalidArgument("out", str(self._path), f"cannot be written: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
