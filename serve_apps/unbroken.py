"""Work that reaches its end whatever becomes of whoever asked for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Unbroken:
    """Does work in tasks of its own, so that a caller who is cancelled does not leave it half done."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work, and wait for it. It begins even where the caller has been cancelled by then.

        It is done in no caller's context: with a request Ray cancels the calls made in its context.
        """
        task = asyncio.create_task(work, context=contextvars.Context())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Return once nothing is under way."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
