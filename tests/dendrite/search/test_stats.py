from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.stats import PUCT_CONSTANT, UCT_CONSTANT, VisitStats, child_limit, expected, puct, seen, uct

stats = st.builds(VisitStats, st.integers(1, 1000), st.floats(0, 1000, allow_nan=False), st.integers(0, 100))


def test_mean_is_the_sum_over_completed_visits() -> None:
    node = VisitStats(in_flight=3)
    assert node.mean == 0.0
    node.add(1.0)
    node.add(0.5)
    assert (node.visits, node.mean, node.in_flight) == (2, 0.75, 3)


def test_uct_by_hand() -> None:
    # Q = 3/4, N = 10, n = 4: 0.75 + sqrt(2) sqrt(ln 10 / 4) = 0.75 + sqrt(2) * 0.758713
    assert uct(VisitStats(4, 3.0), VisitStats(10, 5.0)) == pytest.approx(1.8229823)


def test_wu_uct_counts_visits_in_flight_in_the_confidence_term_only() -> None:
    # Q = 3/4, N + O = 10 + 6, n + o = 4 + 1: 0.75 + 2 sqrt(ln 16 / 5)
    child, parent = VisitStats(4, 3.0, in_flight=1), VisitStats(10, 5.0, in_flight=6)
    assert uct(child, parent, c=2.0) == pytest.approx(0.75 + 2 * math.sqrt(math.log(16) / 5))


def test_uct_takes_an_unvisited_child_first_unless_a_visit_is_on_its_way() -> None:
    parent = VisitStats(5, 4.0, in_flight=1)
    assert uct(VisitStats(), parent) == math.inf
    assert uct(VisitStats(in_flight=1), parent, c=0.0) == pytest.approx(0.8)


def test_uct_of_a_parent_that_was_never_visited_is_finite() -> None:
    assert uct(VisitStats(in_flight=1), VisitStats()) == 0.0


def test_puct_by_hand() -> None:
    # Q = 1/2, P = 0.3, N = 9, n = 2: 0.5 + 1.5 * 0.3 * 3 / 3
    assert puct(VisitStats(2, 1.0), VisitStats(9, 5.0), prior=0.3, c=1.5) == pytest.approx(0.95)


def test_puct_in_flight_by_hand() -> None:
    # Q = 1/2, P = 0.3, N + O = 9 + 7, n + o = 2 + 1: 0.5 + 2 * 0.3 * 4 / 4
    child, parent = VisitStats(2, 1.0, in_flight=1), VisitStats(9, 5.0, in_flight=7)
    assert puct(child, parent, prior=0.3, c=2.0) == pytest.approx(1.1)


def test_the_constants_are_the_published_ones() -> None:
    assert pytest.approx(math.sqrt(2)) == UCT_CONSTANT
    assert PUCT_CONSTANT == 1.5


def test_a_virtual_loss_is_a_completed_visit_of_the_lowest_value() -> None:
    # Q = 3/(4+1), N = 10 + 6, n = 4 + 1: 0.6 + 2 sqrt(ln 16 / 5)
    child = seen(VisitStats(4, 3.0, in_flight=1), "virtual_loss")
    parent = seen(VisitStats(10, 5.0, in_flight=6), "virtual_loss")
    assert (child.visits, child.mean, child.in_flight) == (5, 0.6, 0)
    assert uct(child, parent, c=2.0) == pytest.approx(0.6 + 2 * math.sqrt(math.log(16) / 5))
    assert seen(VisitStats(4, 3.0, in_flight=1), "virtual_loss", loss=0.5).mean == pytest.approx(0.7)


def test_naive_parallel_selection_does_not_see_what_is_in_flight() -> None:
    child, parent = VisitStats(4, 3.0, in_flight=1), VisitStats(10, 5.0, in_flight=6)
    bare = uct(VisitStats(4, 3.0), VisitStats(10, 5.0))
    assert uct(seen(child, "none"), seen(parent, "none")) == bare
    assert uct(seen(VisitStats(in_flight=3), "none"), seen(parent, "none")) == math.inf


@given(stats=stats, loss=st.floats(0, 1))
def test_all_ways_are_the_same_with_nothing_in_flight(stats: VisitStats, loss: float) -> None:
    stats.in_flight = 0
    assert seen(stats, "wu_uct") == seen(stats, "virtual_loss", loss) == seen(stats, "none") == stats


@given(stats=stats)
def test_seeing_changes_nothing(stats: VisitStats) -> None:
    before = (stats.visits, stats.total, stats.in_flight)
    assert seen(stats, "wu_uct") is stats
    seen(stats, "virtual_loss").add(1.0)
    seen(stats, "none").add(1.0)
    assert (stats.visits, stats.total, stats.in_flight) == before


def test_an_unvisited_child_is_as_good_as_its_parent() -> None:
    parent = VisitStats(4, 2.0)
    assert expected(VisitStats(in_flight=2), parent) == 0.5
    assert expected(VisitStats(2, 1.8), parent) == 0.9


@given(child=stats, parent=stats, prior=st.floats(0.01, 1))
def test_a_visit_in_flight_lowers_a_childs_score_and_raises_its_siblings(
    child: VisitStats, parent: VisitStats, prior: float
) -> None:
    more = VisitStats(child.visits, child.total, child.in_flight + 1)
    busier = VisitStats(parent.visits + 1, parent.total, parent.in_flight + 1)
    assert puct(more, parent, prior) < puct(child, parent, prior) < puct(child, busier, prior) + 1e-12
    assert uct(more, parent) <= uct(child, parent) <= uct(child, busier) + 1e-12


@pytest.mark.parametrize(
    ("visits", "k", "alpha", "limit"),
    [(0, 2.0, 0.5, 2), (1, 2.0, 0.5, 2), (4, 2.0, 0.5, 4), (5, 2.0, 0.5, 5), (100, 3.0, 0.0, 3), (7, 1.0, 1.0, 7)],
)
def test_child_limit(visits: int, k: float, alpha: float, limit: int) -> None:
    assert child_limit(visits, k, alpha) == limit
