"""`dendrite bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from dendrite.bench import BENCHMARKS, run_benchmark
from dendrite.commands.group import INTERRUPTED


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}; its own arguments follow.")],
) -> None:
    """Run a benchmark of this checkout, as `python -m benchmarks.NAME` does."""
    try:
        raise typer.Exit(run_benchmark(name, context.args))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
