from __future__ import annotations

import math
from typing import Any

import pytest

from dendrite.search.mcts_options import MctsOptions
from dendrite.search.selection import Selector, descend
from dendrite.search.stats import puct, uct
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def family(*children: tuple[float, int, float, int], visits: int = 20, total: float = 10.0) -> SearchNode:
    """A root with children of (prior probability, visits, mean, in flight)."""
    root = SearchNode(Thought())
    for index, (likely, count, mean, in_flight) in enumerate(children):
        child, _ = root.add(Thought(1, f"{index}", f"{index}", 1, (index,), (math.log(likely),)))
        child.stats.visits, child.stats.total, child.stats.in_flight = count, mean * count, in_flight
    root.stats.visits, root.stats.total = visits, total
    root.stats.in_flight = sum(child.stats.in_flight for child in root.children)
    return root


def order(root: SearchNode, seed: int = 0, **options: Any) -> list[str]:
    return [child.thought.text for child in Selector(MctsOptions(**options), seed).ranked(root)]


MIXED = ((0.2, 4, 0.75, 0), (0.6, 9, 0.4, 3), (0.2, 7, 0.3, 0))


def test_scores_are_those_of_the_formulas() -> None:
    root = family(*MIXED)
    stats = [child.stats for child in root.children]
    found = Selector(MctsOptions(selection="uct", c=0.7), 0).scores(root)
    assert found == [(uct(each, root.stats, 0.7),) for each in stats]
    found = Selector(MctsOptions(c=2.0), 0).scores(root)
    assert found == [
        (pytest.approx(puct(each, root.stats, p, 2.0)),) for each, (p, *_) in zip(stats, MIXED, strict=True)
    ]


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        # 0.4 + c 0.6 sqrt(N) / (1 + n), c = 2: N + O = 23, n + o = 12; then Q = 3.6 / 12; then N = 20, n = 9
        ("wu_uct", 0.4 + 1.2 * math.sqrt(23) / 13),
        ("virtual_loss", 0.3 + 1.2 * math.sqrt(23) / 13),
        ("none", 0.4 + 1.2 * math.sqrt(20) / 10),
    ],
)
def test_visits_in_flight_count_as_asked_for(parallel: Any, expected: float) -> None:
    root = family(*MIXED)
    assert Selector(MctsOptions(c=2.0, parallel=parallel), 0).scores(root)[1][0] == pytest.approx(expected)


def test_unvisited_children_come_first_under_uct() -> None:
    assert order(family((0.5, 5, 1.0, 0), (0.3, 0, 0.0, 0), (0.2, 0, 0.0, 0)), selection="uct") == ["1", "2", "0"]


def test_greedy_goes_by_the_mean_and_then_by_the_fewest_visits() -> None:
    root = family((0.3, 4, 0.5, 0), (0.3, 3, 0.5, 0), (0.2, 9, 0.9, 0), (0.2, 1, 0.5, 5))
    assert order(root, selection="greedy") == ["2", "1", "0", "3"]
    assert order(root, selection="greedy", parallel="none") == ["2", "3", "1", "0"]
    assert order(root, selection="greedy", parallel="virtual_loss")[-1] == "3"


def test_closed_children_are_not_ranked() -> None:
    root = family(*MIXED)
    root.children[0].closed = True
    assert "0" not in order(root)
    assert "0" not in order(root, selection="epsilon_greedy", epsilon=1.0)


def test_epsilon_greedy_explores_as_often_as_asked_for_and_repeats_itself() -> None:
    root = family((0.3, 4, 0.1, 0), (0.3, 4, 0.9, 0), (0.4, 4, 0.2, 0))
    first = []
    for seed in range(600):
        ranked = order(root, seed, selection="epsilon_greedy", epsilon=0.3)
        assert ranked == order(root, seed, selection="epsilon_greedy", epsilon=0.3)
        assert sorted(ranked) == ["0", "1", "2"]
        first.append(ranked[0])
    for child, share in (("0", 0.1), ("1", 0.8), ("2", 0.1)):
        assert first.count(child) / 600 == pytest.approx(share, abs=0.05)
    assert order(root, selection="epsilon_greedy", epsilon=0.0) == order(root, selection="greedy")


def test_each_visit_draws_its_own_exploration() -> None:
    seen = set()
    root = family((0.5, 4, 0.1, 0), (0.5, 4, 0.9, 0))
    for _ in range(40):
        root.back_up(0.5)
        seen.add(order(root, selection="epsilon_greedy", epsilon=1.0)[0])
    assert seen == {"0", "1"}


def test_the_improved_policy_picks_who_lacks_visits_most() -> None:
    # logits ln P + (0 + 9) 0.1 Q: weights 0.2 e^.675, 0.6 e^.36, 0.2 e^.27; shares less N / 21, 3 in flight counted
    root = family(*MIXED)
    weights = [0.2 * math.exp(0.9 * 0.75), 0.6 * math.exp(0.9 * 0.4), 0.2 * math.exp(0.9 * 0.3)]
    expected = [w / sum(weights) - n / 24 for w, n in zip(weights, (4, 12, 7), strict=True)]
    options = MctsOptions(selection="improved_policy", c_visit=0.0, c_scale=0.1)
    assert [score for (score,) in Selector(options, 0).scores(root)] == pytest.approx(expected)


def test_visits_follow_the_improved_policy() -> None:
    root = family((0.5, 1, 0.4, 0), (0.3, 1, 0.6, 0), (0.2, 1, 0.5, 0), visits=3, total=1.5)
    values = (0.4, 0.6, 0.5)
    selector = Selector(MctsOptions(selection="improved_policy", c_visit=5.0, c_scale=0.01), 0)
    for _ in range(400):
        child = next(selector.ranked(root))
        child.back_up(values[int(child.thought.text)])
    most = max(child.stats.visits for child in root.children)
    weights = [p * math.exp((5 + most) * 0.01 * q) for p, q in zip((0.5, 0.3, 0.2), values, strict=True)]
    shares = [child.stats.visits / root.stats.visits for child in root.children]
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], abs=0.03)


def test_a_descent_backs_out_of_what_leads_nowhere() -> None:
    root = family((0.5, 5, 0.9, 0), (0.5, 5, 0.1, 0))
    good, bad = root.children
    for text in "xy":
        good.add(Thought(3, text, text, 2, (ord(text),), (-1.0,)))
    asked = []

    def draws(node: SearchNode) -> int:
        asked.append(node)
        return 3 if node is bad else 0

    assert descend(root, Selector(MctsOptions(), 0).ranked, draws) is bad
    assert asked == [root, good, *good.children, bad]
    assert descend(root, Selector(MctsOptions(), 0).ranked, lambda node: 0) is None
    root.closed = True
    assert descend(root, Selector(MctsOptions(), 0).ranked, lambda node: 1) is None


def test_a_descent_may_be_deeper_than_pythons_stack() -> None:
    node = root = SearchNode(Thought())
    for _ in range(3000):
        node, _ = node.add(Thought(1, "x", "x", 1, (1,), (-0.1,)))
    assert descend(root, Selector(MctsOptions(), 0).ranked, lambda place: int(not place.children)) is node
