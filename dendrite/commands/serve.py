"""`dendrite serve`: a model over HTTP."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from dendrite.commands import options
from dendrite.errors import MissingDependency

Workers = Annotated[int | None, typer.Option(min=1, max=1_024, help="Model workers on the Ray cluster; 1 by default.")]
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 is any free one.")]
Keys = Annotated[Path | None, typer.Option(help="JSON file with the API keys' hashes; without it nobody is asked.")]


def serve(
    model: options.Model = "countdown",
    workers: Workers = None,
    local: options.Local = False,
    host: Host = "127.0.0.1",
    port: Port = 8_000,
    keys: Keys = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C: OpenAI's API, trees, searches, and a live page at /ui.

    It runs on Ray Serve: on the Ray cluster that RAY_ADDRESS or `ray start` names, else on one started for it.
    """
    count = options.worker_count(workers, local, default=1)
    _server()(model=model, workers=count, local=local, host=host, port=port, keys=keys)


def _server() -> Any:
    """The function that serves: whichever package has registered one."""
    found = list(entry_points(group="dendrite.servers"))
    if not found:
        raise MissingDependency("a server package", "no package has registered one", "run `pip install -e .` again")
    return found[0].load()
