"""Releases of one moment are one message, and none is lost with the task that asked for it."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import strategies as st

from actors.fleet import Fleet
from actors.release_queue import Given, ReleaseQueue
from tests.actors.in_process import LocalHandle


class Receiver:
    """Takes the messages of one worker."""

    def __init__(self) -> None:
        self.messages: list[list[Given]] = []

    async def release(self, nodes: list[Given]) -> None:
        self.messages.append(list(nodes))


turns = st.lists(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.booleans()), min_size=1, max_size=6), max_size=5
)


@given(turns)
def test_each_release_is_sent_once_and_those_of_a_turn_together(asked: list[list[tuple[int, int, bool]]]) -> None:
    receivers = [Receiver(), Receiver()]

    async def release() -> None:
        queue = ReleaseQueue(Fleet([LocalHandle(receiver) for receiver in receivers]))
        for turn in asked:
            tasks = [asyncio.ensure_future(queue.send(worker, [Given(1, node)])) for worker, node, _ in turn]
            for task, (_, _, gives_up) in zip(tasks, turn, strict=True):
                if gives_up:
                    task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await asyncio.sleep(0.001)

    asyncio.run(release())
    for worker, receiver in enumerate(receivers):
        expected = [[Given(1, node) for to, node, _ in turn if to == worker] for turn in asked]
        assert receiver.messages == [message for message in expected if message]
