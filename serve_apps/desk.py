"""The one process of an application that remembers: its cluster, trees, searches, accounts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import ray

import actors
from actors import Cluster
from actors.rpc import Handle, call
from serve_apps.args import ServeArgs
from serve_apps.assembly import local_services
from serve_apps.security import ApiKey
from serve_apps.services import Services
from serve_apps.text import TextCodec


@dataclass(frozen=True, slots=True)
class Contacts:
    """What an ingress needs to speak to the cluster itself."""

    manager: Handle
    workers: Sequence[Handle]
    kv_bytes_per_token: int


class Desk:
    """Starts the cluster, and holds what outlives a request. A Serve deployment of one replica.

    Trees and searches use the cluster from here; completions use it from the ingresses. When this process is lost,
    Serve starts another, with a new cluster; the trees are gone, as by an expired lease.
    """

    def __init__(self, args: ServeArgs, keys: Sequence[ApiKey]) -> None:
        """Take note of what to start; `start` does, once, when the first ingress asks."""
        self._args, self._keys = args, keys
        self._stack = AsyncExitStack()
        self._starting: asyncio.Task[None] | None = None
        self._cluster: Cluster | None = None
        self._services: Services | None = None

    async def contacts(self) -> Contacts:
        """The cluster's actors; starts them first.

        Raises:
            ModelError: the model cannot be loaded.
            ClusterError: Ray has too little to give.
        """
        services = await self._started()
        assert self._cluster is not None
        return Contacts(self._cluster.actors.manager, self._cluster.actors.workers, services.kv_bytes_per_token)

    async def do(self, service: str, verb: str, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """Call a method of one of the services: "trees", "searches", "accounts" or "replays"."""
        services = await self._started()
        return await getattr(getattr(services, service), verb)(*arguments, **options)

    async def hold(self) -> None:
        """Return never: an ingress that is there keeps this call under way, and cancels it when it ends.

        Serve ends no process in the middle of a call. So when an application ends its desk stays until the ingresses
        have done the requests under way.
        """
        await asyncio.Event().wait()

    async def check_health(self) -> None:
        """Raise if the cluster is gone for good, so that Serve starts another desk."""
        if self._cluster is not None:
            await call(self._cluster.actors.manager.renew.remote([]), "the tree manager")

    async def close(self) -> None:
        """Give up all trees, and end the cluster."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stack.aclose()

    async def _started(self) -> Services:
        if self._starting is None or (self._starting.done() and self._services is None):
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)
        assert self._services is not None
        return self._services

    async def _start(self) -> None:
        args = self._args
        # On threads: loading a model takes longer than Serve's health checks are patient.
        codec = await asyncio.to_thread(TextCodec.load, args.model)
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        cpus = cpus_per_worker(args, free.get("CPU", 0.0))
        connect = functools.partial(actors.connect, config=args.engine, cpus_per_worker=cpus)
        async with AsyncExitStack() as stack:  # a start that fails is made again, and must leave no cluster
            cluster = await asyncio.to_thread(connect, args.model, args.workers)
            stack.push_async_callback(asyncio.to_thread, cluster.close)
            local = local_services(cluster, codec, self._keys, args.settings)
            self._services = await stack.enter_async_context(local)
            self._cluster, self._stack = cluster, stack.pop_all()


def cpus_per_worker(args: ServeArgs, free: float) -> int | None:
    """CPUs that each worker reserves of so many free ones; None leaves it to the cluster."""
    return args.cpus_per_worker or cpus_each(free, args.workers)


def cpus_each(free: float, workers: int) -> int | None:
    """CPUs of a worker that leave one of the free to HTTP, whose processes reserve none; None if there are too few."""
    return max(1, int((free - 1) / workers)) if free >= workers else None
