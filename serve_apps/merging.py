"""Several asynchronous iterators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 64
"""Values that may wait for the consumer; the sources wait for it after that."""


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T | None], None]:
    """Yield (index of the source, value) as values come, and (index, None) when a source has ended.

    The first error ends all. Closing the iterator closes the sources.
    """
    if len(sources) == 1:  # needs no task
        async with aclosing(sources[0]) as values:
            async for only in values:
                yield 0, only
        yield 0, None
        return
    queue: asyncio.Queue[tuple[int, T | None, BaseException | None]] = asyncio.Queue(_AHEAD)

    async def drain(index: int, source: AsyncGenerator[T, None]) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(source) as values:
                async for value in values:
                    await queue.put((index, value, None))
        except Exception as raised:
            error = raised
        await queue.put((index, None, error))

    tasks = [asyncio.create_task(drain(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, value, error = await queue.get()
            if error is not None:
                raise error
            left -= value is None
            yield index, value
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
