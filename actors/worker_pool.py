"""Workers that come when calls have to wait, and go when there is nothing for them to do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from actors.actor_group import ActorGroup
from actors.fleet import Fleet
from actors.pool_policy import Grow, Observation, PoolOptions, PoolPolicy, Shrink
from actors.rpc import ActorLost, translate
from dendrite.errors import ClusterError, DendriteError, InvalidArgument
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
        self._changing = threading.Lock()  # a new worker's number is that after the last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dendrite-pool", daemon=True)
        self._thread.start()

    @property
    def workers(self) -> frozenset[int]:
        """Numbers of the workers that there are now."""
        return frozenset(self._workers)

    def close(self) -> None:
        """Look no more. What is being changed is given up, or ends. Idempotent."""
        self._stop.set()
        self._thread.join()
        with self._changing:  # on another thread
            pass

    def grow(self) -> int:
        """Add a worker, and return its number.

        Raises:
            NoRoom: no machine has room for it.
            ClusterError: it does not start.
        """
        with self._changing:
            worker = self._actors.add_worker(self._options.place_timeout_s, self._stop)
            self._fleet.join(worker, self._actors.workers[worker])
            self._workers.add(worker)
        self._tell("pool_grown", worker)
        return worker

    def shrink(self, worker: int) -> None:
        """Drain a worker and take it away; where the pool is closed meanwhile, without waiting for its calls.

        Raises:
            InvalidArgument: it is not of the pool.
            ClusterError: the tree manager cannot be told.
        """
        with self._changing:
            if worker not in self._workers:
                known = ", ".join(map(str, sorted(self._workers)))
                raise InvalidArgument("worker", worker, f"must be one of the pool's: {known or 'there is none now'}")
            drained = self._actors.workers[worker].drain.remote(_DRAIN_S)
            deadline = time.monotonic() + 2 * _DRAIN_S  # one that has died holds nothing
            while not ray.wait([drained], timeout=1.0)[0] and not self._stop.is_set() and time.monotonic() < deadline:
                pass
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
        in_flight = self._in_flight()
        for worker in [worker for worker, calls in in_flight.items() if calls is None]:
            self._lost(worker)
        delays = self._delays()
        best = min((delays.get(worker, 0.0) for worker in self._workers), default=0.0)
        return Observation(self.workers, [worker for worker, calls in in_flight.items() if calls == 0], best)

    def _in_flight(self) -> dict[int, int | None]:
        """Calls under way in each worker; -1 if it does not say; None if it is dead for good."""
        asked = {worker: self._actors.workers[worker].stats.remote() for worker in sorted(self._workers)}
        told: dict[int, int | None] = {}
        for worker, stats in _answers(asked).items():
            if isinstance(stats, DendriteError):
                told[worker] = None if isinstance(stats, ActorLost) and stats.permanent else -1
            else:
                told[worker] = stats.in_flight
        return told

    def _delays(self) -> dict[int, float]:
        """Seconds that calls wait at each worker: the longest that a driver or this process tells of."""
        delays = {worker: self._fleet.queue_delay(worker) for worker in self._workers if worker < len(self._fleet)}
        asked = {driver: handle.queue_delays.remote() for driver, handle in enumerate(self._actors.drivers)}
        for told in _answers(asked).values():
            if not isinstance(told, DendriteError):  # one that is being restarted has measured nothing
                delays = {worker: max(delays.get(worker, 0.0), told.get(worker, 0.0)) for worker in self._workers}
        return delays

    def _lost(self, worker: int) -> None:
        with self._changing:
            if worker not in self._workers:
                return  # it was taken away meanwhile
            self._remove(worker)
        self._tell("pool_lost", worker)

    def _remove(self, worker: int) -> None:
        self._workers.discard(worker)
        self._fleet.retire(worker)
        self._actors.end_worker(worker)
        try:
            ray.get(self._actors.manager.retire.remote(worker), timeout=_DRAIN_S)
        except RayError as error:
            raise translate(error, "the tree manager") from error

    def _tell(self, event: str, worker: int) -> None:
        log_event(_log, logging.INFO, {"event": event, "worker": worker, "workers": len(self._workers)})


def _answers(asked: Mapping[int, Any]) -> dict[int, Any]:
    """What actors answer, all together within a time; of one that does not, a `DendriteError` that says why."""
    deadline = time.monotonic() + _ANSWERS_WITHIN_S
    found: dict[int, Any] = {}
    for actor, reply in asked.items():
        try:
            found[actor] = ray.get(reply, timeout=max(0.0, deadline - time.monotonic()))
        except RayError as error:
            found[actor] = translate(error, f"actor {actor}")
    return found
