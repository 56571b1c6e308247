"""Measuring one search algorithm at one budget: what it solves, with its interval, and what that takes."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.jobs import as_solved
from dendrite.search import Budget, SearchResult, Task, run_search_async

KV_TOKENS = 1 << 18
"""Room for the trees of all problems at once, so that nothing is computed twice."""
Z95 = 1.959964
"""Normal quantile of a two-sided interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Search:
    """An algorithm as it is measured: `name` in the results, and its settings."""

    name: str
    algorithm: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One search at one budget: what it solved, and what that took."""

    search: str
    algorithm: str
    budget: Mapping[str, Any]
    options: Mapping[str, Any]
    problems: int
    solved: float
    """Of the problems, mean over the seeds."""
    low: float
    high: float
    tokens: float
    """Mean number of generated tokens a search, by the engine's count."""
    expansions: float
    search_seconds: float
    """Mean wall time of a search."""
    seconds: float
    """Of the engine's steps, for all searches."""
    prefill_tokens: int
    recomputed_tokens: int
    shared_ratio: float
    outcomes: tuple[str, ...]
    """A text a seed, with a digit a problem: 1 is solved."""

    @property
    def rate(self) -> float:
        """Share of the problems that was solved."""
        return self.solved / self.problems

    @property
    def limit(self) -> float:
        """The one limit of the budget."""
        [limit] = self.budget.values()
        return float(limit)


def wilson(solved: float, problems: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927)."""
    rate, weight = solved / problems, z * z / problems
    middle = (rate + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(rate * (1 - rate) / problems + weight / (4 * problems))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def cost_of(rate: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Mean tokens at which a curve of (tokens, rate) first reaches `rate`, linear in between; None if it never does.

    The curve starts at no tokens, where nothing is solved.
    """
    for (cheap, low), (dear, high) in pairwise([(0.0, 0.0), *sorted(curve)]):
        if high >= rate:
            return cheap + (dear - cheap) * (rate - low) / (high - low) if high > low else dear
    return None


def measure(
    model: str,
    tasks: Sequence[Task],
    search: Search,
    budget: Budget,
    seeds: Sequence[int],
    concurrency: int,
) -> Point:
    """Run one point on a fresh engine, with `concurrency` problems in its batch at once.

    Raises:
        RuntimeError: a search failed, computed a token twice, or left KV behind.
    """
    with Engine.from_pretrained(model, device="cpu", kv_tokens=KV_TOKENS) as engine:
        runs = [asyncio.run(_solve(engine, tasks, search, budget, seed, concurrency)) for seed in seeds]
        stats = engine.stats()
    if stats.recomputed_tokens or stats.pages_held:
        raise RuntimeError(f"{search.name} computed tokens twice, or left pages held: {stats}")
    results = [result for run in runs for result in run]
    solved = sum(result.solved for result in results) / len(seeds)
    low, high = wilson(solved, len(tasks))
    return Point(
        search=search.name,
        algorithm=search.algorithm,
        budget=budget.to_dict(),
        options=search.options,
        problems=len(tasks),
        solved=solved,
        low=low,
        high=high,
        tokens=stats.decode_tokens / len(results),
        expansions=sum(result.expansions for result in results) / len(results),
        search_seconds=sum(result.seconds for result in results) / len(results),
        seconds=stats.seconds_running,
        prefill_tokens=stats.prefill_tokens,
        recomputed_tokens=stats.recomputed_tokens,
        shared_ratio=stats.shared_ratio,
        outcomes=tuple("".join(str(int(result.solved)) for result in run) for run in runs),
    )


async def _solve(
    engine: Engine, tasks: Sequence[Task], search: Search, budget: Budget, seed: int, concurrency: int
) -> list[SearchResult]:
    backend = AsyncEngine(engine)

    async def solve(_: int, task: Task) -> SearchResult:
        return await run_search_async(task, backend, search.algorithm, budget, seed, **search.options)

    found: dict[int, SearchResult] = {}
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task(f"{search.name} {budget.to_dict()}", total=len(tasks))
        async for outcome in as_solved(tasks, solve, concurrency):
            if outcome.result is None:
                raise RuntimeError(f"{outcome.task.name}: {outcome.error}")
            found[outcome.index] = outcome.result
            progress.advance(bar)
    await backend.aclose()
    return [found[index] for index in range(len(tasks))]


class Kept:
    """Points in a JSONL file, so that a long measurement can be interrupted; without a file nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._points = [
            Point(**{**json.loads(line), "outcomes": tuple(json.loads(line)["outcomes"])}) for line in lines
        ]

    def find(self, search: Search, budget: Budget) -> Point | None:
        """The point of this search at this budget, if it is there."""
        asked = (search.name, search.algorithm, dict(search.options), budget.to_dict())
        for point in self._points:
            if (point.search, point.algorithm, point.options, point.budget) == asked:
                return point
        return None

    def add(self, point: Point) -> None:
        """Keep a point."""
        self._points.append(point)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(point)) + "\n")


def show(points: Sequence[Point], console: Console) -> None:
    """Print the points as a table."""
    table = Table("search", "budget", "solved", "95 % interval", "tokens", "expansions", "s a search")
    for point in points:
        [(kind, limit)] = point.budget.items()
        table.add_row(
            point.search,
            f"{limit} {kind}",
            f"{point.rate:.1%}",
            f"{point.low:.1%} – {point.high:.1%}",
            f"{point.tokens:.0f}",
            f"{point.expansions:.1f}",
            f"{point.search_seconds:.2f}",
        )
    console.print(table)
