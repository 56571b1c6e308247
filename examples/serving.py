"""What the HTTP examples share: a server to speak to, which they start themselves unless they are given one."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx


def parse_url(about: str, args: Sequence[str] | None) -> str | None:
    """The server named on the command line, if there is one."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", help="of a running server; without it one is started, and ended in the end")
    url: str | None = parser.parse_args(args).url
    return url


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """Yield the URL of a server that answers: the given one, or `dendrite serve --local` on a free port.

    Raises:
        SystemExit: there is none, and it says why; or Ctrl-C was pressed.
    """
    try:
        if url is None:
            with _own_server() as own:
                yield own
        else:
            try:
                httpx.get(f"{url.rstrip('/')}/healthz", timeout=10.0).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise SystemExit(f"no Dendrite server answers at {url}: {error}") from None
            yield url.rstrip("/")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def _own_server() -> Iterator[str]:
    command = [sys.executable, "-m", "dendrite", "serve", "--local", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = re.search(r"http://[^\s,]+", process.stdout.readline())
            if told is None:
                raise SystemExit("the server did not start")  # it has said why
            yield told[0]
        finally:
            process.terminate()
            process.wait()
