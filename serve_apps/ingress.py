"""One HTTP process: stateless, with a lease of its own on the cluster that its requests run on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from fastapi import FastAPI

from actors.cluster_client import ClusterClient
from actors.lease_keeper import LeaseKeeper
from actors.leases import Lease
from actors.rpc import ActorLost, Handle, call
from dendrite.errors import LeaseExpired
from serve_apps.args import ServeArgs
from serve_apps.desk import Contacts
from serve_apps.http import create_app, serve_from
from serve_apps.metrics import Metrics
from serve_apps.remote import RemoteAccounts, RemoteReplays, RemoteSearches, RemoteTrees
from serve_apps.security import ApiKey, Keyring
from serve_apps.services import Services
from serve_apps.text import TextCodec


class _Place:
    """A client of one cluster, under a lease that is kept."""

    def __init__(self, contacts: Contacts, lease: Lease) -> None:
        self.client = ClusterClient(contacts.manager, contacts.workers, lease.id)
        self._manager: Handle = contacts.manager
        self._lease = lease
        self._keeper = LeaseKeeper(contacts.manager, lease.ttl_s)
        self._keeper.add(lease.id)

    async def check(self) -> None:
        """Raise if the cluster, or the lease on it, is gone.

        Workers don't count: one that is lost comes back, and streams wait for it.
        """
        ended: list[int] = await call(self._manager.renew.remote([self._lease.id]), "the tree manager")
        if ended:
            raise LeaseExpired(0)

    async def close(self) -> None:
        """Give up what requests have left, and the lease."""
        await self.leave()
        with contextlib.suppress(ActorLost):  # the cluster has ended first
            await self.client.settle()
            await call(self._manager.close_lease.remote(self._lease.id), "the tree manager")

    async def leave(self) -> None:
        """Let the lease run out."""
        await asyncio.to_thread(self._keeper.close)


class Seat:
    """An ingress's place at the cluster, and at the next one where that is lost; makes the application that uses it."""

    def __init__(self, args: ServeArgs, keys: Sequence[ApiKey], desk: Handle) -> None:
        """Prepare; `take` begins.

        Args:
            args: of the application.
            keys: whom to serve.
            desk: a handle of the `Desk`.
        """
        self._args, self._keyring, self._desk = args, Keyring(keys), desk
        self._limits = {key.id: key.limits for key in keys}
        self._holding: Handle = None
        """The call that keeps the desk."""
        self._metrics = Metrics()
        self._codec: TextCodec | None = None
        self._place: _Place | None = None

    async def take(self) -> FastAPI:
        """Open a lease, and make the application that works under it."""
        return create_app(await self._services())

    async def check_health(self, app: FastAPI) -> None:
        """See to it that the application has a cluster to work with; raise if there is none.

        The desk starts another cluster where its own is lost. What a request had on the old one fails with it.
        """
        assert self._place is not None
        try:
            await self._place.check()
        except (ActorLost, LeaseExpired):
            await self._place.leave()
            serve_from(app, await self._services())

    async def close(self) -> None:
        """Give up what requests have left, and the lease."""
        try:
            if self._place is not None:
                await self._place.close()
        finally:
            self._let_go()

    async def _services(self) -> Services:
        if self._codec is None:
            self._codec = await asyncio.to_thread(TextCodec.load, self._args.model)
        contacts: Contacts = await call(self._desk.contacts.remote(), "the desk")
        self._let_go()
        self._holding = self._desk.hold.remote()
        do = self._desk.do.remote
        lease: Lease = await call(contacts.manager.open_lease.remote(), "the tree manager")
        self._place = _Place(contacts, lease)
        return Services(
            backend=self._place.client,
            codec=self._codec,
            keyring=self._keyring,
            accounts=RemoteAccounts(do, self._limits),
            trees=RemoteTrees(do),
            searches=RemoteSearches(do),
            replays=RemoteReplays(do),
            settings=self._args.settings,
            metrics=self._metrics,
            kv_bytes_per_token=contacts.kv_bytes_per_token,
        )

    def _let_go(self) -> None:
        if self._holding is not None:
            self._holding.cancel()  # a new call would not reach a desk that is to end too
