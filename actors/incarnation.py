"""Which actor this process is, and in which of its lives."""

from __future__ import annotations

import ray
from ray._private import state

from actors.rpc import Handle


def incarnation() -> int:
    """How often Ray has restarted the actor that this process is; 0 outside of actors.

    Ray's control store counts them, so that a later incarnation always has the higher number, on whatever machine.
    """
    actor = _actor_id()
    if actor is None:
        return 0
    restarts: int = state.actors(actor)["NumRestarts"]
    return restarts


def this_actor() -> Handle | None:
    """The handle of the actor that this process is; None outside of actors."""
    return None if _actor_id() is None else ray.get_runtime_context().current_actor


def _actor_id() -> str | None:
    if not ray.is_initialized():
        return None
    actor: str | None = ray.get_runtime_context().get_actor_id()
    return actor
