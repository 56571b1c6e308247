"""What several expansions in flight cost MCTS in quality, and what they gain in speed.

    python -m benchmarks.parallel_search

Quality: the solve rate at the same number of expansions with 1, 4, 16 and 64 of them in flight, by how visits in flight
count: as WU-UCT has them, as losses (virtual loss), or not at all (naive). A search that sees nothing of what is in
flight sends many expansions to the same place, if there is room for them: that differs in the two settings. With a
fixed fan-out a node may have 32 children at once. With progressive widening it has few until it has been visited,
which by itself spreads what is in flight over the tree.

Speed: expansions a second of one search on one problem after another that has no solution, so that each uses up its
budget.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import spread, write_result
from benchmarks.search_points import Kept, Point, Search, show
from benchmarks.search_pool import Job, measure_missing
from dendrite.engine.engine import Engine
from dendrite.model.folder import resolve
from dendrite.search import Budget, run_search
from dendrite.search.tasks import Countdown, countdown

IN_FLIGHT = (1, 4, 16, 64)
MODES = ("none", "virtual_loss", "wu_uct")
PROBLEMS_AT_ONCE = 16
HOPELESS = tuple(Countdown((3, 7, 8, 25), target) for target in (99, 863, 941))
"""Problems without a solution."""
# One child an expansion, so that where it goes is the search's choice alone.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "fixed": {"children": 1, "selection": "uct", "widening_k": 32.0, "widening_alpha": 0.0},
    "widening": {"children": 1, "selection": "uct", "widening_k": 1.0, "widening_alpha": 0.5},
}


def quality(arguments: argparse.Namespace, console: Console) -> list[Point]:
    """Solve rates at the same number of expansions."""
    tasks = countdown.problems(arguments.problems, 0, arguments.split)
    searches = [
        Search(f"{name}.{mode}.f{in_flight}", "mcts", {**settings, "parallel": mode, "in_flight": in_flight})
        for name, settings in SETTINGS.items()
        for mode in MODES
        for in_flight in IN_FLIGHT
    ]
    budget, seeds = Budget(expansions=arguments.expansions), range(arguments.seeds)
    jobs = [Job(arguments.model, tasks, search, budget, seeds, PROBLEMS_AT_ONCE) for search in searches]
    return measure_missing(jobs, Kept(arguments.points), arguments.processes, console)


def speed(arguments: argparse.Namespace) -> dict[int, list[float]]:
    """Expansions a second of one search at a time, by how many it has in flight."""
    rates: dict[int, list[float]] = {}
    with Engine.from_pretrained(arguments.model, device="cpu") as engine:
        for in_flight in IN_FLIGHT:
            runs = [_rate(engine, arguments.timed_expansions, seed, in_flight) for seed in range(arguments.runs + 1)]
            rates[in_flight] = runs[1:]  # the first warms up
    return rates


def _rate(engine: Engine, expansions: int, seed: int, in_flight: int) -> float:
    task = HOPELESS[seed % len(HOPELESS)]
    budget = Budget(expansions=expansions)
    result = run_search(task, engine, "mcts", budget, seed, in_flight=in_flight, **SETTINGS["widening"])
    if result.expansions != expansions:
        raise RuntimeError(f"{task.name} ended after {result.expansions} expansions: {result.stop_reason}")
    return result.expansions / result.seconds


def summary(points: Sequence[Point], rates: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """The metrics."""
    metrics = {f"parallel.{point.search}.solve_rate": point.rate for point in points}
    medians = {in_flight: spread(runs)["median"] for in_flight, runs in rates.items()}
    metrics |= {f"parallel.f{in_flight}.expansions_s": rate for in_flight, rate in medians.items()}
    return metrics | {f"parallel.f{in_flight}.speedup": rate / medians[1] for in_flight, rate in medians.items()}


def main() -> None:
    """Measure, print and write the result."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    rates = speed(arguments)
    console.print({in_flight: [round(rate, 1) for rate in runs] for in_flight, runs in rates.items()})
    points = quality(arguments, console)
    show(points, console)
    metrics = summary(points, rates)
    for name, value in metrics.items():
        console.print(f"{name:40} {value:8.3f}")
    if arguments.split != "test":
        return
    path = write_result(
        benchmark="parallel_search",
        subject="countdown",
        hardware="cpu",
        metrics=metrics,
        raw={
            **vars(arguments),
            "model": resolve(arguments.model).name,
            "settings": {name: dict(settings) for name, settings in SETTINGS.items()},
            "points": [asdict(point) for point in points],
            "speed": {str(in_flight): spread(runs) for in_flight, runs in rates.items()},
        },
        packages=("transformers",),
    )
    console.print(f"written to {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What expansions in flight cost and gain.")
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--expansions", type=int, default=1024, help="of a search whose solve rate is measured")
    parser.add_argument("--timed-expansions", type=int, default=64, help="of a search whose speed is measured")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="searches timed")
    parser.add_argument("--points", type=Path, help="JSONL file that keeps points; those there are not measured again")
    parser.add_argument("--threads", type=int, default=1, help="of the engine whose speed is measured")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="solve rates measured at a time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
