"""Places for workers: bundles of processors and GPUs, a bundle a process, all of a worker's on one machine."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.placement import WorkerShare
from dendrite.errors import ClusterError


class NoRoom(ClusterError):
    """No machine had room for a worker in time. `asked` and `free` are processors and GPUs by name.

    `asked` is of each of the worker's `ranks` processes, which lie on one machine; `free` is of all machines together.
    """

    def __init__(self, asked: dict[str, float], ranks: int, free: dict[str, float], waited_s: float) -> None:
        self.asked, self.ranks, self.free, self.waited_s = asked, ranks, free, waited_s
        one = " and ".join(f"{count:g} {name}" for name, count in asked.items())
        all_free = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in asked)
        times = "" if ranks == 1 else f"{ranks} times "
        super().__init__(f"no machine had {times}{one} free within {waited_s:.3g} s; all together have {all_free} free")


def reserve(part: WorkerShare, ranks: int, timeout_s: float, stop: threading.Event | None = None) -> PlacementGroup:
    """Reserve a bundle for each of a worker's processes, all on one machine. An autoscaler of Ray's may make one.

    Raises:
        NoRoom: there was none in time, or `stop` was set meanwhile; nothing is reserved.
    """
    bundle = {name: float(count) for name, count in (("CPU", part.cpus), ("GPU", part.gpus)) if count}
    group: PlacementGroup = placement_group([bundle] * ranks, strategy="STRICT_PACK")
    began = time.monotonic()
    while not group.wait(min(1.0, timeout_s)):
        waited_s = time.monotonic() - began
        if waited_s >= timeout_s or (stop is not None and stop.is_set()):
            remove_placement_group(group)
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            raise NoRoom(bundle, ranks, {name: free.get(name, 0.0) for name in bundle}, waited_s)
    return group


def bundle_options(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Options of an actor that takes one of a group's bundles whole."""
    bundle = group.bundle_specs[index]
    return {
        "num_cpus": bundle.get("CPU", 0.0),
        "num_gpus": bundle.get("GPU", 0.0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
    }


class Reservations:
    """The placement groups of a cluster's workers, by the workers' numbers."""

    def __init__(self) -> None:
        self._groups: dict[int, PlacementGroup] = {}

    def place(
        self, worker: int, part: WorkerShare, ranks: int, timeout_s: float, stop: threading.Event | None = None
    ) -> dict[str, Any]:
        """Reserve a worker's place; the options of its first process. Raises what `reserve` raises."""
        group = reserve(part, ranks, timeout_s, stop)
        self._groups[worker] = group
        return {**part.options(), **bundle_options(group, 0)}

    def give_back(self, worker: int) -> None:
        """Give a worker's place back, if it has one, which ends what runs there. Idempotent."""
        group = self._groups.pop(worker, None)
        if group is not None:
            _give_back(group)

    def end(self) -> None:
        """Give everything back. Idempotent."""
        for worker in list(self._groups):
            self.give_back(worker)


def _give_back(group: PlacementGroup) -> None:
    with contextlib.suppress(RayError, ValueError):
        remove_placement_group(group)
