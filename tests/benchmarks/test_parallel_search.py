from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from benchmarks.parallel_search import HOPELESS, IN_FLIGHT, MODES, SETTINGS, summary
from benchmarks.search_points import Point
from dendrite.search.run import parse_algorithm
from dendrite.search.tasks import Countdown


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """All that the numbers can make together, whole and not negative at every step."""
    if len(numbers) == 1:
        return {numbers[0]}
    found: set[Fraction] = set()
    for first, second in combinations(range(len(numbers)), 2):
        left = tuple(number for at, number in enumerate(numbers) if at not in (first, second))
        a, b = numbers[first], numbers[second]
        results = {a + b, a * b, abs(a - b), *([a / b] if b else []), *([b / a] if a else [])}
        for result in results:
            if result.denominator == 1:
                found |= reachable((*left, result))
    return found


@pytest.mark.parametrize("task", HOPELESS, ids=lambda task: task.name)
def test_the_problems_have_no_solution(task: Countdown) -> None:
    assert task.target not in reachable(tuple(map(Fraction, task.numbers)))


def test_the_settings_are_the_algorithms() -> None:
    for settings in SETTINGS.values():
        for mode in MODES:
            parse_algorithm("mcts", {**settings, "parallel": mode, "in_flight": IN_FLIGHT[-1]})


def test_the_metrics() -> None:
    point = Point("fixed.none.f4", "mcts", {"expansions": 8}, {}, 10, 4, 0.1, 0.8, 9.0, 8.0, 0.1, 1.0, 1, 0, 0.5, ("",))
    metrics = summary([point], {1: [10.0, 12.0, 11.0], 4: [40.0, 33.0, 30.0]})
    assert metrics["parallel.fixed.none.f4.solve_rate"] == 0.4
    assert (metrics["parallel.f4.expansions_s"], metrics["parallel.f4.speedup"]) == (33.0, 3.0)
