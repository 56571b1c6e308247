"""Working through a job: the problems without a result, each tried a few times, each result on the disk at once."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dendrite.errors import ClusterError, DendriteError, InvalidArgument, TraceError
from dendrite.job_file import JobFile
from dendrite.jobs import Outcome, Solver, as_solved, trace_path
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import DEFAULT_BUDGET
from dendrite.search.task import Task
from dendrite.search.values import Values

_LONGEST_WAIT_S = 30.0


class SearchFailed(DendriteError):
    """A search ended with an error of the problem's own code: names its type, and what it says."""

    def __init__(self, error: Exception) -> None:
        self.kind = type(error).__name__
        super().__init__(f"{self.kind}: {error}")


class SolverLost(ClusterError):
    """What solves the job has failed as a whole, so that the problems are not to blame; they have no result yet."""


@dataclass(frozen=True, slots=True)
class Searches:
    """How a job searches its problems: arguments of `Solver.solve_many`."""

    algorithm: str = "mcts"
    budget: Budget = DEFAULT_BUDGET
    seed: int = 0
    values: Values = "head"
    oracle: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


async def run_job(
    solver: Solver,
    file: JobFile,
    tasks: Sequence[Task],
    searches: Searches,
    *,
    concurrency: int = 8,
    attempts: int = 3,
    traces: Path | None = None,
    retry_failed: bool = False,
    backoff_s: float = 1.0,
) -> AsyncGenerator[Outcome, None]:
    """Search the problems that have no result in `file`, and yield each outcome once its line is written.

    Closing the iterator cancels what is under way and waits for its end; the same call goes on from there. Errors of a
    problem's own code are failures of that problem, too.

    Args:
        solver: what searches them.
        file: of the results.
        tasks: all problems of the job, those with a result too.
        searches: how they are searched.
        concurrency: most problems at once.
        attempts: how often a problem is tried before its failure is written.
        traces: folder for the searches' traces (see `Traces`), from which searches that were under way go on.
        retry_failed: search the problems that failed once more.
        backoff_s: wait before the second attempt after an error of the cluster; it doubles with each.

    Raises:
        InvalidArgument: `concurrency` or `attempts` is below 1, or the tasks are not those of the file.
        SolverLost: the solver has failed, and no longer answers.
        JobFileError: a result cannot be written.
    """
    if attempts < 1:
        raise InvalidArgument("attempts", attempts, "must be at least 1")
    if len(tasks) != len(file.inputs):
        raise InvalidArgument("tasks", len(tasks), f"must be the {len(file.inputs)} problems of {file.path}")
    kept = Traces(traces) if traces is not None else None
    pending = file.pending(retry_failed=retry_failed)
    if kept is not None:
        kept.settle_all(file)
    run = _Run(solver, searches, attempts, kept, backoff_s)
    file.begin(len(pending))

    async def solve(place: int, task: Task) -> SearchResult:
        return await run.solve(pending[place], task)

    outcomes = as_solved((tasks[index] for index in pending), solve, concurrency)
    async with contextlib.aclosing(outcomes):
        async for found in outcomes:
            if isinstance(found.error, SolverLost):
                raise found.error
            outcome = Outcome(pending[found.index], found.task, found.result, found.error)
            file.write(outcome, run.made.pop(outcome.index))
            if kept is not None and outcome.result is not None:
                kept.settle(outcome.index)
            yield outcome


class Traces:
    """The traces of a job: 00012.jsonl of a problem that has its result, 00012/ of one that has none yet.

    Only the latter are searches to go on with, and they move when their result is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, index: int) -> Path:
        """The folder for the trace of a problem that is searched now.

        A trace that is there becomes a file of its own: what a dying process might still append goes nowhere.
        """
        trace = self._trace(index)
        if trace.exists():
            beside = trace.with_name(trace.name + ".new")
            shutil.copyfile(trace, beside)
            beside.replace(trace)
        return trace.parent

    def drop(self, index: int) -> bool:
        """Remove the trace of a problem that is searched now; False if there was none."""
        try:
            self._trace(index).unlink()
        except FileNotFoundError:
            return False
        return True

    def settle(self, index: int) -> None:
        """Put the trace of a problem that has its result where it stays."""
        trace, last = self._trace(index), trace_path(self._folder, index)
        if last is not None and trace.exists():
            trace.replace(last)
            shutil.rmtree(trace.parent, ignore_errors=True)

    def settle_all(self, file: JobFile) -> None:
        """Do so for all results, where the process before was ended in between."""
        for index, entry in file.contents.entries.items():
            if entry.error is None:
                self.settle(index)

    def _trace(self, index: int) -> Path:
        return self._folder / f"{index:05}" / "00000.jsonl"


@dataclass(slots=True)
class _Run:
    """The searches of one run. `made` counts the attempts at each problem that is under way."""

    solver: Solver
    searches: Searches
    attempts: int
    traces: Traces | None
    backoff_s: float
    made: dict[int, int] = field(default_factory=dict)

    async def solve(self, index: int, task: Task) -> SearchResult:
        """Search a problem until there is a result or all attempts are made; then the last error is raised."""
        self.made[index] = 0
        while True:
            self.made[index] += 1
            try:
                return await self._search(index, task)
            except TraceError as error:
                # A trace that can't be gone on from is no fault of the problem, which begins anew.
                failure: DendriteError = error
                if self.traces is not None and self.traces.drop(index):
                    self.made[index] -= 1
                    continue
            except DendriteError as error:
                failure = error
            except Exception as error:
                failure = SearchFailed(error)
            if self.made[index] >= self.attempts:
                await self._check(failure)
                raise failure
            if isinstance(failure, ClusterError):
                await asyncio.sleep(min(_LONGEST_WAIT_S, self.backoff_s * 2 ** (self.made[index] - 1)))

    async def _search(self, index: int, task: Task) -> SearchResult:
        how = self.searches
        outcomes = self.solver.solve_many(
            [task],
            how.algorithm,
            how.budget,
            how.seed,
            concurrency=1,
            values=how.values,
            oracle=how.oracle,
            traces=self.traces.begin(index) if self.traces is not None else None,
            resume=self.traces is not None,
            **how.options,
        )
        async with contextlib.aclosing(outcomes):
            outcome = await anext(outcomes)
        if outcome.result is None:
            assert outcome.error is not None, "an outcome is one or the other"
            raise outcome.error
        return outcome.result

    async def _check(self, failure: DendriteError) -> None:
        """Find out whether the cluster as a whole is to blame.

        Raises:
            SolverLost: it no longer answers.
        """
        if not isinstance(failure, ClusterError):
            return
        try:
            await self.solver.stats()
        except ClusterError as error:
            raise SolverLost(f"the cluster is lost: {error}; before that, {failure}") from failure
