"""The way in: run a search by its algorithm's name, on an engine or on anything else that is a `Backend`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from dendrite.config import MAX_SEED, checked
from dendrite.errors import InvalidArgument, RunningEventLoop, TraceEnded, TraceError
from dendrite.limits import check_whole
from dendrite.search.abmcts import AbMcts
from dendrite.search.algorithm import Algorithm, AlgorithmOptions
from dendrite.search.backend import Backend
from dendrite.search.beam import Beam
from dendrite.search.best_of_n import BestOfN
from dendrite.search.budget import Budget
from dendrite.search.dvts import Dvts
from dendrite.search.events import SearchEvent
from dendrite.search.greedy import Greedy
from dendrite.search.lats import Lats
from dendrite.search.mcts import Mcts
from dendrite.search.particle import ParticleFilter
from dendrite.search.rebase import Rebase
from dendrite.search.result import SearchResult, StopReason
from dendrite.search.self_consistency import SelfConsistency
from dendrite.search.session import Session
from dendrite.search.task import Task
from dendrite.search.thought import SOLVED, Thought
from dendrite.search.thoughts import TotBfs, TotDfs
from dendrite.search.trace import Trace
from dendrite.search.values import Values, value_source
from dendrite.spans import span

if TYPE_CHECKING:
    from dendrite.engine.engine import Engine

_KNOWN: tuple[type[Algorithm[Any]], ...] = (
    Mcts,
    BestOfN,
    Greedy,
    AbMcts,
    Lats,
    Beam,
    Dvts,
    Rebase,
    SelfConsistency,
    ParticleFilter,
    TotBfs,
    TotDfs,
)

ALGORITHMS: Mapping[str, type[Algorithm[Any]]] = MappingProxyType({algorithm.name: algorithm for algorithm in _KNOWN})
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
    values: Values = "head",
    oracle: bool = False,
    ordered: bool = False,
    trace: str | Path | None = None,
    resume: bool = False,
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
    search = run_search_async(
        task,
        backend,
        algorithm,
        budget,
        seed,
        on_event=on_event,
        values=values,
        oracle=oracle,
        ordered=ordered,
        trace=trace,
        resume=resume,
        **options,
    )
    return asyncio.run(search)


async def run_search_async(
    task: Task,
    backend: Engine | Backend,
    algorithm: str = "mcts",
    budget: Budget = DEFAULT_BUDGET,
    seed: int = 0,
    *,
    on_event: OnEvent | None = None,
    values: Values = "head",
    oracle: bool = False,
    ordered: bool = False,
    trace: str | Path | None = None,
    resume: bool = False,
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
        values: What an unfinished thought is worth: "head" (the model's value head), "rule" (`Task.value`), "logprob",
            "judge" (the model asked for its opinion), a function of the prompt and the text so far, or a `ValueSource`.
        oracle: Show the search rewards that consult a known answer, where the task has such (`Task.oracle`). Without it
            they only grade the result.
        ordered: Take in what expansions return in the order in which they were started, not as they return. The same
            arguments then give the same result on any backend, with several in flight and after an interruption too,
            for some idle time.
        trace: Write the event log of the search to this file, for `dendrite view` and to take the search up again.
        resume: Take up the search of `trace`, which was killed: the same arguments are needed. It ends as it would
            have, and loses at most what was in flight. A file that is not there is begun.
        options: Settings of the algorithm, the fields of its `options_type`.

    Raises:
        InvalidArgument: An unknown algorithm or option, or a value out of range.
        TraceError: The trace can't be read, or is of another search.
    """
    kind, parsed = parse_algorithm(algorithm, options)
    check_whole("seed", seed, 0, MAX_SEED)
    if resume and trace is None:
        raise InvalidArgument("resume", resume, "needs the trace to go on from")
    source = value_source(values)
    async with _adapted(backend) as adapted:
        with Trace(Path(trace) if trace is not None else None, resume=resume) as log:
            session = Session(
                task, adapted, budget, seed, on_event, values=source, oracle=oracle, ordered=ordered, trace=log
            )
            with span("search", task=task.name, algorithm=algorithm):
                return await conduct(kind(session, parsed))


async def conduct(search: Algorithm[Any]) -> SearchResult:
    """Run an algorithm in its session to the end, whatever that is, and leave nothing behind.

    Raises:
        TraceError: The trace is of another search.
    """
    session = search.session
    header = _header(search)
    _check_header(session.trace, header)
    seconds = session.budget.seconds
    deadline = asyncio.timeout(None if seconds is None else max(0.0, seconds - session.trace.elapsed))
    try:
        async with deadline:
            await session.open(header)
            await search.run()
    except TimeoutError:
        if not deadline.expired():
            raise
    except TraceEnded:
        return _result(search, ended="interrupted")
    finally:
        await session.close()
    result = _result(search, ended="seconds" if deadline.expired() else None)
    session.trace.write("result", **result.to_dict())
    return result


def _header(search: Algorithm[Any]) -> dict[str, Any]:
    """What a search is, as its trace says it."""
    session = search.session
    task = session.task
    return {
        "algorithm": search.name,
        "options": search.options.model_dump(mode="json", exclude_unset=True),
        "settings": search.options.model_dump(mode="json"),
        "budget": session.budget.to_dict(),
        "seed": session.seed,
        "oracle": session.oracle,
        "ordered": session.ordered,
        "values": type(session.values).__name__,
        "counted": session.values.counted,
        "task": {
            "name": task.name,
            "prompt": task.prompt,
            "oracle": task.oracle,
            "stop": list(task.split.stop),
            "max_tokens": task.split.max_tokens,
            "max_depth": task.max_depth,
        },
    }


def _check_header(trace: Trace, header: dict[str, Any]) -> None:
    """Refuse a trace that is of another search."""
    if trace.header is None or trace.replay_only:
        return
    for field, value in header.items():
        if trace.header.get(field) != value:
            raise TraceError(trace.path, 1, f"is of a search with {field}={trace.header.get(field)!r}, not {value!r}")


def parse_algorithm(name: str, options: Mapping[str, Any]) -> tuple[type[Algorithm[Any]], AlgorithmOptions]:
    """The algorithm of a name, and its settings.

    Raises:
        InvalidArgument: There is no such algorithm or option, or a value is out of range.
    """
    if name not in ALGORITHMS:
        raise InvalidArgument("algorithm", name, f"must be one of {', '.join(ALGORITHMS)}")
    kind = ALGORITHMS[name]
    for option in options:
        if option not in kind.options_type.model_fields:
            known = ", ".join(kind.options_type.model_fields) or "none"
            raise InvalidArgument(option, options[option], f"no option of {name}; it has: {known}")
    return kind, checked(kind.options_type, dict(options))


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


def _result(search: Algorithm[Any], *, ended: Literal["seconds", "interrupted"] | None) -> SearchResult:
    """The answer so far; `ended` says what has ended the search, None that it has come to its end itself."""
    session = search.session
    best = search.best()
    text = best.text if best is not None else ""
    reward = session.task.reward(text) if best is not None and best.ended else 0.0
    return SearchResult(
        algorithm=search.name,
        task=session.task.name,
        seed=session.seed,
        solved=reward >= SOLVED,
        reward=reward,
        text=text,
        answer=session.task.answer(text),
        tokens=session.meter.tokens,
        expansions=session.meter.expansions,
        seconds=session.meter.seconds,
        nodes=search.nodes,
        stop_reason=ended if ended is not None and not _knows(best) else _stop_reason(search, best),
        reward_calls=session.meter.reward_calls,
        oracle=session.oracle and session.task.oracle,
    )


def _knows(best: Thought | None) -> bool:
    """Whether the search has found an answer that it knows to be right."""
    return best is not None and best.solved


def _stop_reason(search: Algorithm[Any], best: Thought | None) -> StopReason:
    if _knows(best):
        return "solved"
    session = search.session
    if search.stopped is not None:
        return search.stopped
    if (spent := session.meter.spent) is not None:
        return spent
    return "kv_bytes" if session.over_memory() else "exhausted"
