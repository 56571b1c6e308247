"""The actors of one cluster: started together, ended together."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.admission import MAX_CALLS
from actors.lease_keeper import open_lease
from actors.leases import Lease
from actors.model_worker import ModelWorker
from actors.peers import Peers, peers
from actors.placement import WorkerShare, share, with_environment
from actors.refs import worker_name
from actors.reservations import Reservations
from actors.rpc import Handle, translate
from actors.search_driver import SearchDriver
from actors.tree_manager import TreeManager
from actors.tree_shard import TreeShard
from dendrite.config import EngineConfig
from dendrite.errors import ClusterError
from dendrite.limits import check_positive_seconds, check_whole
from dendrite.logs import log_environment

MAX_ACTORS = 1_024
_LASTING = {"max_restarts": -1}
# Calls of a manager that is restarted are repeated until they are answered: they are all idempotent.
_MANAGER = {"num_cpus": 0, **_LASTING, "max_task_retries": -1}
_FREE_WITHIN_S = 5.0  # what ended actors had reserved takes a moment to be free again
_RETIRES_WITHIN_S = 10.0
_SPARE_CALLS = 1_024  # under way in one actor besides those that do work, so that health checks are not held back


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
    shards: int = 1
    """Processes among which the tree manager's record is divided."""
    max_calls: int = MAX_CALLS
    """Calls under way in one worker; it refuses more."""
    most_workers: int | None = None
    """So many workers there may be later, so that the processors are divided among as many; None: `workers`."""

    def __post_init__(self) -> None:
        check_whole("max_calls", self.max_calls, 1, 2**20)
        for name in ("workers", "drivers", "shards", "cpus_per_worker", "most_workers"):
            value = getattr(self, name)
            if name in ("cpus_per_worker", "most_workers") and value is None:
                continue
            check_whole(name, value, 1, MAX_ACTORS)
        for name in ("lease_ttl_s", "start_timeout_s"):
            check_positive_seconds(name, getattr(self, name))


class ActorGroup:
    """A tree manager, model workers and search drivers. Ending the group ends all that was started, however far."""

    manager: Handle
    """The first shard of the tree manager, which is the one to talk to."""
    shards: Sequence[Handle] = ()
    """The other shards."""
    workers: Sequence[Handle] = ()
    """All that there have been, by number; those that were taken away are still in their places."""
    part: WorkerShare
    """Resources of each process of a worker."""
    ranks: int
    """Processes of each worker."""
    drivers: Sequence[Handle] = ()

    def __init__(self) -> None:
        self._started: list[Handle] = []
        self._reservations = Reservations()

    def start(self, plan: ClusterPlan) -> None:
        """Start all actors on the Ray that this process is connected to, and load the model in every worker.

        Raises:
            ModelError: the model cannot be loaded.
            ClusterError: Ray has too little to give, or an actor does not start in time.
        """
        part = _share(plan)
        config = plan.config.model_copy(update={"device": part.device})
        calls = max(plan.max_calls, MAX_CALLS)
        self.shards = [self._start(TreeShard, calls, _MANAGER) for _ in range(plan.shards - 1)]
        self.manager = self._start(TreeManager, calls, _MANAGER, plan.lease_ttl_s, plan.workers, peers(self.shards))
        managers = peers([self.manager, *self.shards])
        self.part, self.ranks = part, config.tensor_parallel
        self._new_worker: Callable[[int, dict[str, Any]], Handle] = functools.partial(
            self._start_worker, plan, config, managers
        )
        self.workers = [
            self._new_worker(index, self._place(index, plan.start_timeout_s)) for index in range(plan.workers)
        ]
        cluster = peers([self.manager, *self.workers])
        self.drivers = [
            self._start(SearchDriver, calls, {"num_cpus": 0, **_LASTING}, cluster, plan.lease_ttl_s)
            for _ in range(plan.drivers)
        ]
        _wait([worker.load.remote() for worker in self.workers], "a worker", plan.start_timeout_s)
        _wait([self.manager.start.remote()], "the tree manager", plan.start_timeout_s)

    def add_worker(self, timeout_s: float, stop: threading.Event) -> int:
        """Start one more worker, in a place of its own, and return its number once it has introduced itself.

        Raises:
            NoRoom: no machine had room for it within `timeout_s`.
            ClusterError: it does not start within `timeout_s` more, or `stop` was set meanwhile; nothing of it is left.
        """
        index = len(self.workers)
        worker = self._new_worker(index, self._reservations.place(index, self.part, self.ranks, timeout_s, stop))
        try:
            loaded = worker.load.remote()
            if not _comes(loaded, timeout_s, stop):
                why = "the pool was closed" if stop.is_set() else f"it was not ready within {timeout_s:g} s"
                raise ClusterError(f"worker {index} did not start: {why}")
            _wait([loaded], worker_name(index), timeout_s)
        except BaseException:
            self._end_actor(worker)
            self._reservations.give_back(index)
            with contextlib.suppress(RayError):  # it may have introduced itself, and the next one has its number
                ray.get(self.manager.retire.remote(index), timeout=_RETIRES_WITHIN_S)
            raise
        self.workers = [*self.workers, worker]
        return index

    def end_worker(self, index: int) -> None:
        """End a worker for good, and give its place back. Idempotent."""
        self._end_actor(self.workers[index])
        self._reservations.give_back(index)

    def open_lease(self) -> Lease:
        """Open a lease for this process. Raises what `actors.lease_keeper.open_lease` raises."""
        return open_lease(self.manager)

    def end(self) -> None:
        """End every actor that was started. Idempotent."""
        for actor in reversed(list(self._started)):
            self._end_actor(actor)
        self._reservations.end()

    def _end_actor(self, actor: Handle) -> None:
        with contextlib.suppress(RayError, ValueError):  # one that is dead, or whose Ray is
            ray.kill(actor)
        if actor in self._started:
            self._started.remove(actor)

    def _place(self, worker: int, timeout_s: float) -> dict[str, Any]:
        """Options of one of the first workers. For a single process Ray itself finds a place."""
        if self.ranks == 1:
            return self.part.options()
        return self._reservations.place(worker, self.part, self.ranks, timeout_s)

    def _start_worker(
        self, plan: ClusterPlan, config: EngineConfig, managers: Peers, index: int, place: dict[str, Any]
    ) -> Handle:
        options = {**place, **_LASTING}
        arguments = index, plan.model, config, self.part.threads, managers, plan.max_calls
        return self._start(ModelWorker, plan.max_calls, options, *arguments)

    def _start(self, kind: type[Any], calls: int, options: dict[str, Any], *arguments: Any) -> Handle:
        options = with_environment(options, log_environment())
        actor = ray.remote(kind).options(max_concurrency=calls + _SPARE_CALLS, **options).remote(*arguments)
        self._started.append(actor)
        return actor


def _comes(reply: Any, timeout_s: float, stop: threading.Event) -> bool:
    """Whether a reply is there within the time, before `stop` is set."""
    deadline = time.monotonic() + timeout_s
    while not ray.wait([reply], timeout=min(1.0, timeout_s))[0]:
        if stop.is_set() or time.monotonic() >= deadline:
            return False
    return True


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
    ranks = plan.config.tensor_parallel
    largest /= ranks  # those of a worker lie on one machine

    def part_of(resources: Mapping[str, float]) -> WorkerShare:
        part = share(plan.workers * ranks, plan.config.device, resources, largest, plan.cpus_per_worker)
        if plan.most_workers is None or plan.cpus_per_worker is not None:
            return part
        most = plan.most_workers * ranks
        if part.device == "cuda":
            most = min(most, int(resources["GPU"]))
        return share(max(most, plan.workers * ranks), part.device, resources, largest)

    part_of(whole)  # no use in waiting for more
    patience = time.monotonic() + _FREE_WITHIN_S
    while True:
        try:
            return part_of(_free())
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
