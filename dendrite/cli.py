"""The command line: `dendrite --help` lists its commands."""

from __future__ import annotations

from typing import Annotated

import typer

import dendrite
from dendrite.commands.bench import bench
from dendrite.commands.group import INTERRUPTED, Commands
from dendrite.commands.job import app as job
from dendrite.commands.search import search
from dendrite.commands.solve import solve
from dendrite.commands.traces import export, replay, view

__all__ = ["INTERRUPTED", "app"]

app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


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


for command in (solve, search, replay, view, export):
    app.command()(command)
app.add_typer(job, name="job")
app.command(
    # What follows the name is the benchmark's own, `--help` included.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(bench)
