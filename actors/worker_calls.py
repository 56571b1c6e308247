"""Messages of a client to the workers and to the tree manager, under one lease."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from actors.calls import CancellableCalls
from actors.exchange import Line, Piece
from actors.fleet import Fleet
from actors.lineage import Release
from actors.refs import ClusterNode, Given, unique_id, worker_name
from actors.rpc import ActorLost, Handle, call, call_again
from dendrite.config import SamplingParams
from dendrite.errors import ClusterError, Overloaded
from dendrite.search.backend import Branch

T = TypeVar("T")

MANAGER = "the tree manager"


class WorkerCalls:
    """Calls that can be cancelled, releases that a lost worker can't fail, and questions that wait for a restart."""

    def __init__(self, manager: Handle, lease: int, fleet: Fleet) -> None:
        self.manager, self.lease, self.fleet = manager, lease, fleet
        self._options = fleet.options
        self._count = itertools.count()
        self._calls = CancellableCalls()
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, Line]] = WeakKeyDictionary()

    def new_id(self) -> int:
        """A number for a tree or a call, which no other has."""
        return unique_id(self.lease, next(self._count))

    async def settle(self) -> None:
        """Return once calls that were cancelled have left nothing behind."""
        await self._calls.settle()

    # ---------------------------------------------------------------- to one worker

    async def cancellable(self, reply: Awaitable[T], callee: str, *, cancel: Callable[[], object]) -> T:
        """Await a reply of which nothing has to be taken back. Cancelling the awaiting task sends `cancel`."""
        return await self._calls.call(reply, callee, cancel=cancel)

    async def send(
        self,
        worker: int,
        method: str,
        *arguments: Any,
        undo: Callable[[T], Awaitable[None]] | None = None,
        tell: Callable[[Piece], None] | None = None,
    ) -> T:
        """Make a call of a worker that can be cancelled; one that is overloaded is given the time that it asks for.

        It counts as under way at once, so that a call routed in the same breath goes elsewhere. `tell` is called with
        what comes of it meanwhile.

        Raises:
            Overloaded: it still is, after the longest wait for a worker.
        """
        line = self._line(worker)
        deadline = time.monotonic() + self._options.restart_timeout_s
        with self.fleet.under_way(worker):
            while True:
                call_id = self.new_id()
                try:
                    reply = line.call(call_id, method, (call_id, *arguments), tell)
                    cancel = functools.partial(self._post, worker, "cancel", call_id)
                    watched = self.fleet.watch(worker, reply, undo)
                    return await self._calls.call(watched, worker_name(worker), cancel=cancel, undo=undo)
                except Overloaded as error:
                    if time.monotonic() + error.retry_after_s > deadline:
                        raise
                    await asyncio.sleep(error.retry_after_s)

    async def stream(
        self, at: ClusterNode, params: SamplingParams, every_s: float, tell: Callable[[Piece], None]
    ) -> Branch:
        """Have a worker generate a child of a node, telling of its tokens as they come. Raises what `send` raises."""
        arguments = at.tree, at.node, params, every_s, self._line(at.worker).id
        return await self.send(at.worker, "stream", *arguments, undo=self._take_back_one, tell=tell)

    def _line(self, worker: int) -> Line:
        """This event loop's line to a worker."""
        lines = self._lines.setdefault(asyncio.get_running_loop(), {})
        if worker not in lines:
            lines[worker] = Line(self.new_id(), functools.partial(self._exchange, worker))
        return lines[worker]

    async def _exchange(self, worker: int, client: int, message: bytes) -> bytes:
        answer: bytes = await call(self.fleet.handle(worker).exchange.remote(client, message), worker_name(worker))
        return answer

    def _post(self, worker: int, method: str, *arguments: Any) -> Awaitable[Any]:
        """Make a call of a worker that nothing has to be taken back of. It is on its way, be it awaited or not."""
        return asyncio.shield(self._line(worker).call(self.new_id(), method, arguments))

    async def _take_back_one(self, branch: Branch) -> None:
        await self.take_back([branch])

    async def give_up(self, at: ClusterNode) -> None:
        """Have a worker release one node."""
        await self._release(at.worker, [Given(at.tree, at.node)])

    async def take_back(self, branches: list[Branch]) -> None:
        """Have the workers release the nodes of branches that nobody wants any more."""
        nodes = [branch.node for branch in branches]
        await asyncio.gather(*(self.give_up(node) for node in nodes if isinstance(node, ClusterNode)))

    async def release(self, due: Sequence[Release]) -> None:
        """Tell workers what to release; one that is lost has nothing left to release."""
        there: dict[int, list[Given]] = {}
        for release in due:
            at, given = release.copy.at, Given(release.copy.at.tree, release.copy.at.node, release.subtree)
            if release.copy.epoch == self.fleet.epoch(at.worker):
                there.setdefault(at.worker, []).append(given)
            else:  # the worker was given up, but may be there after all
                self.fleet.handle(at.worker).release.remote([given])
        sent = [self._release(worker, nodes) for worker, nodes in there.items()]
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, ActorLost):
                raise outcome

    def _release(self, worker: int, nodes: list[Given]) -> Awaitable[None]:
        return self.fleet.watch(worker, self._post(worker, "release", nodes))

    def add_replica(self, copy: ClusterNode, original: ClusterNode) -> None:
        """Have a worker, and by it the tree manager, know that a node of it is a copy of another's."""
        self.fleet.handle(copy.worker).add_replica.remote(copy.tree, copy.node, original)

    async def reclaim(self, worker: int) -> None:
        """Have a worker release all that it holds under the lease."""
        with contextlib.suppress(ActorLost):  # what it held is gone with it
            reply = self.fleet.handle(worker).reclaim.remote(self.lease, False)
            await call(self.fleet.watch(worker, reply), worker_name(worker))

    async def flush(self, worker: int) -> None:
        """Return once the tree manager has heard of all that has happened on a worker, or that worker is lost."""
        with contextlib.suppress(ActorLost):
            await call(self.fleet.watch(worker, self.fleet.handle(worker).flush.remote()), worker_name(worker))

    # ---------------------------------------------------------------- to all workers, and to the manager

    def ask(self, method: str) -> list[Awaitable[Any]]:
        """Ask all workers, patiently."""
        patience = self._options.restart_timeout_s
        methods = {worker: getattr(self.fleet.handle(worker), method) for worker in self.fleet.members}
        return [call_again(each.remote, worker_name(worker), patience) for worker, each in methods.items()]

    async def meet(self, worker: int) -> None:
        """Have a worker that the tree manager has named join the fleet, and those before it, if it is new.

        One that has not introduced itself since the manager was restarted cannot join yet.
        """
        if self.fleet.knows(worker):
            return
        first = min(worker, len(self.fleet))
        handles: list[Handle | None] = await self.ask_manager(lambda: self.manager.handles.remote(first, worker + 1))
        if handles[-1] is None:
            return
        for index, handle in enumerate(handles, first):
            self.fleet.join(index, handle)

    async def ask_manager(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the tree manager, which may be made twice, and wait while it is being restarted.

        Raises:
            ClusterError: it is dead for good, or was not back in time.
        """
        try:
            return await call_again(ask, MANAGER, self._options.manager_timeout_s)
        except ActorLost as lost:
            raise ClusterError(str(lost)) from lost  # which no other worker can make good
