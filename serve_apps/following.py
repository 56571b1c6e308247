"""A log of events as a response: server-sent events that can be taken up again at any of them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, TypeAlias

from fastapi import Header, Query

from dendrite.errors import DendriteError
from serve_apps.events import Page
from serve_apps.sse import PING, frame

_WAIT_S = 10.0
MAX_EVENT = 2**53 - 1
"""No log is as long."""

LastEventId: TypeAlias = Annotated[
    int, Header(alias="Last-Event-ID", ge=0, le=MAX_EVENT, description="Go on after this event; 0 is the beginning.")
]
After: TypeAlias = Annotated[int, Query(ge=0, le=MAX_EVENT, description="Go on after this event, as by Last-Event-ID.")]


async def follow(read: Callable[[int, float], Awaitable[Page]], after: int) -> AsyncGenerator[bytes, None]:
    """The events after the one of id `after`, up to the end of the log, which an event `end` tells of.

    Where the log is lost meanwhile they just stop: whoever asks for the rest learns why from the answer's status.

    Args:
        read: of the log: the id to begin after, and the longest wait in seconds.
        after: the last event that the client has.
    """
    while True:
        try:
            page = await read(after, _WAIT_S)
        except DendriteError:
            return
        chunks = [frame(json.dumps(event), event=str(event["event"]), id=id) for id, event in page.events]
        if chunks:
            after = page.events[-1][0]
            yield b"".join(chunks)
        if page.ended:
            yield frame(json.dumps({"after": after}), event="end")
            return
        if not chunks:
            yield PING
