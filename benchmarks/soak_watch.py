"""What a soak measures on its way: the memory of all processes and what the cluster holds; and whether memory grows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.cluster_client import ClusterClient
from actors.rpc import Handle, call
from benchmarks.process_memory import Memory, allocated, family, memory, ray_role
from benchmarks.trend import Trend, theil_sen

_OURS = {
    "ModelWorker": "worker",
    "TreeManager": "manager",
    "SearchDriver": "search_driver",
    "Desk": "desk",
    "Ingress": "ingress",
}
_RAYS = {"ProxyActor": "proxy", "ServeController": "controller", "raylet": "raylet", "gcs_server": "gcs"}


_HEAP_NOISE = 0.02
"""The share of a process's memory that its heaps may seem to grow by: they take and return it in steps of MBs."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the workers hold, and what the manager has on record; leases besides the server's own."""

    pages: int
    nodes: int
    trees: int
    leases: int

    @property
    def nothing(self) -> bool:
        """Whether all of it is zero."""
        return not (self.pages or self.nodes or self.trees or self.leases)


@dataclass(frozen=True, slots=True)
class Sample:
    """The processes' memory, by their names, and what was held, some seconds after the beginning.

    `allocated` is what their allocators have given out, in MB, of those that could be asked.
    """

    seconds: float
    memory: dict[str, Memory]
    held: Held
    allocated: dict[str, float] = field(default_factory=dict)


class Watch:
    """Notes, every few seconds, the memory of all processes and what is held."""

    def __init__(self, client: ClusterClient, own_leases: int, handles: Sequence[Handle]) -> None:
        """Watch a cluster; `handles` are the actors that are asked what they have allocated."""
        self.samples: list[Sample] = []
        self._handles = handles
        self._client, self._own_leases = client, own_leases
        self._names: dict[int, str] = {}
        self._began = time.monotonic()

    async def note(self) -> Sample:
        """Take a sample."""
        held = await self.held()
        asked = (call(handle.__ray_call__.remote(_allocated_there), "an actor") for handle in self._handles)
        told: dict[int, float] = dict(await asyncio.gather(*asked))
        taken = self._memory()
        given_out = {self._names[process]: value for process, value in told.items() if process in self._names}
        self.samples.append(Sample(time.monotonic() - self._began, taken, held, given_out))
        return self.samples[-1]

    async def held(self) -> Held:
        """What is held now."""
        workers = await self._client.worker_stats(fresh=True)
        manager = await self._client.manager_stats()
        pages = sum(worker.engine.pages_held for worker in workers)
        nodes = sum(worker.live_nodes for worker in workers)
        return Held(pages, nodes, manager.trees, manager.leases - self._own_leases)

    async def run(self, every_s: float) -> None:
        """Take samples until cancelled."""
        while True:
            await self.note()
            await asyncio.sleep(every_s)

    def _memory(self) -> dict[str, Memory]:
        found: dict[str, Memory] = {}
        for number, process in enumerate(family()):
            name = self._name(process) if number else "driver"
            if name is not None and (taken := memory(process)) is not None:
                found[name] = taken
        return found

    def _name(self, process: int) -> str | None:
        """Its role, with a number where several processes have it; for good, so that a new process has a new name."""
        if process not in self._names:
            role = ray_role(process)
            kind = {**_OURS, **_RAYS}.get(role or "")
            if kind is None:
                return None
            self._names[process] = f"{kind}{sum(name.startswith(kind) for name in self._names.values())}"
        return self._names[process]


def _allocated_there(actor: object) -> tuple[int, float]:
    """What an actor's process answers."""
    return os.getpid(), allocated()


@dataclass(frozen=True, slots=True)
class Trends:
    """Slopes in MB an hour by process: of its memory, and of what its allocators have given out."""

    private: dict[str, Trend]
    allocated: dict[str, Trend]


def trends(samples: Sequence[Sample], warm_up_s: float) -> Trends:
    """The slopes over the second half of the time after the warm-up.

    A process that there are too few samples of is left out.
    """
    half = (warm_up_s + samples[-1].seconds) / 2
    late = [sample for sample in samples if sample.seconds >= half]
    private = [(each.seconds, {name: taken.private for name, taken in each.memory.items()}) for each in late]
    return Trends(_slopes(private), _slopes([(each.seconds, each.allocated) for each in late]))


def _slopes(taken: Sequence[tuple[float, dict[str, float]]]) -> dict[str, Trend]:
    series: dict[str, list[tuple[float, float]]] = {}
    for seconds, values in taken:
        for name, value in values.items():
            series.setdefault(name, []).append((seconds / 3_600, value))
    return {name: theil_sen(*zip(*points, strict=True)) for name, points in series.items() if len(points) >= 3}


def growing(samples: Sequence[Sample], warm_up_s: float, noise_mb: float) -> list[str]:
    """The processes of ours that have grown for sure in the time of `trends`.

    What they have allocated has, by more than `noise_mb`, or their memory by more than that and than heaps' noise.
    """
    hours = (samples[-1].seconds - warm_up_s) / 2 / 3_600
    found = trends(samples, warm_up_s)
    last = samples[-1].memory
    grown = {name for name, trend in found.allocated.items() if trend.low > 0 and trend.slope * hours > noise_mb}
    for name, trend in found.private.items():
        heaps = _HEAP_NOISE * last[name].private if name in last else 0.0
        if trend.low > 0 and trend.slope * hours > max(noise_mb, heaps):
            grown.add(name)
    return [name for name in found.private if name in grown and is_ours(name)]


def replaced(samples: Sequence[Sample]) -> set[str]:
    """The processes of ours that were not there from the first sample to the last."""
    first, last = (set(filter(is_ours, sample.memory)) for sample in (samples[0], samples[-1]))
    return first ^ last


def is_ours(name: str) -> bool:
    """Whether a process is the project's own, and not one of Ray's."""
    return name.startswith((*_OURS.values(), "driver"))
