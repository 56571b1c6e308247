from __future__ import annotations

import math

import pytest

from dendrite.search.mcts_options import MctsOptions
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode
from dendrite.search.widening import Widening


def tree(children: int, probability: float = 0.1, visits: int = 0) -> SearchNode:
    root = SearchNode(Thought())
    for index in range(children):
        root.add(Thought(1, f"{index}", f"{index}", 1, (index,), (math.log(probability),)))
    root.stats.visits = visits
    return root


@pytest.mark.parametrize(
    ("visits", "children", "pending", "draws"),
    [(0, 0, 0, 2), (0, 0, 1, 1), (0, 2, 0, 0), (4, 2, 0, 2), (4, 2, 1, 1), (25, 2, 0, 4), (25, 6, 0, 4), (25, 9, 0, 1)],
)
def test_draws_fill_the_limit(visits: int, children: int, pending: int, draws: int) -> None:
    """2 sqrt(N) children at most, 4 in one expansion, those in flight counted."""
    root = tree(children, visits=visits)
    root.pending = pending
    assert Widening(MctsOptions(widening_k=2, widening_alpha=0.5, children=4)).draws(root) == draws


def test_one_more_while_all_children_are_closed() -> None:
    root = tree(2)
    widening = Widening(MctsOptions(widening_k=1, widening_alpha=0))
    assert widening.draws(root) == 0
    for child in root.children:
        child.closed = True
    assert widening.draws(root) == 1
    assert widening.room(root, 5) == 3
    root.closed = True
    assert widening.draws(root) == 0


def test_a_node_is_drained_by_repetitions_a_full_context_or_when_nothing_is_unseen() -> None:
    widening = Widening(MctsOptions(patience=3, min_unseen=0.15))
    assert not widening.drained(tree(8, 0.1))
    assert widening.drained(tree(9, 0.1))
    repeating, full = tree(1), tree(0)
    repeating.misses = 3
    full.overflowed = True
    assert widening.drained(repeating)
    assert widening.drained(full)
    assert widening.draws(repeating) == widening.draws(full) == 0
