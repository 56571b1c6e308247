"""The actor that runs searches: one at a time or many, each under a lease of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.calls import RunningCalls
from actors.cluster_client import ClusterClient
from actors.fleet import Fleet, RecoveryOptions
from actors.lease_keeper import LeaseKeeper
from actors.metrics import Recorder
from actors.metrics_reporter import Reporter, report_client
from actors.peers import Peers
from actors.recovery import RecoveryStats
from actors.replication import Policy, Replicator
from actors.routing import Decision, Router
from dendrite.logs import set_up_logs_from_environment
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import run_search_async
from dendrite.search.task import Task
from dendrite.search.values import Values


@dataclass(frozen=True, slots=True)
class SearchJob:
    """One problem and how to search it: the arguments of `run_search_async`, and how much trouble to take.

    All of it pickles, `values` too.
    """

    task: Task
    algorithm: str
    budget: Budget
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    values: Values = "head"
    oracle: bool = False
    ordered: bool = False
    trace: Path | None = None
    resume: bool = False
    recovery: RecoveryOptions = field(default_factory=RecoveryOptions)
    replication: Policy = "auto"


class SearchDriver:
    """Runs searches whose nodes live on the cluster's workers. A Ray actor; its searches share one event loop.

    A search holds its nodes under a lease of whoever asked for it, which this process renews as long as it lives. What
    becomes of workers does not end a search (see `ClusterClient`).
    """

    def __init__(self, cluster: Peers, lease_ttl_s: float) -> None:
        """Begin without a search. `cluster` gives the tree manager, then the workers in the order of their numbers."""
        set_up_logs_from_environment()
        self._manager, *self._workers = cluster()
        self._keeper = LeaseKeeper(self._manager, lease_ttl_s)
        self._calls = RunningCalls()
        self._fleets: dict[tuple[RecoveryOptions, Policy], tuple[Fleet, Router]] = {}
        self._recovery = RecoveryStats()
        self._recorder = Recorder()
        self._reporter = Reporter(self._report)

    async def solve(self, call_id: int, lease: int, job: SearchJob) -> SearchResult:
        """Search one problem, under an open lease that no other search has.

        Raises:
            DendriteError: what the search raised.
            Cancelled: by `cancel` with the same id; all nodes of the search are released.
        """
        return await self._calls.run(call_id, self._solve(lease, job))

    async def cancel(self, call_id: int) -> None:
        """Cancel a search under way."""
        self._calls.cancel(call_id)

    async def recovery_stats(self) -> RecoveryStats:
        """What the searches have recovered from, since this process was started."""
        return self._recovery

    async def decisions(self) -> dict[Decision, int]:
        """How often calls went where, and why, since this process was started."""
        totals: Counter[Decision] = Counter()
        for _, router in self._fleets.values():
            totals += router.decisions
        return dict(totals)

    async def queue_delays(self) -> dict[int, float]:
        """Seconds that calls of this process are likely to wait at each worker that it knows."""
        delays: dict[int, float] = {}
        for fleet, _ in self._fleets.values():
            for worker in range(len(fleet)):
                delays[worker] = max(delays.get(worker, 0.0), fleet.queue_delay(worker))
        return delays

    def _report(self) -> None:
        report_client(self._recorder, list(self._fleets.values()), self._recovery)

    async def _solve(self, lease: int, job: SearchJob) -> SearchResult:
        settings = job.recovery, job.replication
        if settings not in self._fleets:
            fleet = Fleet(self._workers, job.recovery)
            self._fleets[settings] = fleet, Router(fleet, Replicator(fleet, job.replication))
        fleet, router = self._fleets[settings]
        client = ClusterClient(self._manager, self._workers, lease, fleet=fleet, router=router, recovery=self._recovery)
        self._keeper.add(lease)
        try:
            return await run_search_async(
                job.task,
                client,
                job.algorithm,
                job.budget,
                job.seed,
                values=job.values,
                oracle=job.oracle,
                ordered=job.ordered,
                trace=job.trace,
                resume=job.resume,
                **job.options,
            )
        finally:
            self._keeper.discard(lease)
            await asyncio.shield(asyncio.ensure_future(client.reclaim()))
