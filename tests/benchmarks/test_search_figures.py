from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search import SEARCHES, at_seconds, at_tokens, summary
from benchmarks.search_points import Kept, Point, Search, cost_of, wilson
from dendrite.search import Budget
from dendrite.search.run import parse_algorithm


def point(search: str, budget: int, tokens: float, solved: int) -> Point:
    return Point(
        search, search, {"tokens": budget}, {}, 100, solved, 0.0, 1.0, tokens, 1.0, 1.0, 1.0, 10, 0, 0.5, ("",)
    )


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_has_settings_that_its_algorithm_takes(name: str) -> None:
    for search in (at_tokens(name, 256), at_tokens(name, 2048), at_seconds(name)):
        parse_algorithm(search.algorithm, search.options)


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 100, z = 1.96: (0.8 + 0.0192) / 1.0384 -+ 1.96 sqrt(0.0016 + 0.000096) / 1.0384
    assert wilson(80, 100) == pytest.approx((0.7111, 0.8667), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


@pytest.mark.parametrize(
    ("rate", "cost"),
    [(0.0, 0.0), (0.2, 50.0), (0.4, 100.0), (0.5, 150.0), (0.6, 200.0), (0.7, None)],
)
def test_cost_is_interpolated(rate: float, cost: float | None) -> None:
    assert cost_of(rate, [(200.0, 0.6), (100.0, 0.4), (400.0, 0.6)]) == (None if cost is None else pytest.approx(cost))


def test_the_ratio_compares_costs_of_the_same_rate() -> None:
    points = [
        point("mcts", 50, 50.0, 30),
        point("mcts", 100, 90.0, 70),
        point("best_of_n", 50, 50.0, 20),
        point("best_of_n", 100, 100.0, 50),
        point("greedy", 100, 40.0, 10),
    ]
    metrics = summary(points)
    assert metrics["search.mcts.token_ratio"] == pytest.approx(70.0 / 100.0)
    assert (metrics["search.mcts.solve_rate"], metrics["search.greedy.solve_rate"]) == (0.7, 0.1)
    assert metrics["search.mcts.tokens50.solve_rate"] == 0.3


def test_the_ratio_is_taken_at_a_rate_that_both_reach() -> None:
    points = [point("mcts", 100, 90.0, 30), point("best_of_n", 100, 100.0, 50), point("greedy", 100, 40.0, 10)]
    assert summary(points)["search.mcts.token_ratio"] == pytest.approx(90.0 / 60.0)


def test_where_nothing_is_solved_there_is_no_ratio() -> None:
    points = [point("mcts", 100, 90.0, 0), point("best_of_n", 100, 100.0, 50), point("greedy", 100, 40.0, 10)]
    assert "search.mcts.token_ratio" not in summary(points)


def test_points_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    search, budget = Search("mcts", "mcts", {}), Budget(tokens=50)
    Kept(file).add(point("mcts", 50, 50.0, 30))
    assert Kept(file).find(search, budget) == point("mcts", 50, 50.0, 30)
    assert Kept(file).find(search, Budget(tokens=51)) is None
    assert Kept(file).find(Search("mcts", "mcts", {"in_flight": 1}), budget) is None
    assert Kept(None).find(search, budget) is None
