"""Searches as a step of a Ray Data pipeline: rows of problems in, the same rows with their results out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from actors.cluster import Cluster
from actors.cluster_client import ClusterClient
from actors.fleet import Fleet, RecoveryOptions
from actors.lease_keeper import LeaseKeeper, open_lease
from actors.replication import Policy, Replicator
from actors.routing import Router
from actors.rpc import Handle
from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.job_runner import Searches, SearchFailed
from dendrite.jobs import Outcome, as_solved
from dendrite.limits import check_whole
from dendrite.model.folder import resolve
from dendrite.search.backend import Backend
from dendrite.search.budget import Budget
from dendrite.search.result import SearchResult
from dendrite.search.run import DEFAULT_BUDGET, parse_algorithm, run_search_async
from dendrite.search.task import Task
from dendrite.search.tasks.custom import CustomTask, PromptError
from dendrite.search.tasks.source import Source
from dendrite.search.values import Values, value_source

if TYPE_CHECKING:
    from ray.data import Dataset

Table: TypeAlias = Any
"""A `pyarrow.Table`."""
Row: TypeAlias = Mapping[str, Any]
TaskOf: TypeAlias = Callable[[Row], Task]
"""Makes the problem of a row."""

_COLUMNS = ("solved", "reward", "text", "answer", "tokens", "expansions", "seconds", "stop_reason", "error")


def search(
    dataset: Dataset,
    *,
    task: str | Path | TaskOf,
    column: str = "prompt",
    algorithm: str = "mcts",
    budget: Budget = DEFAULT_BUDGET,
    seed: int = 0,
    values: Values = "head",
    oracle: bool = False,
    model: str | Path = "countdown",
    config: EngineConfig | None = None,
    pool: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    cluster: Cluster | None = None,
    batch_rows: int = 64,
    concurrency: int = 8,
    prefix: str = "search_",
    **options: Any,
) -> Dataset:
    """Search the problem of each row, by a map that runs when the dataset is consumed.

    The rows keep their columns, and get those of the result: `solved` (bool), `reward` (float), `text` and `answer`
    (strings), `tokens` and `expansions` (integers), `seconds` (float), `stop_reason` and `error` (strings), each after
    `prefix`. A row whose search failed, or that is no such problem, has its reason in `error`, null in the others.

    Args:
        dataset: of problems.
        task: a Python file with a `Task` or a function `reward` (see `dendrite.search.tasks.custom`), which gets the
            columns of a row as the fields of a line; or a function that makes a `Task` of a row.
        column: the one that is a file's `prompt`.
        algorithm: a key of `dendrite.search.ALGORITHMS`.
        budget: the most that one problem may spend.
        seed: base of all sampling seeds, the same for each problem.
        values: what an unfinished thought is worth (see `dendrite.run_search`).
        oracle: show the searches rewards that consult a known answer.
        model: of the engines: a packaged model's name, or a folder that every machine has.
        config: the engines' settings.
        pool: actors that search, each with an engine of its own.
        cpus: CPUs that Ray reserves for each engine.
        gpus: GPUs likewise.
        cluster: whose workers decode, instead of engines of the pool. It must stay open until the dataset is consumed,
            and `model`, `config`, `cpus` and `gpus` are then its own.
        batch_rows: rows that an actor works on before it hands them on.
        concurrency: problems of an actor at once.
        prefix: of the names of the result's columns.
        **options: settings of the algorithm.

    Raises:
        MissingDependency: Ray Data's own dependencies are not installed.
        InvalidArgument: an argument is out of range, or a column of the result is there already.
        TaskFileError: the Python file cannot be read.
    """
    _require_ray_data()
    from ray.data import ActorPoolStrategy

    for name, number in (("pool", pool), ("batch_rows", batch_rows), ("concurrency", concurrency)):
        check_whole(name, number, 1)
    parse_algorithm(algorithm, options)
    _check_columns(dataset.columns(fetch_if_missing=False) or (), prefix)
    task_of = task if callable(task) else _FileTask(Source.read(Path(task)), column)
    how = Searches(algorithm, budget, seed, value_source(values), oracle, options)
    place = _engine_place(model, config) if cluster is None else ClusterPlace.of(cluster)
    return dataset.map_batches(
        _Searcher,
        fn_constructor_args=(task_of, how, place, concurrency, prefix),
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool),
        num_cpus=cpus if cluster is None else 0,
        num_gpus=gpus if cluster is None else 0,
        udf_modifying_row_count=False,
    )


Place: TypeAlias = Callable[[], Backend]
"""Makes what an actor of the pool searches on, in that actor."""


def _engine_place(model: str | Path, config: EngineConfig | None) -> Place:
    folder = str(resolve(model).absolute())

    def make() -> Backend:
        from dendrite.engine.async_engine import AsyncEngine
        from dendrite.engine.engine import Engine

        return AsyncEngine(Engine.from_pretrained(folder, config=config))

    return make


@dataclass(frozen=True, slots=True)
class ClusterPlace:
    """Searches on the workers of a cluster, as that does itself. A `Place`."""

    manager: Handle
    workers: Sequence[Handle]
    recovery: RecoveryOptions
    replication: Policy

    @classmethod
    def of(cls, cluster: Cluster) -> ClusterPlace:
        """A cluster's workers of now; others are met when the tree manager names them."""
        group = cluster.actors
        return cls(group.manager, tuple(group.workers), cluster.recovery_options, cluster.replicator.policy)

    def __call__(self) -> Backend:
        """Make a client with a lease of its own."""
        lease = open_lease(self.manager)
        LeaseKeeper(self.manager, lease.ttl_s).add(lease.id)  # to this actor's end, after which the lease runs out
        return self.client(lease.id)

    def client(self, lease: int) -> ClusterClient:
        """A client under an open lease."""
        fleet = Fleet(self.workers, self.recovery)
        router = Router(fleet, Replicator(fleet, self.replication))
        return ClusterClient(self.manager, self.workers, lease, fleet=fleet, router=router)


@dataclass(frozen=True, slots=True)
class _FileTask:
    """Makes the problem of a row by a file of the user's."""

    source: Source
    column: str

    def __call__(self, row: Row) -> Task:
        fields = dict(row)
        if self.column in fields:
            fields["prompt"] = fields.pop(self.column)
        try:
            return CustomTask(self.source, fields, 1)
        except PromptError as error:
            raise InvalidArgument("row", fields, error.reason) from error


class _Searcher:
    """An actor of the pool: takes batches of rows, and gives them back with their results."""

    def __init__(self, task_of: TaskOf, how: Searches, place: Place, concurrency: int, prefix: str) -> None:
        self._task_of, self._how, self._concurrency, self._prefix = task_of, how, concurrency, prefix
        self._backend = place()
        self._loop = asyncio.Runner()  # one for all batches: the backend may keep to it

    def __call__(self, batch: Table) -> Table:
        _check_columns(batch.column_names, self._prefix)
        return self._with_results(batch, self._loop.run(self._search(batch.to_pylist())))

    async def _search(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{} for _ in rows]
        tasks: list[tuple[int, Task]] = []
        for index, row in enumerate(rows):
            try:
                tasks.append((index, self._task_of(row)))
            except Exception as error:  # the user's own code, which may raise anything
                results[index] = {"error": f"{type(error).__name__}: {error}"}
        async for outcome in as_solved((task for _, task in tasks), self._solve, self._concurrency):
            results[tasks[outcome.index][0]] = _told(outcome)
        return results

    async def _solve(self, _: int, task: Task) -> SearchResult:
        how = self._how
        try:
            return await run_search_async(
                task,
                self._backend,
                how.algorithm,
                how.budget,
                how.seed,
                values=how.values,
                oracle=how.oracle,
                **how.options,
            )
        except Exception as error:
            raise SearchFailed(error) from error

    def _with_results(self, batch: Table, results: Sequence[Mapping[str, Any]]) -> Table:
        pa = import_module("pyarrow")
        kinds = {"solved": pa.bool_(), "tokens": pa.int64(), "expansions": pa.int64()}
        kinds |= {"reward": pa.float64(), "seconds": pa.float64()}
        for name in _COLUMNS:
            found = [result.get(name) for result in results]
            batch = batch.append_column(self._prefix + name, pa.array(found, kinds.get(name, pa.string())))
        return batch


def _told(outcome: Outcome) -> dict[str, Any]:
    return {"error": str(outcome.error)} if outcome.result is None else outcome.result.to_dict()


def _check_columns(names: Sequence[str], prefix: str) -> None:
    taken = sorted({prefix + name for name in _COLUMNS} & set(names))
    if taken:
        raise InvalidArgument("prefix", prefix, f"the dataset has the column {taken[0]} already")


def _require_ray_data() -> None:
    try:
        for name in ("pyarrow", "pandas", "ray.data"):
            import_module(name)
    except ImportError as error:
        raise MissingDependency(
            error.name or "pyarrow",
            "Ray Data needs it",
            "install Dendrite with its extra: pip install 'dendrite[data]'",
        ) from error
