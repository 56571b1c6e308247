"""`dendrite search`: problems of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from dendrite.commands.problems import load_problems, parse_budget, parse_options
from dendrite.commands.running import Job, Place, run_job
from dendrite.errors import InvalidArgument
from dendrite.search.run import ALGORITHMS, parse_algorithm
from dendrite.search.tasks.kinds import KINDS
from dendrite.search.values import ValueName, value_source


def search(
    prompts: Annotated[Path, typer.Argument(help="JSONL file with a problem on each line.")],
    task: Annotated[
        str, typer.Option(help=f"Python file with a Task or a function reward(prompt, text), or {', '.join(KINDS)}.")
    ],
    algorithm: Annotated[str, typer.Option(help=f"One of {', '.join(ALGORITHMS)}.")] = "mcts",
    option: Annotated[
        list[str] | None, typer.Option(help="A setting of the algorithm, such as in_flight=16; may be repeated.")
    ] = None,
    values: Annotated[
        str, typer.Option(help=f"What an unfinished thought is worth: {', '.join(get_args(ValueName))}.")
    ] = "head",
    oracle: Annotated[bool, typer.Option("--oracle", help="Show searches rewards that consult known answers.")] = False,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens to generate for a problem; 4096 if there is no other limit.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Most seconds to spend on a problem.")] = None,
    expansions: Annotated[int | None, typer.Option(min=1, help="Most expansions of a problem's tree.")] = None,
    reward_calls: Annotated[int | None, typer.Option(min=1, help="Most texts that a judge is asked about.")] = None,
    kv_mib: Annotated[float | None, typer.Option(help="Most KV that a problem's tree may hold, in MiB.")] = None,
    model: Annotated[str, typer.Option(help="A packaged model, or the path of a Hugging Face folder.")] = "countdown",
    workers: Annotated[int, typer.Option(min=1, max=1_024, help="Model workers on the Ray cluster.")] = 2,
    local: Annotated[bool, typer.Option("--local", help="Use one engine in this process, without Ray.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=4_096, help="Problems at a time.")] = 8,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print only the summary, as a line of JSON.")] = False,
) -> None:
    """Search for answers to problems of your own, and write one line of JSON for each.

    The Python file judges texts: `reward(prompt, text)` gives a number from 0 to 1. A line of the prompts' file has a
    `prompt`, and the other fields that the function has parameters for.
    """
    tasks = load_problems(prompts, task, None, seed).tasks
    options = parse_options(option or ())
    parse_algorithm(algorithm, options)
    source = value_source(cast(ValueName, values))
    if resume and traces is None:
        raise InvalidArgument("resume", resume, "needs the folder of --traces to go on from")
    budget = parse_budget(budget_tokens, seconds, expansions, reward_calls, kv_mib)
    job = Job(tasks, algorithm, budget, seed, concurrency, options, source, oracle, traces, resume)
    run_job(job, Place(model, workers, local), out, kind="search", title=Path(task).stem, as_json=as_json)
