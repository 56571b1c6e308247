"""The actor that runs searches: one at a time or many, each under a lease of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.calls import RunningCalls
from actors.cluster_client import MANAGER, ClusterClient
from actors.lease_keeper import LeaseKeeper
from actors.leases import Lease
from actors.rpc import Handle, call
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import run_search_async
from dendrite.search.task import Task
from dendrite.search.values import Values


@dataclass(frozen=True, slots=True)
class SearchJob:
    """One problem and how to search it: the arguments of `run_search_async`. All of it pickles, `values` too."""

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


class SearchDriver:
    """Runs searches whose nodes live on the cluster's workers. A Ray actor; its searches share one event loop.

    A search holds its nodes under a lease that ends with it. Whatever becomes of it, and of this process, its nodes
    are released: at once when the search ends, within the lease's time to live when the process dies.
    """

    def __init__(self, manager: Handle, workers: Sequence[Handle], lease_ttl_s: float) -> None:
        self._manager, self._workers = manager, tuple(workers)
        self._keeper = LeaseKeeper(manager, lease_ttl_s)
        self._calls = RunningCalls()

    async def solve(self, call_id: int, job: SearchJob) -> SearchResult:
        """Search one problem.

        Raises:
            DendriteError: what the search raised.
            Cancelled: by `cancel` with the same id; all nodes of the search are released.
        """
        return await self._calls.run(call_id, self._solve(job))

    async def cancel(self, call_id: int) -> None:
        """Cancel a search under way."""
        self._calls.cancel(call_id)

    async def _solve(self, job: SearchJob) -> SearchResult:
        lease: Lease = await call(self._manager.open_lease.remote(), MANAGER)
        self._keeper.add(lease.id)
        client = ClusterClient(self._manager, self._workers, lease.id)
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
            await asyncio.shield(asyncio.ensure_future(self._close(lease.id)))

    async def _close(self, lease: int) -> None:
        self._keeper.discard(lease)
        await call(self._manager.close_lease.remote(lease), MANAGER)
