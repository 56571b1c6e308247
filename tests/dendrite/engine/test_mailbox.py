"""Calls on an engine that may be in a step: none during it, none lost, none left behind by a caller that went away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dendrite.engine.mailbox import Mailbox


class Refused(Exception):
    pass


def refuse() -> int:
    raise Refused


def end_step(mailbox: Mailbox) -> None:
    mailbox.stepping = False
    mailbox.drain()


async def waiting(
    mailbox: Mailbox, call: Callable[[], int], undo: Callable[[int], None] | None = None
) -> asyncio.Task[int]:
    """A call that has come during a step and waits for its end."""
    mailbox.stepping = True
    task = asyncio.ensure_future(mailbox.call(call, undo))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_between_steps_a_call_runs_at_once() -> None:
    mailbox = Mailbox()
    assert await mailbox.call(lambda: 3) == 3
    with pytest.raises(Refused):
        await mailbox.call(refuse)
    done: list[int] = []
    mailbox.post(lambda: done.append(1))
    assert done == [1]


async def test_what_comes_during_a_step_runs_after_it_in_order() -> None:
    mailbox, done = Mailbox(), list[int]()

    def note(number: int) -> int:
        done.append(number)
        return 10 * number

    first = await waiting(mailbox, lambda: note(1))
    mailbox.post(lambda: done.append(2))
    second = await waiting(mailbox, lambda: note(3))
    assert done == []
    end_step(mailbox)
    assert done == [1, 2, 3]
    assert await asyncio.gather(first, second) == [10, 30]


async def test_an_error_after_the_step_is_its_caller_s_alone() -> None:
    mailbox = Mailbox()
    refused, other = await waiting(mailbox, refuse), await waiting(mailbox, lambda: 1)
    end_step(mailbox)
    with pytest.raises(Refused):
        await refused
    assert await other == 1


async def test_what_a_cancelled_caller_never_learns_of_is_undone() -> None:
    mailbox, undone = Mailbox(), list[int]()
    task = await waiting(mailbox, lambda: 5, undone.append)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == []
    end_step(mailbox)
    assert undone == [5]


async def test_a_call_that_fails_for_a_cancelled_caller_has_nothing_to_undo() -> None:
    mailbox, undone = Mailbox(), list[int]()
    task = await waiting(mailbox, refuse, undone.append)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    end_step(mailbox)
    assert undone == []
