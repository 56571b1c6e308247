"""Every search algorithm on held-out problems, at equal numbers of generated tokens and at equal wall time.

    python -m benchmarks.search --task countdown         the published figures, and likewise --task game24
    python -m benchmarks.search --split validation --search mcts --budgets 512
                                                         how the settings were chosen; writes no result

A point is one search at one budget a problem, on the same problems, with a fresh engine. Its interval is Wilson's, of
one seed's problems, for searches of the same problem are no independent trials. Tokens are those that the engine has
decoded, which includes what was in flight when an answer ended a search; the prompt is not counted, for each search
computes it once. All searches but self-consistency stop at the first answer that the task's rule accepts, and none sees
more of a problem than its prompt and that rule.

At equal tokens, searches whose width is a setting have it set so that they use the budget up (`_width`): a wider beam
is how one spends more on a beam. Many problems share the engine's batch. At equal time a problem has the engine for
itself, with 16 expansions in flight where the search has that setting. Every engine has one thread and a core.

`search.mcts.token_ratio` compares costs at the same quality. R is the highest solve rate that both MCTS and best-of-n
reach, the lower of their rates at the largest budget. The cost of reaching R is the mean number of tokens a problem
takes, solved or not, interpolated linearly between the points next to R. The ratio is MCTS's cost of R over
best-of-n's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import write_result
from benchmarks.search_points import Kept, Point, Search, cost_of, show
from benchmarks.search_pool import Job, measure_missing
from dendrite.model.folder import resolve
from dendrite.search import ALGORITHMS, Budget, Task
from dendrite.search.tasks import countdown, game24

STEP_TOKENS = 16
"""Tokens of a thought of these problems, or some more: a level that the budget cuts short is lost."""
DEPTH = 3
"""Thoughts of a path."""


def _width(budget: int, branches: int) -> int:
    """How many paths a level may keep, each with so many children, for about `budget` tokens in all."""
    levels = budget / (STEP_TOKENS * branches)
    return max(1, int((levels - 1) / (DEPTH - 1)))


def _samples(budget: int) -> int:
    """How many whole paths have about `budget` tokens."""
    return max(1, round(budget / (STEP_TOKENS * DEPTH)))


# What a search's settings are at a budget of tokens; those that are not here use their defaults.
SCALED: dict[str, Callable[[int], dict[str, Any]]] = {
    "beam": lambda budget: {"width": _width(budget, 4), "branches": 4},
    "beam_logprob": lambda budget: {"width": _width(budget, 4), "branches": 4, "score": "logprob"},
    "dvts": lambda budget: {"subtrees": max(1, budget // 320), "branches": 4},
    "rebase": lambda budget: {"width": max(1, _samples(budget) * 2 // 3)},
    "particle_filter": lambda budget: {"n": _samples(budget)},
    "self_consistency": lambda budget: {"n": _samples(budget)},
    "tot_bfs": lambda budget: {"b": _width(budget, 5), "k": 5},
    "mcts": lambda _: {"in_flight": 1},
    "mcts_uct": lambda _: {"in_flight": 1, "selection": "uct"},
    "best_of_n": lambda _: {"in_flight": 1},
    "abmcts_a": lambda _: {"in_flight": 1},
}
VARIANTS = {"beam_logprob": "beam", "mcts_uct": "mcts"}
"""Searches that are another's algorithm with other settings."""
SEARCHES = tuple(sorted([*ALGORITHMS, *VARIANTS]))
BUDGETS = (256, 512, 1024, 2048)
SECONDS = (1.0,)
PARALLEL = 16
"""Expansions in flight at equal time."""


def at_tokens(name: str, budget: int) -> Search:
    """A search as it is set for a budget of tokens."""
    options = SCALED[name](budget) if name in SCALED else {}
    return Search(name, VARIANTS.get(name, name), options)


def at_seconds(name: str) -> Search:
    """A search as it is set for a budget of time: as wide as for the largest budget of tokens."""
    search = at_tokens(name, BUDGETS[-1])
    fields = ALGORITHMS[search.algorithm].options_type.model_fields
    parallel = {"in_flight": PARALLEL} if "in_flight" in fields else {}
    return Search(name, search.algorithm, {**search.options, **parallel})


def summary(points: Sequence[Point]) -> dict[str, float]:
    """The metrics, from the points of all searches."""
    metrics: dict[str, float] = {}
    by_tokens = [point for point in points if "tokens" in point.budget]
    largest = max(point.limit for point in by_tokens)
    for point in points:
        [(kind, limit)] = point.budget.items()
        metrics[f"search.{point.search}.{kind}{limit}.solve_rate"] = point.rate
        if kind == "tokens" and limit == largest:
            metrics[f"search.{point.search}.solve_rate"] = point.rate
            metrics[f"search.{point.search}.tokens"] = point.tokens
    curves = {
        name: [(point.tokens, point.rate) for point in by_tokens if point.search == name]
        for name in ("mcts", "best_of_n")
    }
    if all(curves.values()):
        target = min(metrics["search.mcts.solve_rate"], metrics["search.best_of_n.solve_rate"])
        costs = {name: cost_of(target, curve) for name, curve in curves.items()}
        if costs["mcts"] and costs["best_of_n"]:
            metrics["search.mcts.token_ratio"] = costs["mcts"] / costs["best_of_n"]
    return metrics


def main() -> None:
    """Measure, print and write the result."""
    arguments = _arguments()
    console = Console()
    tasks = _tasks(arguments)
    names = arguments.search or SEARCHES
    seeds, concurrency = range(arguments.seeds), arguments.concurrency
    by_tokens = [
        Job(arguments.model, tasks, at_tokens(name, tokens), Budget(tokens=tokens), seeds, concurrency)
        for name in names
        for tokens in arguments.budgets
    ]
    by_seconds = [
        Job(arguments.model, tasks, at_seconds(name), Budget(seconds=seconds), seeds, 1)
        for name in names
        for seconds in arguments.seconds
    ]
    kept = Kept(arguments.points)
    points = [
        point for jobs in (by_tokens, by_seconds) for point in measure_missing(jobs, kept, arguments.processes, console)
    ]
    show(points, console)
    if arguments.split != "test" or arguments.search or not arguments.budgets:
        return
    metrics = summary(points)
    for name, value in metrics.items():
        console.print(f"{name:48} {value:8.3f}")
    path = write_result(
        benchmark="search",
        subject=arguments.task,
        hardware="cpu",
        metrics=metrics,
        raw={
            **vars(arguments),
            "points": [asdict(point) for point in points],
            "model": resolve(arguments.model).name,
        },
        packages=("transformers",),
    )
    console.print(f"written to {path}")


def _tasks(arguments: argparse.Namespace) -> Sequence[Task]:
    if arguments.task == "game24":
        return game24.problems(arguments.problems, arguments.problem_seed)
    return countdown.problems(arguments.problems, arguments.problem_seed, arguments.split)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare searches at equal tokens and at equal time.")
    parser.add_argument("--task", default="countdown", choices=("countdown", "game24"))
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--problem-seed", type=int, default=0)
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="of Countdown")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS, help="generated tokens a problem")
    parser.add_argument("--seconds", type=float, nargs="*", default=SECONDS, help="wall time a problem")
    parser.add_argument("--seeds", type=int, default=1, help="searches of each problem, with the seeds 0, 1 …")
    parser.add_argument("--concurrency", type=int, default=32, help="problems at a time, at equal tokens")
    parser.add_argument("--points", type=Path, help="JSONL file that keeps points; those there are not measured again")
    parser.add_argument("--search", action="append", choices=SEARCHES, help="only this; writes no result")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="points measured at once, a core each"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
