"""How a restartable actor is told of others: its constructor runs again after a restart, from the same arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ray import cloudpickle

from actors.rpc import Handle

Peers: TypeAlias = Callable[[], Sequence[Handle]]
"""Gives the handles of other actors."""


def peers(actors: Sequence[Handle]) -> Peers:
    """Other actors, for the constructor of one that may be restarted. Whoever starts them all keeps them alive.

    A handle that is an argument itself is an object with an owner to Ray, and an actor that needs an object cannot be
    restarted once that is lost. Here the handles are plain bytes.
    """
    return functools.partial(cloudpickle.loads, cloudpickle.dumps(tuple(actors)))  # type: ignore[no-untyped-call]
