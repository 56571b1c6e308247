"""The command line: `dendrite --help` lists its commands."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

import dendrite
from dendrite.commands.bench import bench
from dendrite.commands.evaluate import app as evaluate
from dendrite.commands.group import INTERRUPTED, Commands
from dendrite.commands.job import app as job
from dendrite.commands.profile import profile
from dendrite.commands.quantize import quantize
from dendrite.commands.search import search
from dendrite.commands.serve import serve
from dendrite.commands.solve import solve
from dendrite.commands.traces import export, replay, view
from dendrite.logs import FORMAT_VARIABLE, set_up_logs_from_environment

__all__ = ["INTERRUPTED", "app"]

app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class LogForm(StrEnum):
    """How log lines are written."""

    text = "text"
    json = "json"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dendrite {dendrite.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    log_format: Annotated[
        LogForm | None,
        typer.Option(help="Write a log to the standard error, on a cluster to each process's file of Ray's logs."),
    ] = None,
) -> None:
    """Search over trees of generations."""
    if log_format is not None:
        os.environ[FORMAT_VARIABLE] = log_format.value  # for the processes that a command starts
    set_up_logs_from_environment()


for command in (solve, search, serve, replay, view, export, quantize, profile):
    app.command()(command)
app.add_typer(job, name="job")
app.add_typer(evaluate, name="eval")
app.command(
    # What follows the name is the benchmark's own, `--help` included.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(bench)
