"""Calls between processes that raise the very error that the callee raised."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeAlias, TypeVar

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

from dendrite.errors import Cancelled, ClusterError, DendriteError

T = TypeVar("T")

Handle: TypeAlias = Any
"""An actor's handle. Ray makes its methods at run time, so a type checker cannot know them."""


async def call(reply: Awaitable[T], callee: str) -> T:
    """Await the reply of a remote call, such as `worker.expand.remote(...)`.

    Raises:
        DendriteError: whatever the callee raised, of the same type and with the same fields.
        Cancelled: the callee gave the call up.
        ClusterError: the callee is dead, or it failed in a way that it did not mean to.
    """
    try:
        return await reply
    except RayError as error:
        raise translate(error, callee) from error


def translate(error: RayError, callee: str) -> DendriteError:
    """The typed error that a Ray error stands for. `callee` names the actor in words."""
    if isinstance(error, TaskCancelledError):
        return Cancelled(f"{callee} gave the call up")
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, DendriteError):
            return cause
        return ClusterError(f"{callee} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, RayActorError):
        return ClusterError(f"{callee} is not alive")
    return ClusterError(f"{callee} cannot be reached: {type(error).__name__}")
