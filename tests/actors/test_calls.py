from __future__ import annotations

import asyncio

import pytest

from actors.calls import CancellableCalls, RunningCalls
from actors.refs import unique_id
from dendrite.errors import Cancelled, UnknownNode


async def forever() -> int:
    await asyncio.Event().wait()
    return 0


async def test_a_call_is_cancelled_by_its_id() -> None:
    calls = RunningCalls()
    first = asyncio.create_task(calls.run(1, forever()))
    second = asyncio.create_task(calls.run(2, asyncio.sleep(0.01, "done")))
    await asyncio.sleep(0)
    calls.cancel(1)
    calls.cancel(77)
    with pytest.raises(Cancelled):
        await first
    assert await second == "done"
    assert len(calls) == 0


async def test_the_calls_of_a_lease_end_together() -> None:
    calls = RunningCalls()
    doomed = [asyncio.create_task(calls.run(unique_id(1, count), forever())) for count in range(3)]
    other = asyncio.create_task(calls.run(unique_id(2, 0), forever()))
    await asyncio.sleep(0)
    await calls.cancel_lease(1)
    assert [type(error) for error in await asyncio.gather(*doomed, return_exceptions=True)] == [Cancelled] * 3
    assert not other.done()
    calls.cancel(unique_id(2, 0))
    with pytest.raises(Cancelled):
        await other


class Callee:
    """A remote call that answers when told to, and notes what is sent to it."""

    def __init__(self) -> None:
        self.reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.undone: list[str] = []
        self.cancelled = 0
        self.calls = CancellableCalls()
        self.caller = asyncio.create_task(self.calls.call(self.reply, "callee", cancel=self.cancel, undo=self.undo))

    def cancel(self) -> None:
        self.cancelled += 1

    async def undo(self, result: str) -> None:
        self.undone.append(result)

    async def cancel_caller(self) -> None:
        await asyncio.sleep(0)
        self.caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.caller


async def test_a_result_that_comes_after_cancellation_is_undone() -> None:
    callee = Callee()
    await callee.cancel_caller()
    assert callee.cancelled == 1
    callee.reply.set_result("children")
    await callee.calls.settle()
    assert callee.undone == ["children"]


async def test_a_call_that_was_cancelled_in_time_leaves_nothing_to_undo() -> None:
    callee = Callee()
    await callee.cancel_caller()
    callee.reply.set_exception(Cancelled("the call was cancelled"))
    await callee.calls.settle()
    assert callee.undone == []


async def test_an_answered_call_is_neither_cancelled_nor_undone() -> None:
    callee = Callee()
    callee.reply.set_result("children")
    assert await callee.caller == "children"
    await callee.calls.settle()
    assert (callee.cancelled, callee.undone) == (0, [])


async def test_errors_pass_through() -> None:
    callee = Callee()
    callee.reply.set_exception(UnknownNode(3, 4))
    with pytest.raises(UnknownNode):
        await callee.caller
