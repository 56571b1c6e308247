"""Waiting for an actor that may have stopped: for as long as it gives signs of life, which is not a matter of time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from actors.rpc import ActorLost, Handle, call
from dendrite.errors import ClusterError

T = TypeVar("T")


async def answer(waiting: asyncio.Future[T], actor: Handle, name: str, silence_s: float) -> T:
    """Await what an actor is to answer, and ask for its `health` each time it has been silent for `silence_s` seconds.

    Args:
        waiting: the answer. It is not cancelled, whatever happens here.
        actor: has a method `health`, which answers at once.
        name: the actor in words.
        silence_s: the longest wait for a sign of life, too.

    Raises:
        ActorLost: it is dead, or silent.
    """
    try:
        while not (await asyncio.wait([waiting], timeout=silence_s))[0]:
            if not await _gives_signs(actor, name, silence_s):
                raise ActorLost(name, permanent=False)
        return waiting.result()
    finally:
        waiting.add_done_callback(_seen)


async def _gives_signs(actor: Handle, name: str, silence_s: float) -> bool:
    try:
        async with asyncio.timeout(silence_s):
            await call(actor.health.remote(), name)
    except TimeoutError:
        return False
    except ClusterError:
        pass  # dead: the answer itself is about to say so
    return True


def _seen(waiting: asyncio.Future[T]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not waiting.cancelled():
        waiting.exception()
