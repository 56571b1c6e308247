"""Serving until Ctrl-C, on Ray Serve or in this process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from dendrite.errors import ServerError
from serve_apps.args import ServeArgs
from serve_apps.assembly import local_services
from serve_apps.http import create_app
from serve_apps.ray_settings import prefer_direct
from serve_apps.text import TextCodec

_NAME = "dendrite"
_KEEP_ALIVE_S = 75
"""How long an idle connection is kept: longer than clients wait between two requests, which a closing one may meet."""
_CONTROLLER_ENDS_WITHIN_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server that says when it listens, and at a signal just ends: what it served from is to be closed after it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where: who reads it may connect at once."""
        await super().startup(sockets)
        if self.started:
            _announce(self.config.host, self.config.port)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while the server runs; uvicorn's own way raises them again at the end."""
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)


def run(*, model: str, workers: int, local: bool, host: str, port: int, keys: Path | None) -> None:
    """Serve a model until Ctrl-C; then nothing of it is left.

    Args:
        model: a packaged model's name or a Hugging Face folder.
        workers: model workers on the cluster.
        local: use one engine in this process, without Ray.
        host: address to listen at.
        port: to listen at; 0 is any free one.
        keys: JSON file with the API keys' hashes.

    Raises:
        ServerError: the port is taken.
        DendriteError: the model, the keys or the cluster are not as they should be.
    """
    args = ServeArgs(model=model, workers=workers, keys=str(keys.absolute()) if keys is not None else None)
    port = _free(host, port)
    if local:
        _serve_here(args, host, port)
    else:
        _serve_on_ray(args, host, port)


def _serve_here(args: ServeArgs, host: str, port: int) -> None:
    from dendrite.engine.async_engine import AsyncEngine  # here: torch is of use only to this one
    from dendrite.engine.engine import Engine

    keys = args.read_keys()
    codec = TextCodec.load(args.model)

    async def serve(engine: Engine) -> None:
        backend = AsyncEngine(engine, threaded=True)
        async with contextlib.aclosing(backend), local_services(backend, codec, keys, args.settings) as services:
            config = uvicorn.Config(
                create_app(services, args.max_ongoing_requests),
                host=host,
                port=port,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(args.drain_seconds),
            )
            await _Server(config).serve()

    with Engine.from_pretrained(args.model, config=args.engine) as engine:
        gc.collect()
        gc.freeze()  # what is there now stays, and need not be looked through again and again
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(engine))


def _serve_on_ray(args: ServeArgs, host: str, port: int) -> None:
    if "RAY_ADDRESS" not in os.environ:
        prefer_direct(os.environ)
    from ray import serve

    from actors.ray_session import RaySession
    from serve_apps.app import build

    application = build(args)
    session = RaySession(worker_cores=_worker_cores(args))
    began = False
    try:
        if serve.status().proxies:
            raise ServerError("Ray Serve runs on this cluster already: use `serve run serve_apps.app:build`")
        began = True
        with _ended_by_signals():
            serve.start(http_options={"host": host, "port": port})
            serve.run(application, name=_NAME)
            _announce(host, port)
            threading.Event().wait()
    finally:
        if began:
            serve.delete(_NAME)  # after the requests under way, which the next line would cut off
            _shut_serve_down()
        session.close()


def _shut_serve_down() -> None:
    """Do what `serve.shutdown` does, but not from a call that waits in the controller: Ray would report its failure."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with contextlib.suppress(ValueError):  # there is no such actor any more
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
        ray.wait([controller.graceful_shutdown.remote(wait=False)], timeout=_CONTROLLER_ENDS_WITHIN_S)
        until = time.monotonic() + _CONTROLLER_ENDS_WITHIN_S
        while time.monotonic() < until:
            time.sleep(0.1)
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)


def _worker_cores(args: ServeArgs) -> int:
    """The cores that all workers reserve on this machine; 0 where they compute on GPUs."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    from serve_apps.desk import cpus_per_worker

    if args.engine.device != "cpu":
        manager = get_accelerator_manager_for_resource("GPU")
        if args.engine.device == "cuda" or (manager and manager.get_current_node_num_accelerators()):
            return 0
    each = cpus_per_worker(args, os.cpu_count() or 1) or 0
    return each * args.workers * args.engine.tensor_parallel


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave the block at Ctrl-C or SIGTERM, for which Ray has a handler of its own that would end the process."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in _SIGNALS}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _announce(host: str, port: int) -> None:
    print(f"serving at http://{host}:{port}, watch searches at http://{host}:{port}/ui", flush=True)


def _free(host: str, port: int) -> int:
    """The port to listen at.

    Raises:
        ServerError: somebody else does.
    """
    try:
        with socket.create_server((host, port)) as found:
            taken: int = found.getsockname()[1]
            return taken
    except OSError as error:
        raise ServerError(f"cannot listen at {host}:{port}: {error.strerror}") from None
