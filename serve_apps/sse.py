"""Server-sent events: how they are framed, and a response that ends its work when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end."""
PING = b": ping\n\n"
"""A comment, which clients pass over; it keeps an idle connection open."""


def frame(data: str, *, event: str | None = None, id: int | None = None) -> bytes:
    """One event. Each line of `data` gets a field of its own, so that no text can end the event early."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event is not None else "")
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return (head + "".join(f"data: {line}\n" for line in lines) + "\n").encode()


class EventStream(Response):
    """Sends what a generator yields. When the client disconnects the generator is closed at once, wherever it is."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str] | None = None,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take the generator over; it is closed when the response ends, however that is, and `on_end` called."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            sending = await _while_there(receive, self._send(send))
        finally:
            try:
                await self._events.aclose()
            finally:
                if self._on_end is not None:
                    await self._on_end()
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with contextlib.suppress(OSError):  # the client has gone
            async with aclosing(self._events) as events:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, but cancel it when the client disconnects, and wait for its end.

    Raises:
        ClientDisconnect: nobody waits for the answer any more.
    """
    working = await _while_there(request.receive, work)
    if working.cancelled():
        raise ClientDisconnect
    return working.result()


async def _while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Do some work until it ends or the client disconnects; its task, which has ended, or been cancelled."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    return working


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
