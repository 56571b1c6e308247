"""What each kind of process tells of itself, on a timer of its own and never on the path of a token."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from actors.fleet import Fleet
from actors.metrics import Recorder
from actors.recovery import RecoveryStats
from actors.replication import How
from actors.routing import Decision, Router
from actors.worker_stats import WorkerStats

_log = logging.getLogger("dendrite.metrics")

INTERVAL_S = 5.0
"""How often a process reports. Ray itself exports what it was told every ten seconds."""

_ENGINE_TOTALS = (
    "decode_tokens",
    "forced_tokens",
    "prefill_tokens",
    "recomputed_tokens",
    "cached_tokens",
    "prompts",
    "prompt_hits",
    "forks",
    "tail_copies",
    "preemptions",
)
_ENGINE_LEVELS = ("pages_free", "pages_held", "pages_cached")


class Reporter:
    """Calls a function every so often, on a thread, and once more when it is closed."""

    def __init__(self, publish: Callable[[], None], interval_s: float = INTERVAL_S) -> None:
        """Begin. An error of `publish` is logged, and the next interval tries again."""
        self._publish, self._interval_s = publish, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dendrite-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report for the last time, and end. Idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._interval_s)
            try:
                self._publish()
            except Exception:
                _log.warning("metrics could not be reported", exc_info=True)


async def report_on(publish: Callable[[], Awaitable[None]], interval_s: float = INTERVAL_S) -> None:
    """What `Reporter` does, as a task of the running event loop; ends when it is cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await publish()
        except Exception:
            _log.warning("metrics could not be reported", exc_info=True)


def report_worker(recorder: Recorder, stats: WorkerStats, pages_shared: int) -> None:
    """Record what a worker has done and holds. `recorder` names the worker."""
    for name in _ENGINE_TOTALS:
        recorder.total(f"dendrite_{name}", getattr(stats.engine, name))
    for name in _ENGINE_LEVELS:
        recorder.level(f"dendrite_{name}", getattr(stats.engine, name))
    recorder.total("dendrite_overloads", stats.refused)
    recorder.total("dendrite_busy_seconds", stats.engine.seconds_running)
    recorder.level("dendrite_pages_shared", pages_shared)
    recorder.level("dendrite_live_nodes", stats.live_nodes)
    recorder.level("dendrite_calls_in_flight", stats.in_flight)
    recorder.level("dendrite_generations_running", stats.engine.running)
    recorder.level("dendrite_generations_waiting", stats.engine.waiting)


def report_manager(recorder: Recorder, *, leases: int, expiries: int, restarts: int) -> None:
    """Record what the tree manager has on its books."""
    recorder.level("dendrite_leases", leases)
    recorder.total("dendrite_lease_expiries", expiries)
    recorder.level("dendrite_manager_restarts", restarts)


def report_client(recorder: Recorder, views: Iterable[tuple[Fleet, Router]], recovery: RecoveryStats) -> None:
    """Record what a process that searches has decided, recovered from, and waited for.

    Args:
        recorder: of the process.
        views: the workers as its clients see them, and how they choose among them.
        recovery: its totals.
    """
    decisions: Counter[Decision] = Counter()
    copies: Counter[How] = Counter()
    moved_tokens = moved_bytes = 0
    for fleet, router in views:
        decisions += router.decisions.copy()  # they may grow meanwhile, on another thread
        copies += router.replicator.decisions.copy()
        moved_tokens += router.replicator.stats.tokens_moved
        moved_bytes += router.replicator.stats.bytes_moved
        for worker in filter(fleet.in_flight, range(len(fleet))):
            recorder.observe("dendrite_queue_delay_seconds", fleet.queue_delay(worker), worker=str(worker))
    for decision, count in decisions.items():
        recorder.total("dendrite_placement_decisions", count, decision=decision)
    for how, count in copies.items():
        recorder.total("dendrite_copy_decisions", count, how=how)
    recorder.total("dendrite_moved_tokens", moved_tokens)
    recorder.total("dendrite_moved_bytes", moved_bytes)
    recorder.total("dendrite_worker_losses", recovery.losses)
    recorder.total("dendrite_recoveries", recovery.recoveries)
    recorder.total("dendrite_rebuilt_nodes", recovery.rebuilt_nodes)
    recorder.total("dendrite_rebuilt_tokens", recovery.recomputed_tokens)
    recorder.total("dendrite_restarted_searches", recovery.searches)
