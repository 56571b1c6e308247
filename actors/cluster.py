"""A Ray cluster of model workers, used like one engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from actors.actor_group import ActorGroup, ClusterPlan
from actors.admission import MAX_CALLS
from actors.cluster_client import ClusterClient
from actors.driver_pool import DriverPool
from actors.fleet import Fleet, RecoveryOptions
from actors.lease_keeper import LeaseKeeper
from actors.leases import Lease
from actors.metrics import Recorder
from actors.metrics_reporter import Reporter, report_client
from actors.pool_policy import PoolOptions
from actors.ray_session import RaySession
from actors.recovery import RecoveryStats
from actors.replication import Policy, Replicator, check_policy
from actors.routing import Router
from actors.search_driver import SearchJob
from actors.worker_pool import WorkerPool
from dendrite.config import EngineConfig, checked
from dendrite.errors import InvalidArgument
from dendrite.jobs import Outcome, as_solved, trace_path
from dendrite.model.folder import resolve
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import DEFAULT_BUDGET
from dendrite.search.task import Task
from dendrite.search.values import Values

_CLOSE_TIMEOUT_S = 10.0


class Cluster(ClusterClient):
    """Model workers, their tree manager and search drivers. Made by `connect`; use as a context manager, or `close`.

    Implements `Backend`, so that `dendrite.run_search(task, cluster)` searches on the workers from this process, each
    step a message. `solve_many` and `map_search` run whole searches on the cluster instead. Both go on when workers are
    lost (see `ClusterClient`); a search whose driver is lost starts again on another.
    """

    def __init__(
        self,
        session: RaySession,
        actors: ActorGroup,
        lease: Lease,
        recovery: RecoveryOptions | None = None,
        replication: Policy = "auto",
        pool: PoolOptions | None = None,
    ) -> None:
        fleet = Fleet(actors.workers, recovery)
        router = Router(fleet, Replicator(fleet, replication))
        super().__init__(actors.manager, actors.workers, lease.id, fleet=fleet, router=router)
        self._session, self.actors = session, actors
        self._drivers = DriverPool(actors.drivers, self._calls, self._recovery)
        self._keeper = LeaseKeeper(actors.manager, lease.ttl_s)
        self._keeper.add(lease.id)
        recorder = Recorder()
        self._reporter = Reporter(lambda: report_client(recorder, [(fleet, router)], self._recovery))
        self.pool = WorkerPool(actors, fleet, pool) if pool is not None and pool.varies else None
        """Looks after the number of workers; None where that is fixed."""
        self._closed = False

    def solve_many(
        self,
        tasks: Iterable[Task],
        algorithm: str = "mcts",
        budget: Budget = DEFAULT_BUDGET,
        seed: int = 0,
        *,
        concurrency: int = 8,
        values: Values = "head",
        oracle: bool = False,
        ordered: bool = False,
        traces: Path | None = None,
        resume: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Outcome, None]:
        """Search all problems, at most `concurrency` at once, and yield each outcome when it is there.

        The searches run in the cluster's search drivers. Every problem has the same seed, so that its result does not
        depend on which others there are. Closing the iterator cancels what is under way and waits for its end.

        Args:
            tasks: the problems.
            algorithm: a key of `dendrite.search.ALGORITHMS`.
            budget: the most that one problem may spend.
            seed: base of all sampling seeds.
            concurrency: problems at once.
            values: what an unfinished thought is worth (see `dendrite.run_search`). A function or a source is sent to
                the drivers, and each search has its own copy.
            oracle: show the searches rewards that consult a known answer.
            ordered: take in what expansions return in the order in which they were started.
            traces: folder for the searches' traces, which all machines that run drivers must share.
            resume: take up the traces that are there.
            **options: settings of the algorithm, such as `in_flight`, its calls of the backend at once.
        """

        async def solve(index: int, task: Task) -> SearchResult:
            trace = trace_path(traces.absolute() if traces is not None else None, index)
            job = SearchJob(
                task,
                algorithm,
                budget,
                seed,
                options,
                values,
                oracle,
                ordered,
                trace,
                resume,
                self.recovery_options,
                self.replicator.policy,
            )
            return await self._drivers.solve(job)

        return as_solved(tasks, solve, concurrency)

    @property
    def recovery_options(self) -> RecoveryOptions:
        """How much trouble clients of the cluster take."""
        return self._fleet.options

    def map_search(self, tasks: Iterable[Task], *arguments: Any, **options: Any) -> Iterator[Outcome]:
        """Like `solve_many`, for code without an event loop."""
        with asyncio.Runner() as runner:
            outcomes = self.solve_many(tasks, *arguments, **options)
            try:
                while (outcome := runner.run(_next(outcomes))) is not None:
                    yield outcome
            finally:
                runner.run(outcomes.aclose())

    async def recovery_stats(self) -> RecoveryStats:
        """What this process and the search drivers have recovered from. A driver that died has taken its counts."""
        return sum(await self._drivers.recovery_stats(), start=self._recovery)

    def close(self) -> None:
        """Release what this process still holds, end the actors, and Ray too if `connect` started it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.pool is not None:
            self.pool.close()
        self._keeper.close()
        self._reporter.close()
        with contextlib.suppress(RayError):  # actors that are gone already have released everything
            ray.get(self._manager.close_lease.remote(self._lease), timeout=_CLOSE_TIMEOUT_S)
        self.actors.end()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    model: str | Path = "countdown",
    workers: int | tuple[int, int] | PoolOptions = 2,
    *,
    address: str | None = None,
    drivers: int = 1,
    shards: int = 1,
    max_calls: int = MAX_CALLS,
    lease_ttl_s: float = 30.0,
    start_timeout_s: float = 300.0,
    cpus_per_worker: int | None = None,
    config: EngineConfig | None = None,
    recovery: RecoveryOptions | None = None,
    replication: Policy = "auto",
    **settings: Any,
) -> Cluster:
    """Make a cluster of model workers, on the Ray that runs or on one started on this machine.

    Args:
        model: a packaged model's name or a Hugging Face folder, which every machine of the cluster must have.
        workers: model workers, each with an engine of its own: on a GPU each if there are enough, else on the CPUs. A
            pair is the fewest and the most of a pool that follows the load (see `WorkerPool`), `PoolOptions` say how.
            With the setting `tensor_parallel` each is that many processes of one machine (see `actors.tensor_group`).
        address: of the Ray cluster; None finds one or starts one (see `RaySession`).
        drivers: processes that run the searches of `solve_many`. One keeps several workers busy.
        shards: processes that share the tree manager's record, by the trees' ids. One takes in what hundreds of workers
            tell it.
        max_calls: calls under way in one worker. It refuses more with `Overloaded`, and clients try again.
        lease_ttl_s: how long the nodes of a search or of this process outlive it, if it dies.
        start_timeout_s: the longest wait for the workers to load the model.
        cpus_per_worker: CPUs that Ray reserves for each worker, and its threads; None is an equal part of the free.
        config: the engines' settings.
        recovery: how often, and how long, calls and searches are tried again when actors are lost.
        replication: how a node is copied to another worker when the queue of its own is long: "auto" moves its KV or
            computes it again, whichever is faster by the measured rates; "transfer" and "recompute" do the one or the
            other; "never" leaves it where it is.
        **settings: fields of `EngineConfig` that replace those of `config`.

    Raises:
        InvalidArgument: an argument is out of range, or there is no such setting.
        ModelError: the model cannot be loaded.
        ClusterError: Ray cannot be reached, has too little to give, or the workers don't start in time.
    """
    check_policy(replication)
    config = checked(EngineConfig, {**(config.model_dump() if config is not None else {}), **settings})
    pool = _pool(workers)
    plan = ClusterPlan(
        model=str(resolve(model).absolute()),
        workers=pool.min_workers,
        most_workers=pool.max_workers,
        drivers=drivers,
        shards=shards,
        max_calls=max_calls,
        lease_ttl_s=lease_ttl_s,
        start_timeout_s=start_timeout_s,
        cpus_per_worker=cpus_per_worker,
        config=config,
    )
    session = RaySession(address)
    actors = ActorGroup()
    try:
        actors.start(plan)
        return Cluster(session, actors, actors.open_lease(), recovery, replication, pool)
    except BaseException:
        actors.end()
        session.close()
        raise


def _pool(workers: int | tuple[int, int] | PoolOptions) -> PoolOptions:
    """The bounds of a pool; those of a fixed number of workers are both that number."""
    if isinstance(workers, PoolOptions):
        return workers
    if isinstance(workers, tuple):
        if len(workers) != 2:
            raise InvalidArgument("workers", workers, "must be a number, or the fewest and the most of a pool")
        return PoolOptions(*workers)
    try:
        return PoolOptions(workers, workers)
    except InvalidArgument as error:
        raise InvalidArgument("workers", workers, error.limit) from None


async def _next(outcomes: AsyncGenerator[Outcome, None]) -> Outcome | None:
    return await anext(outcomes, None)
