"""Cores of a machine that model workers have to themselves, where Dendrite has started Ray on it.

An engine on the CPU computes all the time, and what serves it (HTTP processes, the tree manager, Ray's own) wakes for a
moment, a thousand times a second. The system lets what wakes take the engine's core, though others are idle, and it may
take it from a thread that holds the interpreter's lock. So workers keep to some cores, and all others to the rest.
Linux only; elsewhere nothing is set apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from actors.processes import family, threads

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
    if named:
        _keep(os.getpid(), frozenset(map(int, named.split(","))))


def confine(workers: frozenset[int]) -> None:
    """Have this process and its descendants, but for model workers and what these have started, keep off their cores.

    Also what the processes start later, but for workers.
    """
    for process in family():
        with contextlib.suppress(OSError):  # it has ended
            has = os.sched_getaffinity(process)
            if not has <= workers:
                _keep(process, has - workers)


def _keep(process: int, cores: frozenset[int] | set[int]) -> None:
    for thread in threads(process):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)
