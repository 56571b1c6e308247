"""Running a job of many problems from the command line: the solver, the file of results, the progress shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from dendrite.commands.group import INTERRUPTED, fail
from dendrite.errors import ClusterError
from dendrite.interrupts import interrupts_held
from dendrite.jobs import LocalSolver, OutcomeFile, Solver
from dendrite.progress import LiveReporter, PlainReporter, Reporter, SilentReporter, Summary, Tally
from dendrite.search.budget import Budget
from dendrite.search.task import Task
from dendrite.search.values import Values

_REFRESH_S = 0.25


@dataclass(frozen=True, slots=True)
class Job:
    """What a command was asked to do: problems, and how to search them."""

    tasks: Sequence[Task]
    algorithm: str
    budget: Budget
    seed: int
    concurrency: int
    options: dict[str, Any] = field(default_factory=dict)
    values: Values = "head"
    oracle: bool = False
    traces: Path | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job runs: on `workers` of the Ray cluster, or on one engine in this process."""

    model: str
    workers: int
    local: bool


def run_job(job: Job, place: Place, out: Path | None, *, kind: str, title: str, as_json: bool) -> None:
    """Run a job, show how it goes, and write its results; exits with an error if a problem failed.

    Args:
        job: what to do.
        place: where.
        out: of the results; None is runs/<kind>-<time>.jsonl.
        kind: the command's name.
        title: of the summary.
        as_json: print only the summary, as a line of JSON.
    """
    path = out if out is not None else Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    console = Console()
    try:
        with OutcomeFile(path) as file, contextlib.ExitStack() as stack:
            with waiting(console, as_json):
                solver = stack.enter_context(open_solver(place))
            summary = asyncio.run(_run(job, solver, file, _reporter(console, len(job.tasks), as_json)))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the problems that had ended are in {path}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        told = {"task": title, "algorithm": job.algorithm, **summary.to_dict(), "out": str(path)}
        typer.echo(json.dumps(told))
    else:
        console.print(summary.table(f"{title}, {job.algorithm}"))
        console.print(f"results: {path}", highlight=False, soft_wrap=True)
    if summary.errors:
        fail(f"{summary.errors} of {summary.done} problems failed, the first with: {summary.first_error}", 1)


def _reporter(console: Console, problem_count: int, as_json: bool) -> Reporter:
    if as_json:
        return SilentReporter(console, problem_count)
    return (LiveReporter if console.is_terminal else PlainReporter)(console, problem_count)


def waiting(console: Console, as_json: bool) -> AbstractContextManager[object]:
    """Show on a terminal that something is being started."""
    if as_json or not console.is_terminal:
        return contextlib.nullcontext()
    return console.status("starting, and loading the model")


@contextmanager
def open_solver(place: Place) -> Iterator[Solver]:
    """What solves problems there, while the context lasts."""
    if place.local:
        # Torch's threads would else spin at every barrier, and on busy cores slow one another down several times.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from dendrite.engine.engine import Engine

        with Engine.from_pretrained(place.model) as engine:
            yield LocalSolver(engine)
        return
    cluster = _cluster_connect()(model=place.model, workers=place.workers)
    try:
        yield cluster
    finally:
        with interrupts_held():  # an impatient second Ctrl-C leaves no process behind either
            cluster.close()


def _cluster_connect() -> Any:
    """The function that makes a cluster: whichever package has registered one."""
    found = list(entry_points(group="dendrite.clusters"))
    if not found:
        raise ClusterError(
            "no cluster package is installed: run `pip install -e .` in the checkout, or solve here with --local"
        )
    return found[0].load()


async def _run(job: Job, solver: Solver, file: OutcomeFile, reporter: Reporter) -> Summary:
    tally = Tally.begin(len(job.tasks))
    outcomes = solver.solve_many(
        job.tasks,
        job.algorithm,
        job.budget,
        job.seed,
        concurrency=job.concurrency,
        values=job.values,
        oracle=job.oracle,
        traces=job.traces,
        resume=job.resume,
        **job.options,
    )
    with reporter:
        watcher = asyncio.ensure_future(_watch(solver, reporter, tally))
        try:
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    file.write(outcome)
                    tally.count(outcome)
                    reporter.ended(outcome, tally)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
    tally.measure(await solver.stats())
    return tally.summary()


async def _watch(solver: Solver, reporter: Reporter, tally: Tally) -> None:
    while True:
        tally.measure(await solver.stats())
        reporter.measured(tally)
        await asyncio.sleep(_REFRESH_S)
