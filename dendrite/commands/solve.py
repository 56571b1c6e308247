"""`dendrite solve`: problems that the package draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dendrite.commands import options
from dendrite.commands.problems import DEFAULT_COUNT, parse_budget
from dendrite.commands.running import Job, Place, run_job
from dendrite.errors import InvalidArgument
from dendrite.search.run import parse_algorithm
from dendrite.search.task import Task
from dendrite.search.tasks import TASKS, Countdown


def solve(
    task: Annotated[str, typer.Option(help=f"Kind of problem: {', '.join(TASKS)}.")] = "countdown",
    problem_count: Annotated[
        int, typer.Option("--problems", min=1, max=100_000, help="How many problems to draw.")
    ] = DEFAULT_COUNT,
    numbers: Annotated[str | None, typer.Option(help="One Countdown problem: its numbers, such as 3,7,8,25.")] = None,
    target: Annotated[int | None, typer.Option(help="One Countdown problem: its target.")] = None,
    algorithm: options.AlgorithmName = "mcts",
    model: options.Model = "countdown",
    workers: options.Workers = None,
    local: options.Local = False,
    budget_tokens: options.BudgetTokens = None,
    seconds: options.Seconds = None,
    in_flight: Annotated[int | None, typer.Option(min=1, max=4_096, help="Expansions of one search at a time.")] = None,
    concurrency: options.Concurrency = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the problems and of the searches.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file of results, replaced if there; runs/solve-<time>.jsonl by default.")
    ] = None,
    as_json: options.SummaryOnly = False,
) -> None:
    """Solve problems by search and write one line of JSON for each.

    Searches run on a Ray cluster: the one that RAY_ADDRESS or `ray start` names, else one started for this run.
    """
    place = Place(model, options.worker_count(workers, local), local)
    tasks = _tasks(task, problem_count, numbers, target, seed)
    budget = parse_budget(budget_tokens, seconds, None, None, None)
    settings = {} if in_flight is None else {"in_flight": in_flight}
    parse_algorithm(algorithm, settings)
    job = Job(tasks, algorithm, budget, seed, concurrency, settings)
    run_job(job, place, out, kind="solve", title=task, as_json=as_json)


def _tasks(kind: str, count: int, numbers: str | None, target: int | None, seed: int) -> Sequence[Task]:
    if kind not in TASKS:
        raise InvalidArgument("task", kind, f"must be one of {', '.join(TASKS)}")
    if numbers is None and target is None:
        return TASKS[kind](count, seed)
    if kind != "countdown":
        field, value = ("numbers", numbers) if numbers is not None else ("target", target)
        raise InvalidArgument(field, value, f"goes with the task countdown, not {kind}")
    if numbers is None or target is None:
        raise InvalidArgument("target" if target is None else "numbers", None, "numbers and target go together")
    try:
        given = tuple(int(number) for number in numbers.replace(",", " ").split())
    except ValueError:
        raise InvalidArgument("numbers", numbers, "must be whole numbers, such as 3,7,8,25") from None
    return [Countdown(given, target)]
