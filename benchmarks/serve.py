"""How much of the engine's rate is left over HTTP: 200 concurrent streams of 32 tokens each, for a minute.

*Over HTTP.* A server in a process of its own, on Ray Serve with one model worker or (`--local`) without Ray. Each of
200 connections asks for a streamed completion of 32 tokens of one of 50 Countdown prompts, reads it to the end, and
asks again. The time to the first token runs from the request's last byte to the first chunk with text; the more streams
there are, the more tokens the next chunks bring, so the time between chunks is told too. An answer that
is not a stream of the whole completion is an error; at the end the server's pages must be back to zero.

*The engine's own rate.* The same work by calls of an engine in this process: 200 callers, each of whom prefills a
prompt, expands it by 32 tokens and releases it, again and again. Both run for as long, one after the other; torch has
all cores in both, and over HTTP the server and the callers share them.

Run it with `python -m benchmarks.serve [--local] [--streams N] [--seconds S]`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.common import ROOT, write_result
from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.search.tasks.countdown import problems

MODEL, TOKENS, PROMPTS = "countdown", 32, 50
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
START_S, RAMP_S, WARM_UP_S, SETTLE_S = 300.0, 5.0, 5.0, 5.0
SERVER = """
from serve_apps.run import run
run(model={model!r}, workers=1, local={local}, host="127.0.0.1", port=0, keys=None)
"""


@dataclass
class Load:
    """What has been done so far."""

    requests: int = 0
    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    """From one chunk of a stream to its next."""
    errors: list[str] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Count what has been done, but for its errors."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.first_token_s += other.first_token_s
        self.between_s += other.between_s


Ask = Callable[[int, Load], Coroutine[Any, Any, None]]
"""Makes one request of the given number, and notes what came of it."""


def prompts() -> list[str]:
    """The prompts that requests take in turn."""
    return [task.prompt for task in problems(PROMPTS, 0)]


async def drive(ask: Ask, streams: int, seconds: float) -> Load:
    """Keep so many requests under way, and count those that end within `seconds`, after a ramp and a warm-up.

    Callers begin one after the other: begun together, requests of one length would stay in step and come in waves.
    Errors count from the beginning to the end.
    """
    number, measured = iter(range(1 << 62)), Load()
    began = time.monotonic() + RAMP_S + WARM_UP_S
    end = began + seconds

    async def caller(index: int) -> None:
        await asyncio.sleep(RAMP_S * index / streams)
        while time.monotonic() < end:
            await ask(next(number), request := Load())
            if began <= time.monotonic() < end:
                measured.add(request)
            measured.errors.extend(request.errors)

    await asyncio.gather(*(caller(index) for index in range(streams)))
    return measured


async def engine_rate(streams: int, seconds: float) -> float:
    """Tokens a second of an engine in this process."""
    engine, texts = Engine.from_pretrained(MODEL, device="cpu"), prompts()
    backend = AsyncEngine(engine, threaded=True)

    async def ask(number: int, load: Load) -> None:
        root = await backend.prefill(texts[number % PROMPTS])
        [branch] = await backend.expand(root, 1, SamplingParams(max_tokens=TOKENS, seed=number))
        await backend.release(root, subtree=True)
        load.tokens += len(branch.tokens)

    load = await drive(ask, streams, seconds)
    await backend.aclose()
    engine.close()
    return load.tokens / seconds


class Connection:
    """A kept-alive HTTP/1.1 connection that reads streamed completions, for less of a processor than a whole client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def complete(self, prompt: str, seed: int, load: Load) -> None:
        """Ask for a completion, and note what came of it."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "seed": seed, "stream": True}
        content = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
        head = f"{HEAD}Content-Length: {len(content)}\r\n\r\n".encode()
        try:
            if self._streams is None or self._streams[0].at_eof():  # the server closes idle connections
                self.close()
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(head + content)
            await self._read(reader, load)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            load.errors.append(repr(error))
            self.close()

    async def _read(self, reader: asyncio.StreamReader, load: Load) -> None:
        began, came, told = time.monotonic(), list[float](), b""
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n", 1)[0] or b"chunked" not in status:
            raise ValueError(status[:60])
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            chunk = (await reader.readexactly(size + 2))[:-2]
            told += chunk
            if b'"text":"' in chunk:
                came.append(time.monotonic())
            if not size:
                break
        usage = re.search(rb'"completion_tokens":(\d+)', told)
        if not came or usage is None or not told.endswith(b"data: [DONE]\n\n"):
            raise ValueError(told[-200:])
        load.requests += 1
        load.tokens += int(usage[1])
        load.first_token_s.append(came[0] - began)
        load.between_s += [later - before for before, later in itertools.pairwise(came)]
        if b"connection: close" in status.lower():
            self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@asynccontextmanager
async def server(*, local: bool) -> AsyncIterator[int]:
    """A server, by its port."""
    command = [sys.executable, "-c", SERVER.format(model=MODEL, local=local)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            while not (found := re.search(r":(\d+),", await asyncio.to_thread(process.stdout.readline))):
                if process.poll() is not None:
                    sys.exit("the server did not start")
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60.0)


async def http_load(streams: int, seconds: float, *, local: bool) -> tuple[Load, float]:
    """What came of the load, and the pages that the server held some seconds after."""
    texts = prompts()
    async with server(local=local) as port:
        idle = [Connection(port) for _ in range(streams)]

        async def ask(number: int, load: Load) -> None:
            connection = idle.pop()
            await connection.complete(texts[number % PROMPTS], number, load)
            idle.append(connection)

        load = await drive(ask, streams, seconds)
        for connection in idle:
            connection.close()
        await asyncio.sleep(SETTLE_S)
        return load, await asyncio.to_thread(pages_held, port)


def pages_held(port: int) -> float:
    """KV pages that the server holds, by its own metrics."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        found = re.search(r"^dendrite_backend_pages_held (\S+)$", response.read().decode(), re.MULTILINE)
    assert found is not None, "the server does not tell"
    return float(found[1])


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Load a server with concurrent streams.")
    parser.add_argument("--local", action="store_true", help="serve without Ray")
    parser.add_argument("--streams", type=int, default=200, help="requests under way")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, over HTTP and without")
    arguments = parser.parse_args()
    if arguments.streams < 1 or arguments.seconds <= 0:
        parser.error("--streams must be at least 1, --seconds positive")
    load, pages = asyncio.run(http_load(arguments.streams, arguments.seconds, local=arguments.local))
    if not load.requests:
        sys.exit(f"no request was answered: {load.errors[:3]}")
    own = asyncio.run(engine_rate(arguments.streams, arguments.seconds))
    rate = load.tokens / arguments.seconds
    first = np.percentile(load.first_token_s, [50, 99]) * 1e3
    between = np.percentile(load.between_s, [50, 99]) * 1e3
    metrics = {
        "serve.requests": float(load.requests),
        "serve.errors": float(len(load.errors)),
        "serve.tok_s": rate,
        "serve.engine_tok_s": own,
        "serve.engine_ratio": rate / own,
        "serve.first_token_p50_ms": float(first[0]),
        "serve.first_token_p99_ms": float(first[1]),
        "serve.between_chunks_p50_ms": float(between[0]),
        "serve.between_chunks_p99_ms": float(between[1]),
        "serve.pages_left": pages,
    }
    for name, value in metrics.items():
        print(f"{name:28} {value:12.2f}")
    for error in load.errors[:3]:
        print(f"error: {error}")
    raw = {
        "streams": arguments.streams,
        "seconds": arguments.seconds,
        "local": arguments.local,
        "errors": load.errors[:20],
    }
    subject = f"{MODEL}-local" if arguments.local else MODEL
    packages = ("ray", "fastapi", "uvicorn")
    path = write_result(benchmark="serve", subject=subject, hardware="cpu", metrics=metrics, raw=raw, packages=packages)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
