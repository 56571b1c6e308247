"""The way in: run a search by its algorithm's name, on an engine or on anything else that is a `Backend`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from dendrite.config import MAX_SEED, checked
from dendrite.errors import InvalidArgument, RunningEventLoop
from dendrite.search.algorithm import Algorithm, AlgorithmOptions
from dendrite.search.backend import Backend
from dendrite.search.beam import Beam
from dendrite.search.best_of_n import BestOfN
from dendrite.search.budget import Budget
from dendrite.search.dvts import Dvts
from dendrite.search.greedy import Greedy
from dendrite.search.mcts import Mcts
from dendrite.search.particle import ParticleFilter
from dendrite.search.rebase import Rebase
from dendrite.search.result import SearchResult, StopReason
from dendrite.search.self_consistency import SelfConsistency
from dendrite.search.session import SearchEvent, Session
from dendrite.search.task import Task
from dendrite.search.thoughts import TotBfs, TotDfs

if TYPE_CHECKING:
    from dendrite.engine.engine import Engine

ALGORITHMS: Mapping[str, type[Algorithm[Any]]] = MappingProxyType(
    {
        algorithm.name: algorithm
        for algorithm in (Mcts, BestOfN, Greedy, Beam, Dvts, Rebase, SelfConsistency, ParticleFilter, TotBfs, TotDfs)
    }
)
"""The algorithms by name."""

DEFAULT_BUDGET = Budget(tokens=4096)

OnEvent: TypeAlias = Callable[[SearchEvent], None]


def run_search(
    task: Task,
    backend: Engine | Backend,
    algorithm: str = "mcts",
    budget: Budget = DEFAULT_BUDGET,
    seed: int = 0,
    *,
    on_event: OnEvent | None = None,
    **options: Any,
) -> SearchResult:
    """Search for an answer to `task` and wait for it; see `run_search_async`.

    Raises:
        RunningEventLoop: Called from within an event loop, which it would block.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RunningEventLoop("run_search", "run_search_async")
    return asyncio.run(run_search_async(task, backend, algorithm, budget, seed, on_event=on_event, **options))


async def run_search_async(
    task: Task,
    backend: Engine | Backend,
    algorithm: str = "mcts",
    budget: Budget = DEFAULT_BUDGET,
    seed: int = 0,
    *,
    on_event: OnEvent | None = None,
    **options: Any,
) -> SearchResult:
    """Search for an answer to `task`.

    However it ends, by an answer, the budget, an error or cancellation, what is in flight is cancelled and
    the whole tree released. On a local engine the same arguments give the same result.

    Args:
        task: The problem, and the rule that judges answers.
        backend: An `Engine`, or anything with the methods of `Backend`, such as a cluster.
        algorithm: A key of `ALGORITHMS`.
        budget: The most it may spend.
        seed: Base of all sampling seeds, 0 .. 2^63 - 1.
        on_event: Called for each expansion that returns and each path that ends, from within the event loop.
        options: Settings of the algorithm, the fields of its `options_type`.

    Raises:
        InvalidArgument: An unknown algorithm or option, or a value out of range.
    """
    kind, parsed = _parse(algorithm, options)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise InvalidArgument("seed", seed, "must be a whole number, 0 to 2^63 - 1")
    async with _adapted(backend) as adapted:
        session = Session(task, adapted, budget, seed, on_event)
        search = kind(session, parsed)
        deadline = asyncio.timeout(budget.seconds)
        try:
            async with deadline:
                await session.open()
                await search.run()
        except TimeoutError:
            if not deadline.expired():
                raise
        finally:
            await session.close()
        return _result(search, timed_out=deadline.expired())


def _parse(name: str, options: dict[str, Any]) -> tuple[type[Algorithm[Any]], AlgorithmOptions]:
    if name not in ALGORITHMS:
        raise InvalidArgument("algorithm", name, f"must be one of {', '.join(ALGORITHMS)}")
    kind = ALGORITHMS[name]
    for option in options:
        if option not in kind.options_type.model_fields:
            known = ", ".join(kind.options_type.model_fields) or "none"
            raise InvalidArgument(option, options[option], f"no option of {name}; it has: {known}")
    return kind, checked(kind.options_type, options)


@asynccontextmanager
async def _adapted(backend: Engine | Backend) -> AsyncIterator[Backend]:
    """Yield a backend as it is, and an engine behind an adapter of this event loop."""
    if hasattr(backend, "expand"):
        yield cast(Backend, backend)
        return
    from dendrite.engine.async_engine import AsyncEngine
    from dendrite.engine.engine import Engine

    if not isinstance(backend, Engine):
        raise InvalidArgument("backend", backend, "must be an Engine or have the methods of Backend")
    async with aclosing(AsyncEngine(backend, threaded=False)) as adapted:
        yield adapted


def _result(search: Algorithm[Any], *, timed_out: bool) -> SearchResult:
    session = search.session
    best = search.best()
    reward = best.reward or 0.0 if best is not None else 0.0
    text = best.text if best is not None else ""
    solved = best is not None and best.solved
    reason: StopReason
    if solved:
        reason = "solved"
    elif timed_out:
        reason = "seconds"
    else:
        reason = session.meter.spent or "exhausted"
    return SearchResult(
        algorithm=search.name,
        task=session.task.name,
        seed=session.seed,
        solved=solved,
        reward=reward,
        text=text,
        answer=session.task.answer(text),
        tokens=session.meter.tokens,
        expansions=session.meter.expansions,
        seconds=session.meter.seconds,
        nodes=search.nodes,
        stop_reason=reason,
    )
