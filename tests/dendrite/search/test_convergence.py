from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.convergence import converged, merged, most_visited
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def tree(*children: tuple[str, int, float]) -> SearchNode:
    """A root with children of (text, visits, mean)."""
    root = SearchNode(Thought())
    for text, visits, mean in children:
        child, _ = root.add(Thought(1, text, text, 1, tuple(map(ord, text)), (math.log(0.1),)))
        for _ in range(visits):
            child.back_up(mean)
    return root


def test_the_most_visited_child_by_visits_then_mean_then_order() -> None:
    root = tree(("a", 3, 0.5), ("b", 4, 0.1), ("c", 4, 0.2), ("d", 4, 0.2))
    expected = ["c", "d", "b", "a"]
    for text in expected:
        best = most_visited(root)
        assert best is not None
        assert best.thought.text == text
        best.closed = True
    assert most_visited(root) is None


def test_converged_by_hand() -> None:
    root = tree(("a", 9, 0.5), ("b", 4, 0.5))
    assert converged([root], 4)
    assert not converged([root], 5), "a tie is no lead"
    root.children[1].depart(1)
    assert not converged([root], 4), "what is in flight counts for the rival"
    root.children[1].arrive(1)
    root.children[0].depart(7)
    assert converged([root], 4), "and not against it"
    root.pending = 1
    assert not converged([root], 4)


def test_a_child_that_is_not_drawn_yet_is_a_rival_too() -> None:
    root = tree(("a", 5, 0.5))
    assert converged([root], 4)
    assert not converged([root], 5)
    assert not converged([tree()], 0)
    root.children[0].closed = True
    assert not converged([root], 0), "nothing left to lead"


def test_closed_children_are_no_rivals() -> None:
    root = tree(("a", 5, 0.5), ("b", 5, 0.1))
    assert not converged([root], 0)
    root.children[1].closed = True
    assert converged([root], 4)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.lists(st.integers(0, 5), max_size=12))
def test_a_converged_leader_stays_whoever_gets_the_visits(visits: list[int], later: list[int]) -> None:
    root = tree(*((f"{index}", count, 0.5) for index, count in enumerate(visits)))
    leader = most_visited(root)
    if converged([root], len(later)):
        for index in later:
            root.children[index % len(root.children)].back_up(1.0)
        assert most_visited(root) is leader


def test_trees_are_merged_by_their_first_thoughts() -> None:
    one, other = tree(("a", 3, 1.0), ("b", 4, 0.5)), tree(("b", 2, 0.2), ("c", 1, 0.0), ("a", 2, 0.0))
    arms = merged([one, other])
    assert [(arm.thought.text, arm.visits) for arm in arms] == [("b", 6), ("a", 5), ("c", 1)]
    assert arms[0].mean == pytest.approx(2.4 / 6)
    assert converged([one, other], 0)
    assert not converged([one, other], 1)
