"""The actors of one cluster: started together, ended together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.leases import Lease
from actors.model_worker import ModelWorker
from actors.placement import WorkerShare, share
from actors.rpc import Handle, translate
from actors.search_driver import SearchDriver
from actors.tree_manager import TreeManager
from dendrite.config import EngineConfig
from dendrite.errors import ClusterError, InvalidArgument

MAX_ACTORS = 1_024
_FREE_WITHIN_S = 5.0  # what ended actors had reserved takes a moment to be free again
_MOST_CALLS = 4_096  # under way in one actor; Ray holds back what is over that


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a cluster is to be made of.

    Raises:
        InvalidArgument: a number is out of range.
    """

    model: str
    workers: int
    drivers: int
    lease_ttl_s: float
    start_timeout_s: float
    cpus_per_worker: int | None
    config: EngineConfig

    def __post_init__(self) -> None:
        for name in ("workers", "drivers", "cpus_per_worker"):
            value = getattr(self, name)
            if name == "cpus_per_worker" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ACTORS:
                raise InvalidArgument(name, value, f"must be a whole number, 1 to {MAX_ACTORS}")
        for name in ("lease_ttl_s", "start_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidArgument(name, getattr(self, name), "must be a positive number of seconds")


class ActorGroup:
    """A tree manager, model workers and search drivers. Ending the group ends all that was started, however far."""

    manager: Handle
    workers: Sequence[Handle] = ()
    drivers: Sequence[Handle] = ()

    def __init__(self) -> None:
        self._started: list[Handle] = []

    def start(self, plan: ClusterPlan) -> None:
        """Start all actors on the Ray that this process is connected to, and load the model in every worker.

        Raises:
            ModelError: the model cannot be loaded.
            ClusterError: Ray has too little to give, or an actor does not start in time.
        """
        part = _share(plan)
        config = plan.config.model_copy(update={"device": part.device})
        self.manager = self._start(TreeManager, {"num_cpus": 0}, plan.lease_ttl_s)
        self.workers = [
            self._start(ModelWorker, part.options(), index, plan.model, config, part.threads, self.manager)
            for index in range(plan.workers)
        ]
        self.drivers = [
            self._start(SearchDriver, {"num_cpus": 0}, self.manager, self.workers, plan.lease_ttl_s)
            for _ in range(plan.drivers)
        ]
        _wait([worker.load.remote() for worker in self.workers], "a worker", plan.start_timeout_s)
        _wait([self.manager.start.remote(self.workers)], "the tree manager", plan.start_timeout_s)

    def open_lease(self) -> Lease:
        """Open a lease for this process."""
        lease: Lease = _wait([self.manager.open_lease.remote()], "the tree manager", 60.0)[0]
        return lease

    def end(self) -> None:
        """End every actor that was started. Idempotent."""
        for actor in reversed(self._started):
            with contextlib.suppress(RayError, ValueError):  # one that is dead, or whose Ray is
                ray.kill(actor)
        self._started.clear()

    def _start(self, kind: type[Any], options: dict[str, Any], *arguments: Any) -> Handle:
        actor = ray.remote(kind).options(max_concurrency=_MOST_CALLS, **options).remote(*arguments)
        self._started.append(actor)
        return actor


def _wait(replies: list[Any], callee: str, timeout_s: float) -> list[Any]:
    try:
        return ray.get(replies, timeout=timeout_s)
    except GetTimeoutError:
        raise ClusterError(f"{callee} did not start within {timeout_s:g} s") from None
    except RayError as error:
        raise translate(error, callee) from error


def _share(plan: ClusterPlan) -> WorkerShare:
    machines = [node["Resources"] for node in _nodes() if node["Alive"]]
    largest = max((machine.get("CPU", 0.0) for machine in machines), default=0.0)
    whole = {name: sum(machine.get(name, 0.0) for machine in machines) for name in ("CPU", "GPU")}
    share(plan.workers, plan.config.device, whole, largest, plan.cpus_per_worker)  # no use in waiting for more
    patience = time.monotonic() + _FREE_WITHIN_S
    while True:
        try:
            return share(plan.workers, plan.config.device, _free(), largest, plan.cpus_per_worker)
        except ClusterError:
            if time.monotonic() > patience:
                raise
        time.sleep(0.1)


def _nodes() -> list[dict[str, Any]]:
    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return machines


def _free() -> dict[str, float]:
    resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return resources
