"""`dendrite search`: problems of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from dendrite.commands import options
from dendrite.commands.grammars import load_schema
from dendrite.commands.problems import load_problems, parse_budget, parse_options
from dendrite.commands.running import Job, Place, run_job
from dendrite.errors import InvalidArgument
from dendrite.search.run import parse_algorithm
from dendrite.search.tasks.constrained import Constrained
from dendrite.search.values import ValueName, value_source


def search(
    prompts: Annotated[Path, typer.Argument(help="JSONL file with a problem on each line.")],
    task: options.TaskFile,
    algorithm: options.AlgorithmName = "mcts",
    option: options.Settings = None,
    values: options.ValuesName = "head",
    oracle: options.Oracle = False,
    budget_tokens: options.BudgetTokens = None,
    seconds: options.Seconds = None,
    expansions: options.Expansions = None,
    reward_calls: options.RewardCalls = None,
    kv_mib: options.KvMib = None,
    model: options.Model = "countdown",
    workers: options.Workers = None,
    local: options.Local = False,
    concurrency: options.Concurrency = 8,
    json_schema: options.JsonSchemaFile = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the searches.")] = 0,
    traces: Annotated[
        Path | None, typer.Option(help="Folder for the searches' traces, one a problem; see `dendrite view`.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take the searches of --traces up where they were; needs the same options.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file of results, replaced if there; runs/search-<time>.jsonl by default.")
    ] = None,
    as_json: options.SummaryOnly = False,
) -> None:
    """Search for answers to problems of your own, and write one line of JSON for each.

    The Python file judges texts: `reward(prompt, text)` gives a number from 0 to 1. A line of the prompts' file has a
    `prompt`, and the other fields that the function has parameters for. With --json-schema, texts are JSON documents.
    """
    place = Place(model, options.worker_count(workers, local), local)
    tasks = load_problems(prompts, task, None, seed).tasks
    if json_schema is not None:
        grammar = load_schema(json_schema)
        tasks = [Constrained(each, grammar) for each in tasks]
    settings = parse_options(option or ())
    parse_algorithm(algorithm, settings)
    source = value_source(cast(ValueName, values))
    if resume and traces is None:
        raise InvalidArgument("resume", resume, "needs the folder of --traces to go on from")
    budget = parse_budget(budget_tokens, seconds, expansions, reward_calls, kv_mib)
    job = Job(tasks, algorithm, budget, seed, concurrency, settings, source, oracle, traces, resume)
    run_job(job, place, out, kind="search", title=Path(task).stem, as_json=as_json)
