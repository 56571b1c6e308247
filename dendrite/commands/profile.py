"""`dendrite profile`: where the time of the engine's steps goes."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dendrite.commands import options
from dendrite.commands.files import check_folder
from dendrite.commands.group import INTERRUPTED
from dendrite.commands.running import waiting
from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument

_RUNNING = 256
_TRACE_SUFFIXES = (".json", ".json.gz")


class Device(StrEnum):
    """What to run on; auto is CUDA where torch sees a GPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def profile(
    workload: Annotated[str, typer.Argument(help="W1: one sequence; W2: branches of a prompt; W3: a tree search.")],
    model: options.Model = "countdown",
    device: Annotated[Device, typer.Option(help="auto is CUDA where torch sees a GPU.")] = Device.auto,
    prompt: Annotated[int | None, typer.Option(min=1, help="Tokens of the prompt.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that each generation makes.")] = None,
    branches: Annotated[int | None, typer.Option(min=1, max=2_048, help="W2: branches of the prompt.")] = None,
    expansions: Annotated[int | None, typer.Option(min=1, help="W3: expansions of the tree.")] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, max=2_048, help="W3: expansions at a time.")] = None,
    runs: Annotated[int, typer.Option(min=1, max=1_000, help="Runs that are timed.")] = 3,
    traced_steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps of another run that are traced.")] = 64,
    top: Annotated[int, typer.Option(min=1, max=1_000, help="Operators to report.")] = 10,
    trace: Annotated[Path | None, typer.Option(help="Chrome trace to write, .json or .json.gz.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="JSON file of all figures to write.")] = None,
) -> None:
    """Run a workload of random tokens, and tell where the time of its steps goes.

    Sizes not given are those of the benchmarks, as far as the model's context holds them.
    """
    for field, file in (("trace", trace), ("json", report)):
        if file is not None:
            check_folder(field, file)
    if trace is not None and not trace.name.endswith(_TRACE_SUFFIXES):
        raise InvalidArgument("trace", str(trace), f"must end in {' or '.join(_TRACE_SUFFIXES)}")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells the standard error when it starts and stops
    # These load torch, which the other commands start without.
    from dendrite.engine.device import choose_device
    from dendrite.engine.engine import Engine
    from dendrite.profiling.load import Load
    from dendrite.profiling.run import Effort, profile_engine
    from dendrite.profiling.table import tables

    sizes = {"prompt": prompt, "tokens": tokens, "branches": branches, "expansions": expansions, "in_flight": in_flight}
    running = max(_RUNNING, branches or 0, in_flight or 0)
    config = EngineConfig(device=device.value, max_running=running)
    console = Console()
    try:
        with waiting(console, as_json=False), Engine.from_pretrained(model, config=config) as engine:
            load = Load.of(workload, sizes, engine.longest_context)
            effort = Effort(runs, traced_steps, top)
            place, name = choose_device(config), Path(model).name
            found = profile_engine(engine, load, model=name, device=place, effort=effort, trace_file=trace)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    for part in tables(found):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))
    if report is not None:
        report.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    for file in filter(None, (trace, report)):
        console.print(f"written to {file}", highlight=False, soft_wrap=True)
