"""The command line: `dendrite solve`, `dendrite bench`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

import dendrite
from dendrite.bench import BENCHMARKS, run_benchmark
from dendrite.errors import ClusterError, DendriteError, InvalidArgument
from dendrite.interrupts import interrupts_held
from dendrite.jobs import LocalSolver, OutcomeFile, Solver
from dendrite.progress import LiveReporter, PlainReporter, Reporter, SilentReporter, Summary, Tally
from dendrite.search.budget import Budget
from dendrite.search.run import ALGORITHMS, DEFAULT_BUDGET
from dendrite.search.task import Task
from dendrite.search.tasks.countdown import Countdown, problems

INTERRUPTED = 130
_REFRESH_S = 0.25


class _Commands(TyperGroup):
    """A command group that reports every expected error in one line: exit code 2 for wrong usage, 1 for the rest."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit, as typer does, but for the form of errors."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except InvalidArgument as error:
            _fail(str(error), 2)
        except DendriteError as error:
            _fail(str(error), 1)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's usage errors, wherever its version keeps their class
                raise
            _fail(error.format_message(), getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Job:
    """What `solve` was asked to do."""

    tasks: Sequence[Task]
    algorithm: str
    budget: Budget
    seed: int
    concurrency: int
    options: dict[str, Any] = field(default_factory=dict)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dendrite {dendrite.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Search over trees of generations."""


@app.command()
def solve(
    task: Annotated[str, typer.Option(help="Kind of problem: countdown.")] = "countdown",
    problem_count: Annotated[
        int, typer.Option("--problems", min=1, max=100_000, help="How many problems to draw.")
    ] = 20,
    numbers: Annotated[str | None, typer.Option(help="One problem: its numbers, such as 3,7,8,25.")] = None,
    target: Annotated[int | None, typer.Option(help="One problem: its target.")] = None,
    algorithm: Annotated[str, typer.Option(help=f"One of {', '.join(ALGORITHMS)}.")] = "mcts",
    model: Annotated[str, typer.Option(help="A packaged model, or the path of a Hugging Face folder.")] = "countdown",
    workers: Annotated[int, typer.Option(min=1, max=1_024, help="Model workers on the Ray cluster.")] = 2,
    local: Annotated[bool, typer.Option("--local", help="Use one engine in this process, without Ray.")] = False,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens to generate for a problem; 4096 if there is no other limit.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Most seconds to spend on a problem.")] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, max=4_096, help="Expansions of one search at a time.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4_096, help="Problems at a time.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the problems and of the searches.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file of results, replaced if there; runs/solve-<time>.jsonl by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the summary, as a line of JSON.")] = False,
) -> None:
    """Solve problems by search and write one line of JSON for each.

    Searches run on a Ray cluster: the one that RAY_ADDRESS or `ray start` names, else one started for this run.
    """
    tasks = _tasks(task, problem_count, numbers, target, seed)
    if algorithm not in ALGORITHMS:
        raise InvalidArgument("algorithm", algorithm, f"must be one of {', '.join(ALGORITHMS)}")
    budget = DEFAULT_BUDGET if budget_tokens is None and seconds is None else Budget(budget_tokens, seconds)
    options = {} if in_flight is None else {"in_flight": in_flight}
    _check_options(algorithm, options)
    job = Job(tasks, algorithm, budget, seed, concurrency, options)
    path = out if out is not None else Path("runs") / f"solve-{datetime.now():%Y%m%d-%H%M%S}.jsonl"

    console = Console()
    try:
        with OutcomeFile(path) as file, contextlib.ExitStack() as stack:
            with _waiting(console, as_json):
                solver = stack.enter_context(_solver(model, workers, local))
            summary = asyncio.run(_run(job, solver, file, _reporter(console, len(tasks), as_json)))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the problems that had ended are in {path}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"task": task, "algorithm": algorithm, **summary.to_dict(), "out": str(path)}))
    else:
        console.print(summary.table(f"{task}, {algorithm}"))
        console.print(f"results: {path}", highlight=False, soft_wrap=True)
    if summary.errors:
        _fail(f"{summary.errors} of {summary.done} problems failed, the first with: {summary.first_error}", 1)


@app.command(
    # What follows the name is the benchmark's own, `--help` included.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}; its own arguments follow.")],
) -> None:
    """Run a benchmark of this checkout, as `python -m benchmarks.NAME` does."""
    try:
        raise typer.Exit(run_benchmark(name, context.args))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _tasks(kind: str, count: int, numbers: str | None, target: int | None, seed: int) -> Sequence[Task]:
    if kind != "countdown":
        raise InvalidArgument("task", kind, "must be countdown")
    if numbers is None and target is None:
        return problems(count, seed=seed)
    if numbers is None or target is None:
        raise InvalidArgument("target" if target is None else "numbers", None, "numbers and target go together")
    try:
        given = tuple(int(number) for number in numbers.replace(",", " ").split())
    except ValueError:
        raise InvalidArgument("numbers", numbers, "must be whole numbers, such as 3,7,8,25") from None
    return [Countdown(given, target)]


def _check_options(algorithm: str, options: dict[str, Any]) -> None:
    """Refuse now what every search would refuse later."""
    known = ALGORITHMS[algorithm].options_type.model_fields
    for name, value in options.items():
        if name not in known:
            raise InvalidArgument(name, value, f"no option of {algorithm}")


def _reporter(console: Console, problem_count: int, as_json: bool) -> Reporter:
    if as_json:
        return SilentReporter(console, problem_count)
    return (LiveReporter if console.is_terminal else PlainReporter)(console, problem_count)


def _waiting(console: Console, as_json: bool) -> AbstractContextManager[object]:
    if as_json or not console.is_terminal:
        return contextlib.nullcontext()
    return console.status("starting, and loading the model")


@contextmanager
def _solver(model: str, workers: int, local: bool) -> Iterator[Solver]:
    if local:
        # Torch's threads would else spin at every barrier, and on busy cores slow one another down several times.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from dendrite.engine.engine import Engine

        with Engine.from_pretrained(model) as engine:
            yield LocalSolver(engine)
        return
    cluster = _cluster_connect()(model=model, workers=workers)
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
        job.tasks, job.algorithm, job.budget, job.seed, concurrency=job.concurrency, **job.options
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


def _fail(message: str, code: int) -> NoReturn:
    if message:  # without arguments typer has shown the help, and has nothing to add
        typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
