"""A real server in this process: uvicorn over a real engine, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from serve_apps.assembly import local_services
from serve_apps.http import create_app
from serve_apps.security import ApiKey
from serve_apps.services import ServeSettings
from serve_apps.text import TextCodec

PROMPT = "Numbers: 3 7 8 25. Target: 92.\n"


@dataclass
class Served:
    """A server under test. `engine` may be looked at between requests."""

    url: str
    engine: Engine
    loop: asyncio.AbstractEventLoop

    def client(self, key: str | None = None, **settings: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0, **settings)

    def pages_held(self) -> int:
        """KV pages that live nodes own; what the engine's thread changes meanwhile may be missed."""
        return self.engine.stats().pages_held

    def wait_for_pages(self, pages: int, within_s: float) -> float:
        """Seconds until so many pages are held, or fewer."""
        began = time.monotonic()
        while self.pages_held() > pages:
            assert time.monotonic() - began < within_s, f"{self.pages_held()} pages are held after {within_s} s"
            time.sleep(0.01)
        return time.monotonic() - began


@contextmanager
def serve(
    keys: Sequence[ApiKey] = (),
    settings: ServeSettings | None = None,
    model: str = "countdown",
    max_requests: int | None = None,
    **config: Any,
) -> Iterator[Served]:
    """Serve a model until the context ends; then nothing may be held."""
    engine = Engine.from_pretrained(model, device="cpu", **{"kv_tokens": 32_768, **config})
    codec = TextCodec.load(model)
    started: list[Served] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    servers: list[uvicorn.Server] = []

    async def run() -> None:
        backend = AsyncEngine(engine, threaded=True)
        async with local_services(backend, codec, keys, settings) as services:
            app = create_app(services, max_requests)
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
            servers.append(server)
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            started.append(Served(f"http://127.0.0.1:{port}", engine, asyncio.get_running_loop()))
            ready.set()
            await serving
        await backend.aclose()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        assert ready.wait(60.0)
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(60.0)
    assert not failed, failed
    assert engine.stats().pages_held == 0
    engine.check()
    engine.close()
