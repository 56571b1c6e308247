"""The options that commands which search problems have in common, stated once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias, get_args

import typer

from dendrite.errors import InvalidArgument
from dendrite.quant.scheme import QuantizeMode
from dendrite.search.run import ALGORITHMS
from dendrite.search.tasks.kinds import KINDS
from dendrite.search.values import ValueName

TaskFile: TypeAlias = Annotated[
    str, typer.Option(help=f"Python file with a Task or a function reward(prompt, text), or {', '.join(KINDS)}.")
]
AlgorithmName: TypeAlias = Annotated[str, typer.Option(help=f"One of {', '.join(ALGORITHMS)}.")]
Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="A setting of the algorithm, such as in_flight=16; may be repeated.")
]
ValuesName: TypeAlias = Annotated[
    str, typer.Option(help=f"What an unfinished thought is worth: {', '.join(get_args(ValueName))}.")
]
Oracle: TypeAlias = Annotated[bool, typer.Option("--oracle", help="Show searches rewards that consult known answers.")]
BudgetTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Most tokens to generate for a problem; 4096 if there is no other limit.")
]
Seconds: TypeAlias = Annotated[float | None, typer.Option(help="Most seconds to spend on a problem.")]
Expansions: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Most expansions of a problem's tree.")]
RewardCalls: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Most texts that a judge is asked about.")]
KvMib: TypeAlias = Annotated[float | None, typer.Option(help="Most KV that a problem's tree may hold, in MiB.")]
Model: TypeAlias = Annotated[str, typer.Option(help="A packaged model, or the path of a Hugging Face folder.")]
Workers: TypeAlias = Annotated[
    int | None, typer.Option(min=1, max=1_024, help="Model workers on the Ray cluster; 2 by default.")
]
Local: TypeAlias = Annotated[bool, typer.Option("--local", help="Use one engine in this process, without Ray.")]
Concurrency: TypeAlias = Annotated[int, typer.Option(min=1, max=4_096, help="Problems at a time.")]
JsonSchemaFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--json-schema", help="JSON file with a schema that every text written must be valid under."),
]
SummaryOnly: TypeAlias = Annotated[bool, typer.Option("--json", help="Print only the summary, as a line of JSON.")]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Quantize: TypeAlias = Annotated[
    str | None, typer.Option(help=f"8-bit products: {', '.join(get_args(QuantizeMode))}; as stored by default.")
]
KvDtype: TypeAlias = Annotated[str, typer.Option(help="Type of keys and values: auto or fp8.")]


def worker_count(workers: int | None, local: bool, default: int = 2) -> int:
    """How many model workers are asked for.

    Raises:
        InvalidArgument: some number is, where none are used.
    """
    if workers is not None and local:
        raise InvalidArgument("workers", workers, "cannot be given with --local, which uses one engine in this process")
    return default if workers is None else workers
