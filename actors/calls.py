"""Calls that can be cancelled from another process without losing track of what they made.

The caller gives its calls ids. To cancel one it sends the id and goes on waiting for the reply, which is then either
`Cancelled` or, if the call was faster, a result that the caller takes back. (Ray's own `ray.cancel` drops the result of
a call that it reaches too late, and with it the names of nodes that somebody has to release.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from actors.refs import lease_of
from actors.rpc import call
from dendrite.errors import Cancelled, DendriteError

T = TypeVar("T")


class RunningCalls:
    """The callee's side: calls under way, by id."""

    def __init__(self) -> None:
        self._tasks: dict[int, asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, call_id: int, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` as the call `call_id`.

        Raises:
            Cancelled: it was cancelled by id or by lease.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[call_id] = task
        try:
            return await task
        except asyncio.CancelledError:
            raise Cancelled("the call was cancelled") from None
        finally:
            del self._tasks[call_id]

    def cancel(self, call_id: int) -> None:
        """Cancel a call; it may have ended, or not have begun, which changes nothing."""
        if call_id in self._tasks:
            self._tasks[call_id].cancel()

    async def cancel_lease(self, lease: int) -> None:
        """Cancel all calls made under a lease, and return once they have ended."""
        tasks = [task for call_id, task in self._tasks.items() if lease_of(call_id) == lease]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class CancellableCalls:
    """The caller's side: awaits replies, and cleans up after calls whose awaiting task is cancelled."""

    def __init__(self) -> None:
        self._cleaning: set[asyncio.Task[None]] = set()

    async def call(
        self,
        reply: Awaitable[T],
        callee: str,
        *,
        cancel: Callable[[], object],
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """Await a reply. If the awaiting task is cancelled, send `cancel`, and `undo` a result that still comes.

        The clean-up goes on in the background; `settle` waits for it.
        """
        waiting = asyncio.ensure_future(call(reply, callee))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            cancel()
            task = asyncio.get_running_loop().create_task(_clean_up(waiting, undo))
            self._cleaning.add(task)
            task.add_done_callback(self._cleaning.discard)
            raise

    async def settle(self) -> None:
        """Return once every cancelled call has ended or been undone."""
        while self._cleaning:
            await asyncio.gather(*self._cleaning)


async def _clean_up(waiting: asyncio.Future[T], undo: Callable[[T], Awaitable[None]] | None) -> None:
    try:
        result = await waiting
        if undo is not None:
            await undo(result)
    except DendriteError:
        pass  # cancelled in time, or the callee is gone with all that it held
