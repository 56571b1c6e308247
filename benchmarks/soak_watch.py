"""What a soak measures on its way: the memory of all processes and what the cluster holds; and whether memory grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.cluster_client import ClusterClient
from benchmarks.process_memory import Memory, family, memory, ray_role
from benchmarks.trend import Trend, theil_sen

_OURS = {
    "ModelWorker": "worker",
    "TreeManager": "manager",
    "SearchDriver": "search_driver",
    "Desk": "desk",
    "Ingress": "ingress",
}
_RAYS = {"ProxyActor": "proxy", "ServeController": "controller", "raylet": "raylet", "gcs_server": "gcs"}


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
    """The processes' memory, by their names, and what was held, some seconds after the beginning."""

    seconds: float
    memory: dict[str, Memory]
    held: Held


class Watch:
    """Notes, every few seconds, the memory of all processes and what is held."""

    def __init__(self, client: ClusterClient, own_leases: int) -> None:
        self.samples: list[Sample] = []
        self._client, self._own_leases = client, own_leases
        self._names: dict[int, str] = {}
        self._began = time.monotonic()

    async def note(self) -> Sample:
        """Take a sample."""
        held = await self.held()
        self.samples.append(Sample(time.monotonic() - self._began, self._memory(), held))
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


def trends(samples: Sequence[Sample], warm_up_s: float) -> dict[str, Trend]:
    """The slope of each process's memory over the second half of the time after the warm-up, in MB an hour.

    A process that there are too few samples of is left out.
    """
    half = (warm_up_s + samples[-1].seconds) / 2
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, taken in sample.memory.items() if sample.seconds >= half else ():
            series.setdefault(name, []).append((sample.seconds / 3_600, taken.private))
    return {name: theil_sen(*zip(*points, strict=True)) for name, points in series.items() if len(points) >= 3}


def growing(samples: Sequence[Sample], warm_up_s: float, noise_mb: float) -> list[str]:
    """The processes of ours that have grown for sure, and by more than `noise_mb` in the time of `trends`."""
    hours = (samples[-1].seconds - warm_up_s) / 2 / 3_600
    found = {name: trend for name, trend in trends(samples, warm_up_s).items() if is_ours(name)}
    return [name for name, trend in found.items() if trend.low > 0 and trend.slope * hours > noise_mb]


def replaced(samples: Sequence[Sample]) -> set[str]:
    """The processes of ours that were not there from the first sample to the last."""
    first, last = (set(filter(is_ours, sample.memory)) for sample in (samples[0], samples[-1]))
    return first ^ last


def is_ours(name: str) -> bool:
    """Whether a process is the project's own, and not one of Ray's."""
    return name.startswith((*_OURS.values(), "driver"))
