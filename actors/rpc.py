"""Calls between processes that raise the very error that the callee raised."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from dendrite.errors import Cancelled, ClusterError, DendriteError

T = TypeVar("T")

Handle: TypeAlias = Any
"""An actor's handle. Ray makes its methods at run time, so a type checker cannot know them."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class ActorLost(ClusterError):
    """An actor has died, or can't be reached, and with it what it held. It will not come back if `permanent`."""

    def __init__(self, actor: str, *, permanent: bool) -> None:
        self.actor, self.permanent = actor, permanent
        super().__init__(f"{actor} is not alive" + ("" if permanent else ", and may be restarted"))


async def call(reply: Awaitable[T], callee: str) -> T:
    """Await the reply of a remote call, such as `worker.expand.remote(...)`.

    Raises:
        DendriteError: whatever the callee raised, of the same type and with the same fields.
        Cancelled: the callee gave the call up.
        ActorLost: the callee is dead; it may have done what it was asked, or not.
        ClusterError: it failed in a way that it did not mean to.
    """
    try:
        return await reply
    except RayError as error:
        raise translate(error, callee) from error


async def call_again(make: Callable[[], Awaitable[T]], callee: str, patience_s: float) -> T:
    """Make a call that may be made twice, and make it again while the callee is being restarted.

    Raises:
        ActorLost: the callee is dead for good, or was not back within `patience_s`.
        DendriteError: what the callee raised.
    """
    deadline = time.monotonic() + patience_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return await call(make(), callee)
        except ActorLost as lost:
            if lost.permanent or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = longer(pause)


def longer(pause_s: float) -> float:
    """The pause after one of `pause_s`, between tries to reach an actor."""
    return min(2 * pause_s, _LONGEST_PAUSE_S) if pause_s else _FIRST_PAUSE_S


def translate(error: RayError, callee: str) -> DendriteError:
    """The typed error that a Ray error stands for. `callee` names the actor in words."""
    if isinstance(error, TaskCancelledError):
        return Cancelled(f"{callee} gave the call up")
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, DendriteError):
            return cause
        return ClusterError(f"{callee} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, RayActorError | NodeDiedError | ObjectLostError | WorkerCrashedError):
        return ActorLost(callee, permanent=isinstance(error, ActorDiedError))
    return ClusterError(f"{callee} cannot be reached: {type(error).__name__}")
