"""Work on an engine that may be stepping on another thread just now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Mailbox:
    """Runs calls at once between two steps, and those that come during one right after it, in their order."""

    def __init__(self) -> None:
        self.stepping = False
        """Whether a step runs on another thread."""
        self._waiting: deque[Callable[[], None]] = deque()

    async def call(self, call: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Run `call` now if the engine is between steps, else right after the step that runs.

        A caller that is cancelled while it waits never learns what the call made, so `undo` takes it back.
        """
        if not self.stepping:
            return call()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        results: list[T] = []

        def deliver() -> None:
            try:
                results.append(call())
            except BaseException as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(None)

        self._waiting.append(deliver)
        try:
            await answer
        except asyncio.CancelledError:
            if undo is not None:
                self.post(lambda: _each(undo, results))  # runs after `deliver`, which may still be waiting too
            raise
        return results[0]

    def post(self, call: Callable[[], None]) -> None:
        """Like `call`, for clean-up that nobody waits for."""
        if self.stepping:
            self._waiting.append(call)
        else:
            call()

    def drain(self) -> None:
        """Run what has waited for the end of a step."""
        while self._waiting:
            self._waiting.popleft()()


def _each(call: Callable[[T], None], values: Sequence[T]) -> None:
    for value in values:
        call(value)
