from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def thought(
    step: str, probability: float = 0.5, tokens: tuple[int, ...] = (1,), reward: float | None = None
) -> Thought:
    return Thought(1, step, step, 1, tokens, (math.log(probability),), None, reward, ended=reward is not None)


def test_children_are_numbered_from_the_root_down() -> None:
    root = SearchNode(Thought())
    child, _ = root.add(thought("a"))
    other, _ = root.add(thought("b"))
    grandchild, _ = other.add(thought("c"))
    assert (root.path, child.path, other.path, grandchild.path) == ((), (0,), (1,), (1, 0))
    assert list(grandchild.lineage) == [grandchild, other, root]


def test_a_repeated_text_is_the_same_child_and_no_more_likely() -> None:
    root = SearchNode(Thought())
    child, new = root.add(thought("a", 0.3))
    again, newer = root.add(thought("a", 0.3))
    root.add(thought("b", 0.1))
    assert (new, newer, again is child) == (True, False, True)
    assert root.priors() == pytest.approx([0.75, 0.25])
    assert root.unseen == pytest.approx(0.6)


def test_another_spelling_of_a_text_adds_its_probability() -> None:
    root = SearchNode(Thought())
    root.add(thought("ab", 0.3, tokens=(1,)))
    root.add(thought("ab", 0.2, tokens=(2, 3)))
    root.add(thought("c", 0.5))
    assert root.priors() == pytest.approx([0.5, 0.5])
    assert root.unseen == pytest.approx(0.0)


def test_misses_count_repetitions_since_the_last_new_child() -> None:
    root = SearchNode(Thought())
    counts = []
    for step in "aabaab":
        root.add(thought(step))
        counts.append(root.misses)
    assert counts == [0, 1, 0, 1, 2, 3]


def test_a_terminal_is_closed_from_the_start() -> None:
    root = SearchNode(Thought())
    assert not root.closed
    assert root.add(thought("a", reward=0.0))[0].closed


def test_impossible_children_have_no_prior_to_divide() -> None:
    root = SearchNode(Thought())
    root.add(Thought(1, "a", "a", 1, (1,), (-math.inf,)))
    root.add(thought("b", 0.5))
    assert root.priors() == [0.0, 1.0]
    assert SearchNode(Thought()).priors() == []


def test_very_unlikely_children_keep_their_ratio() -> None:
    root = SearchNode(Thought())
    root.add(Thought(1, "a", "a", 1, (1,), (-2000.0,)))
    root.add(Thought(2, "b", "b", 1, (2,), (-2000.0 - math.log(3),)))
    assert root.priors() == pytest.approx([0.75, 0.25])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_back_up_gives_every_ancestor_the_mean(values: list[float]) -> None:
    nodes = [SearchNode(Thought())]
    for depth in range(3):
        nodes.append(nodes[-1].add(thought(str(depth)))[0])
    for index, value in enumerate(values):
        nodes[index % len(nodes)].back_up(value)
    for depth, node in enumerate(nodes):
        below = [value for index, value in enumerate(values) if index % len(nodes) >= depth]
        assert node.stats.visits == len(below)
        assert node.stats.mean == pytest.approx(sum(below) / len(below) if below else 0.0)


def test_visits_in_flight_are_counted_and_taken_back_along_the_path() -> None:
    root = SearchNode(Thought())
    child, _ = root.add(thought("a"))
    other, _ = root.add(thought("b"))
    child.depart(3)
    other.depart(1)
    assert [node.stats.in_flight for node in (root, child, other)] == [4, 3, 1]
    child.arrive(3)
    assert [node.stats.in_flight for node in (root, child, other)] == [1, 0, 1]


def test_paths_grow_by_one_index_a_level() -> None:
    node = SearchNode(Thought())
    line = [node]
    for _ in range(5):
        line.append(line[-1].add(thought("x"))[0])
    assert all(len(below.path) == len(above.path) + 1 for above, below in pairwise(line))


def test_a_discount_is_taken_once_a_level() -> None:
    root = SearchNode(Thought())
    child, _ = root.add(thought("a"))
    grandchild, _ = child.add(thought("b"))
    grandchild.back_up(0.8, 0.5)
    child.back_up(0.4, 0.5)
    assert [node.stats.total for node in (grandchild, child, root)] == pytest.approx([0.8, 0.4 + 0.4, 0.2 + 0.2])
    assert [node.stats.visits for node in (grandchild, child, root)] == [1, 2, 2]


def test_places_are_the_subtree_and_leaves_its_ends() -> None:
    root = SearchNode(Thought())
    first, _ = root.add(thought("a"))
    second, _ = root.add(thought("b"))
    below, _ = first.add(thought("c"))
    assert list(root.places) == [root, first, below, second]
    assert list(root.leaves) == [below, second]
    assert list(first.places) == [first, below]
    assert list(second.leaves) == [second]


def test_what_is_below_a_closed_node_is_cut_off() -> None:
    root = SearchNode(Thought())
    first, _ = root.add(thought("a"))
    second, _ = root.add(thought("b"))
    below, _ = first.add(thought("c"))
    first.closed = True
    assert [node.cut_off for node in (root, first, below, second)] == [False, True, True, False]


def test_all_paths_begin_with_that_of_the_root() -> None:
    root = SearchNode(Thought(), path=(3,))
    child, _ = root.add(thought("a"))
    assert (root.path, child.path) == ((3,), (3, 0))
