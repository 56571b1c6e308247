"""Workers that come when calls have to wait, and go when there is nothing for them to do."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from actors.actor_group import ActorGroup
from actors.fleet import Fleet
from actors.pool_policy import Grow, Observation, PoolOptions, PoolPolicy, Shrink
from actors.reservations import bundle_options, give_back, reserve
from actors.rpc import ActorLost, translate
from dendrite.errors import ClusterError
from dendrite.logs import log_event

_log = logging.getLogger("dendrite.cluster")

_ANSWERS_WITHIN_S = 5.0
_DRAIN_S = 60.0


class WorkerPool:
    """Looks at a cluster's workers once a period, on a thread of its own, and adds one or takes one away.

    How long calls wait is what the search drivers and this process have measured at the least busy worker. A worker
    that is taken away is drained first; what it held is rebuilt elsewhere by whoever still needs it.
    """

    def __init__(self, actors: ActorGroup, fleet: Fleet, options: PoolOptions) -> None:
        """Begin to look after a group's workers, of which there are as many as the pool has at least.

        Args:
            actors: the cluster's.
            fleet: the workers as this process sees them, which is told of every change.
            options: the pool's bounds.
        """
        self._actors, self._fleet, self._options = actors, fleet, options
        self._policy = PoolPolicy(options)
        self._workers = set(range(len(actors.workers)))
        self._groups: dict[int, PlacementGroup] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dendrite-pool", daemon=True)
        self._thread.start()

    @property
    def workers(self) -> frozenset[int]:
        """Numbers of the workers that there are now."""
        return frozenset(self._workers)

    def close(self) -> None:
        """Look no more, and give up the places of added workers, which ends them. Idempotent."""
        self._stop.set()
        self._thread.join()
        for worker in list(self._groups):
            self._give_place_up(worker)

    def grow(self) -> int:
        """Add a worker, and return its number.

        Raises:
            NoRoom: no machine has room for it.
            ClusterError: it does not start.
        """
        part, options = self._actors.part, self._options
        group = reserve(part, self._actors.ranks, options.place_timeout_s, self._stop)
        try:
            worker = self._actors.add_worker(
                {**part.options(), **bundle_options(group, 0)}, options.place_timeout_s, self._stop
            )
        except BaseException:
            give_back(group)
            raise
        self._groups[worker] = group
        self._fleet.join(worker, self._actors.workers[worker])
        self._workers.add(worker)
        self._tell("pool_grown", worker)
        return worker

    def shrink(self, worker: int) -> None:
        """Drain a worker and take it away.

        Raises:
            ClusterError: the tree manager cannot be told.
        """
        handle = self._actors.workers[worker]
        with contextlib.suppress(RayError):  # one that has died holds nothing
            ray.get(handle.drain.remote(_DRAIN_S), timeout=2 * _DRAIN_S)
        self._remove(worker)
        self._tell("pool_shrunk", worker)

    def _run(self) -> None:
        while not self._stop.wait(self._options.period_s):
            try:
                decision = self._policy.decide(time.monotonic(), self._observe())
                if isinstance(decision, Grow):
                    self.grow()
                elif isinstance(decision, Shrink):
                    self.shrink(decision.worker)
            except ClusterError as error:
                log_event(_log, logging.WARNING, {"event": "pool_failed"}, error)
            except Exception:
                _log.exception("event=pool_failed", extra={"fields": {"event": "pool_failed"}})

    def _observe(self) -> Observation:
        in_flight = {worker: self._in_flight(worker) for worker in sorted(self._workers)}
        for worker in [worker for worker, calls in in_flight.items() if calls is None]:
            self._remove(worker)
            self._tell("pool_lost", worker)
        delays = self._delays()
        best = min((delays.get(worker, 0.0) for worker in self._workers), default=0.0)
        return Observation(self.workers, [worker for worker, calls in in_flight.items() if calls == 0], best)

    def _in_flight(self, worker: int) -> int | None:
        """Calls under way in a worker; -1 if it does not say; None if it is dead for good."""
        try:
            return int(ray.get(self._actors.workers[worker].stats.remote(), timeout=_ANSWERS_WITHIN_S).in_flight)
        except RayError as error:
            found = translate(error, f"worker {worker}")
            return None if isinstance(found, ActorLost) and found.permanent else -1

    def _delays(self) -> dict[int, float]:
        """Seconds that calls wait at each worker: the longest that a driver or this process tells of."""
        delays = {worker: self._fleet.queue_delay(worker) for worker in self._workers if worker < len(self._fleet)}
        for driver in self._actors.drivers:
            with contextlib.suppress(RayError):  # one that is being restarted has measured nothing
                told: dict[int, float] = ray.get(driver.queue_delays.remote(), timeout=_ANSWERS_WITHIN_S)
                delays = {worker: max(delays.get(worker, 0.0), told.get(worker, 0.0)) for worker in self._workers}
        return delays

    def _remove(self, worker: int) -> None:
        self._workers.discard(worker)
        self._fleet.retire(worker)
        self._actors.end_worker(worker)
        self._give_place_up(worker)
        try:
            ray.get(self._actors.manager.retire.remote(worker), timeout=_DRAIN_S)
        except RayError as error:
            raise translate(error, "the tree manager") from error

    def _give_place_up(self, worker: int) -> None:
        group = self._groups.pop(worker, None)
        if group is not None:
            give_back(group)

    def _tell(self, event: str, worker: int) -> None:
        log_event(_log, logging.INFO, {"event": event, "worker": worker, "workers": len(self._workers)})
