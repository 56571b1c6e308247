"""`dendrite job`: thousands of problems, and one result for each, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

import dendrite
from dendrite.commands import options
from dendrite.commands.group import INTERRUPTED, Commands, fail
from dendrite.commands.problems import DEFAULT_COUNT, Problems, load_problems, parse_budget, parse_options
from dendrite.commands.running import Place, open_solver, waiting
from dendrite.errors import InvalidArgument
from dendrite.job_file import Contents, JobFile
from dendrite.job_lock import running
from dendrite.job_manifest import JobArguments, JobManifest, open_job
from dendrite.job_progress import JobStatus, progress
from dendrite.job_runner import Searches, SolverLost, run_job
from dendrite.jobs import Solver
from dendrite.search.budget import Budget
from dendrite.search.run import parse_algorithm
from dendrite.search.tasks.kinds import KINDS
from dendrite.search.values import ValueName, value_source

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Search thousands of problems, one result for each.")


class Checkpoint(StrEnum):
    """What a job that is taken up keeps: problems with a result, or searches that were under way as well."""

    problems = "problems"
    searches = "searches"


Out = Annotated[Path, typer.Argument(help="JSONL file of the job's results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only the status, as a line of JSON.")]


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="JSONL file of results; the job's other files lie beside it.")],
    task: options.TaskFile,
    problems: Annotated[
        Path | None, typer.Argument(help="JSONL file with a problem on each line; without it problems are drawn.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=100_000, help=f"How many problems to draw; {DEFAULT_COUNT} by default.")
    ] = None,
    algorithm: options.AlgorithmName = "mcts",
    option: options.Settings = None,
    values: options.ValuesName = "head",
    oracle: options.Oracle = False,
    budget_tokens: options.BudgetTokens = None,
    seconds: options.Seconds = None,
    expansions: options.Expansions = None,
    reward_calls: options.RewardCalls = None,
    kv_mib: options.KvMib = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the searches, and of drawn problems.")] = 0,
    model: options.Model = "countdown",
    workers: options.Workers = None,
    local: options.Local = False,
    concurrency: options.Concurrency = 8,
    attempts: Annotated[int, typer.Option(min=1, max=1_000, help="Tries before a problem counts as failed.")] = 3,
    checkpoint: Annotated[
        Checkpoint, typer.Option(help="What is kept when the job is ended: results, or searches under way too.")
    ] = Checkpoint.problems,
    traces: Annotated[
        Path | None, typer.Option(help="Folder for the searches' traces; OUT.traces with --checkpoint searches.")
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Put the results in the order of the problems at the end.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Begin a job, or go on with the same one, and write one line of JSON for each problem.

    However it is ended, `dendrite job resume OUT` goes on with it. Searches run on the Ray cluster that RAY_ADDRESS or
    `ray start` names, else on one started for this run.
    """
    if traces is None and checkpoint is Checkpoint.searches:
        traces = out.with_name(out.name + ".traces")
    arguments = JobArguments(
        problems=_absolute(problems),
        task=task if task in KINDS else str(Path(task).absolute()),
        count=DEFAULT_COUNT if problems is None and count is None else count,
        algorithm=algorithm,
        option=parse_options(option or ()),
        values=_value_name(values),
        oracle=oracle,
        budget=parse_budget(budget_tokens, seconds, expansions, reward_calls, kv_mib).to_dict(),
        seed=seed,
        traces=_absolute(traces),
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        attempts=attempts,
        workers=options.worker_count(workers, local),
        local=local,
        concurrency=concurrency,
        sort=sort,
    )
    parse_algorithm(algorithm, arguments.option)
    _work(out, arguments, retry_failed=False, as_json=as_json)


@app.command()
def resume(
    out: Out,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try problems that failed again.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=1_024, help="Other model workers than before.")] = None,
    local: Annotated[bool | None, typer.Option("--local/--cluster", help="Run elsewhere than before.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=4_096, help="Problems at a time.")] = None,
    attempts: Annotated[int | None, typer.Option(min=1, max=1_000, help="Tries before a problem has failed.")] = None,
    sort: Annotated[bool | None, typer.Option("--sort/--no-sort", help="Whether results are sorted.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a job that was ended, as it was begun. Its problems and their Python file must be unchanged."""
    others = {"workers": workers, "local": local, "concurrency": concurrency, "attempts": attempts, "sort": sort}
    given = {name: value for name, value in others.items() if value is not None}
    begun = JobManifest.read(out)
    options.worker_count(workers, begun.arguments.local if local is None else local)
    if begun.version != dendrite.__version__:
        typer.echo(f"begun with Dendrite {begun.version}, and going on with {dendrite.__version__}", err=True)
    _work(out, begun.arguments.model_copy(update=given), retry_failed=retry_failed, as_json=as_json)


@app.command()
def status(out: Out, as_json: AsJson = False) -> None:
    """Tell how far a job is, by its files alone, whether it runs or not."""
    manifest = JobManifest.read(out)
    active, told = running(out)
    _report(out, JobStatus.of(Contents.read(out), manifest.inputs, told, running=active), as_json)


def _work(out: Path, arguments: JobArguments, *, retry_failed: bool, as_json: bool) -> None:
    """Do what is left of a job, and report; exits with an error if a problem has failed."""
    file_of_problems = None if arguments.problems is None else Path(arguments.problems)
    problems = load_problems(file_of_problems, arguments.task, arguments.count, arguments.seed)
    manifest = JobManifest.make(dendrite.__version__, problems.inputs, problems.task_digest, arguments)
    with open_job(out, manifest, problems.inputs) as file:
        try:
            _search(file, problems, arguments, retry_failed, as_json)
        except (KeyboardInterrupt, asyncio.CancelledError):
            file.compact()
            told = f"interrupted; {len(file.contents.entries)} of {len(file.inputs)} problems are in {out}"
            typer.echo(f"{told}; go on with: dendrite job resume {shlex.quote(str(out))}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        file.compact(sort=arguments.sort)
        status = JobStatus.of(file.contents, len(file.inputs), None, running=False)
    _report(out, status, as_json)
    if status.failed:
        again = f"dendrite job resume {shlex.quote(str(out))} --retry-failed"
        fail(
            f"{status.failed} of {status.done} problems failed, the first with {status.first_error}; again: {again}", 1
        )


def _search(file: JobFile, problems: Problems, arguments: JobArguments, retry_failed: bool, as_json: bool) -> None:
    """Search what is left; a cluster that is lost is made anew as long as that brings results."""
    console = Console()
    place = Place(arguments.model, arguments.workers, arguments.local)
    lost_for_nothing = 0
    while file.pending(retry_failed=retry_failed):
        before = file.contents.lines
        try:
            with contextlib.ExitStack() as stack:
                with waiting(console, as_json):
                    solver = stack.enter_context(open_solver(place))
                asyncio.run(_run(solver, file, problems, arguments, retry_failed, console, as_json))
            return
        except SolverLost as error:
            lost_for_nothing = 0 if file.contents.lines > before else lost_for_nothing + 1
            if lost_for_nothing >= arguments.attempts:
                raise
            typer.echo(f"starting anew: {error}", err=True)


async def _run(
    solver: Solver,
    file: JobFile,
    problems: Problems,
    arguments: JobArguments,
    retry_failed: bool,
    console: Console,
    as_json: bool,
) -> None:
    searches = Searches(
        arguments.algorithm,
        Budget(**arguments.budget),
        arguments.seed,
        value_source(arguments.values),
        arguments.oracle,
        arguments.option,
    )
    outcomes = run_job(
        solver,
        file,
        problems.tasks,
        searches,
        concurrency=arguments.concurrency,
        attempts=arguments.attempts,
        traces=None if arguments.traces is None else Path(arguments.traces),
        retry_failed=retry_failed,
    )
    total = len(file.inputs)
    task = asyncio.current_task()
    assert task is not None, "this runs in one"
    # A scheduler ends a job by SIGTERM, which is to work as Ctrl-C does; Ray has a handler of its own for it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with progress(console, total, len(file.contents.entries), silent=as_json) as show:
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                show(outcome, JobStatus.of(file.contents, total, file.run, running=True))


def _report(out: Path, status: JobStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**status.to_dict(), "out": str(out)}))
        return
    console = Console()
    console.print(status.table(out.name))
    console.print(f"results: {out}", highlight=False, soft_wrap=True)
    if not status.running and status.done < status.problems:
        console.print(
            f"not running; go on with: dendrite job resume {shlex.quote(str(out))}", highlight=False, soft_wrap=True
        )


def _value_name(values: str) -> ValueName:
    if values not in get_args(ValueName):
        raise InvalidArgument("values", values, f"must be one of {', '.join(get_args(ValueName))}")
    return cast(ValueName, values)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
