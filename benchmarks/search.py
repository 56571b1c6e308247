"""Solve held-out Countdown problems by MCTS, best-of-n and greedy decoding, at equal numbers of generated tokens.

    python -m benchmarks.search                          the published figures
    python -m benchmarks.search --split validation --temperature 0.7 --algorithm mcts
                                                         how the settings were chosen; writes no result

Every point is one algorithm at one token budget a problem, on the same problems, with a fresh engine. Each problem is
searched with several sampling seeds; a solve rate is the mean over them. Its interval is that of one seed's problems,
for searches of the same problem are no independent trials. Tokens are those that the engine has decoded, which
includes what was in flight when an answer ended a search; the prompt is not counted, for each search computes it once.
Best-of-n and MCTS both stop at the first answer that the task's rule accepts, and neither sees more of the problem than
its prompt and that rule.

`search.mcts.token_ratio` compares costs at the same quality. R is the highest solve rate that both MCTS and best-of-n
reach, the lower of their rates at the compared budget. The cost of reaching R is the mean number of tokens a problem
takes, solved or not, interpolated linearly between the points next to R. The ratio is MCTS's cost of R over
best-of-n's.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.common import write_result
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.jobs import as_solved
from dendrite.model.folder import resolve
from dendrite.search import Budget, SearchResult, Task, run_search_async
from dendrite.search.tasks import countdown

Z95 = 1.959964
"""Normal quantile of a two-sided interval of 95 %."""
COMPARED = ("mcts", "best_of_n", "greedy")
SHARES = (8, 4, 2, 1)
"""Points of the curves: the compared budget divided by these."""


@dataclass(frozen=True, slots=True)
class Point:
    """One algorithm at one token budget: what it solved, and what that took."""

    algorithm: str
    budget: int
    options: Mapping[str, Any]
    problems: int
    solved: float
    """Of the problems, mean over the seeds."""
    low: float
    high: float
    tokens: float
    """Mean number of generated tokens a search, by the engine's count."""
    expansions: float
    seconds: float
    prefill_tokens: int
    recomputed_tokens: int
    shared_ratio: float
    outcomes: tuple[str, ...]
    """A text a seed, with a digit a problem: 1 is solved."""

    @property
    def rate(self) -> float:
        """Share of the problems that was solved."""
        return self.solved / self.problems


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
    algorithm: str,
    budget: int,
    seeds: Sequence[int],
    options: Mapping[str, Any],
    jobs: int,
) -> Point:
    """Run one point on a fresh engine, with many problems in its batch at once."""
    engine = Engine.from_pretrained(model, device="cpu")
    with engine:
        runs = [asyncio.run(_solve(engine, tasks, algorithm, budget, seed, options, jobs)) for seed in seeds]
        stats = engine.stats()
        _check_prefill(engine, tasks, len(seeds))
    results = [result for run in runs for result in run]
    solved = sum(result.solved for result in results) / len(seeds)
    low, high = wilson(solved, len(tasks))
    return Point(
        algorithm=algorithm,
        budget=budget,
        options=options,
        problems=len(tasks),
        solved=solved,
        low=low,
        high=high,
        tokens=stats.decode_tokens / len(results),
        expansions=sum(result.expansions for result in results) / len(results),
        seconds=stats.seconds_running,
        prefill_tokens=stats.prefill_tokens,
        recomputed_tokens=stats.recomputed_tokens,
        shared_ratio=stats.shared_ratio,
        outcomes=tuple("".join(str(int(result.solved)) for result in run) for run in runs),
    )


async def _solve(
    engine: Engine,
    tasks: Sequence[Task],
    algorithm: str,
    budget: int,
    seed: int,
    options: Mapping[str, Any],
    jobs: int,
) -> list[SearchResult]:
    backend = AsyncEngine(engine)

    async def solve(task: Task) -> SearchResult:
        return await run_search_async(task, backend, algorithm, Budget(tokens=budget), seed, **options)

    found: dict[int, SearchResult] = {}
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"{algorithm} {budget}", total=len(tasks))
        async for outcome in as_solved(tasks, solve, jobs):
            if outcome.result is None:
                raise RuntimeError(f"{outcome.task.name}: {outcome.error}")
            found[outcome.index] = outcome.result
            progress.advance(bar)
    await backend.aclose()
    return [found[index] for index in range(len(tasks))]


def _check_prefill(engine: Engine, tasks: Sequence[Task], runs: int) -> None:
    """Fail unless the searches computed each prompt once and nothing but the prompts."""
    assert engine.tokenizer is not None
    prompts = runs * sum(len(engine.tokenizer.encode(task.prompt)) for task in tasks)
    stats = engine.stats()
    if stats.prefill_tokens + stats.cached_tokens != prompts or stats.recomputed_tokens or stats.retips:
        raise RuntimeError(f"{prompts} prompt tokens, yet {stats}")
    if stats.pages_held:
        raise RuntimeError(f"{stats.pages_held} pages are still held")


def summary(points: Sequence[Point], budget: int) -> dict[str, float]:
    """The metrics, from the points of all algorithms."""
    at = {point.algorithm: point for point in points if point.budget == budget}
    metrics = {f"search.{name}.solve_rate": point.rate for name, point in at.items()}
    metrics |= {f"search.{name}.tokens": point.tokens for name, point in at.items()}
    target = min(at["mcts"].rate, at["best_of_n"].rate)
    costs = {
        name: cost_of(target, [(point.tokens, point.rate) for point in points if point.algorithm == name])
        for name in ("mcts", "best_of_n")
    }
    if costs["mcts"] and costs["best_of_n"]:
        metrics["search.mcts.token_ratio"] = costs["mcts"] / costs["best_of_n"]
    return metrics


def show(points: Sequence[Point], console: Console) -> None:
    """Print the points as a table."""
    table = Table("algorithm", "budget", "solved", "95 % interval", "tokens", "expansions", "s")
    for point in points:
        table.add_row(
            point.algorithm,
            str(point.budget),
            f"{point.rate:.1%}",
            f"{point.low:.1%} – {point.high:.1%}",
            f"{point.tokens:.0f}",
            f"{point.expansions:.1f}",
            f"{point.seconds:.0f}",
        )
    console.print(table)


def main() -> None:
    """Measure, print and write the result."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    tasks = countdown.problems(arguments.problems, arguments.problem_seed, arguments.split)
    shared = {"in_flight": arguments.in_flight, "temperature": arguments.temperature}
    options = {"mcts": shared, "best_of_n": shared, "greedy": {}}
    points = []
    for algorithm in arguments.algorithm or COMPARED:
        for share in SHARES if algorithm != "greedy" else SHARES[-1:]:
            budget = arguments.budget // share
            given = {name: value for name, value in options[algorithm].items() if value is not None}
            seeds = range(arguments.seeds if algorithm != "greedy" else 1)
            points.append(measure(arguments.model, tasks, algorithm, budget, seeds, given, arguments.concurrency))
            console.print(f"{algorithm} {budget}: {points[-1].rate:.1%} with {points[-1].tokens:.0f} tokens")
    show(points, console)
    if arguments.split != "test" or arguments.algorithm:
        return
    metrics = summary(points, arguments.budget)
    for name, value in metrics.items():
        console.print(f"{name:32} {value:8.3f}")
    path = write_result(
        benchmark="search",
        subject=resolve(arguments.model).name,
        hardware="cpu",
        metrics=metrics,
        raw={**vars(arguments), "points": [asdict(point) for point in points]},
        packages=("transformers",),
    )
    console.print(f"written to {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare searches at equal numbers of generated tokens.")
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--problem-seed", type=int, default=0)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--budget", type=int, default=4096, help="generated tokens a problem, at the compared point")
    parser.add_argument("--seeds", type=int, default=2, help="searches of each problem, with the seeds 0, 1 …")
    parser.add_argument("--in-flight", type=int, default=1, help="expansions at a time within one problem")
    parser.add_argument("--concurrency", type=int, default=32, help="problems at a time")
    parser.add_argument("--temperature", type=float, help="of both algorithms; left out: each one's default")
    parser.add_argument("--algorithm", action="append", choices=COMPARED, help="only this; writes no result")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
