"""Cores of a machine that model workers keep to, where Dendrite has started Ray on it.

An engine on the CPU computes all the time, and what serves it (HTTP processes, the tree manager, Ray's own) wakes for a
moment, a thousand times a second. Then the system moves threads from core to core, and stops the engine for another
though a core is idle. A worker that stays on cores of its own leaves the others to the rest, which go where there is
room. Linux only; elsewhere nothing is set apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "DENDRITE_WORKER_CORES"
"""In the environment of all that this Ray starts: the workers' cores, such as "0,1,2"."""


def choose(count: int) -> frozenset[int]:
    """`count` of this process's cores for model workers; none if none would be left for the others."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    cores = sorted(os.sched_getaffinity(0))
    return frozenset(cores[:count]) if 0 < count < len(cores) else frozenset()


def written(cores: Iterable[int]) -> str:
    """Cores as the environment names them."""
    return ",".join(map(str, sorted(cores)))


def take() -> None:
    """Have this process, which is a model worker, and all that it starts keep to the workers' cores, if there are."""
    named = os.environ.get(VARIABLE)
    if not named:
        return
    cores = set(map(int, named.split(",")))
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)
