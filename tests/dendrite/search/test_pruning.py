from __future__ import annotations

from dendrite.search.pruning import hopeless, least_valuable
from dendrite.search.thought import Thought
from dendrite.search.tree import SearchNode


def tree(*children: tuple[str, int, float]) -> SearchNode:
    """A root with children of (text, visits, mean)."""
    root = SearchNode(Thought())
    for text, visits, mean in children:
        child, _ = root.add(Thought(1, text, text, 1, tuple(map(ord, text)), (-1.0,)))
        for _ in range(visits):
            child.back_up(mean)
    return root


def test_hopeless_is_the_largest_subtree_of_a_low_mean_after_enough_visits() -> None:
    root = tree(("a", 3, 0.1))
    child = root.children[0]
    below, _ = child.add(Thought(2, "x", "x", 2, (1,), (-1.0,)))
    below.back_up(0.1)
    assert hopeless(below, 0.2, 4) is child
    assert hopeless(below, 0.2, 5) is None
    assert hopeless(below, 0.1, 4) is None, "at the limit is not under it"
    assert hopeless(below, 0.2, 1) is child
    assert hopeless(root, 0.2, 1) is None, "never the root"
    child.closed = True
    assert hopeless(below, 0.2, 1) is below


def test_the_least_valuable_tip_by_mean_then_visits_then_the_last_drawn() -> None:
    root = tree(("a", 2, 0.3), ("b", 1, 0.3), ("c", 1, 0.3), ("d", 1, 0.9), ("e", 1, 0.0), ("f", 1, 0.0))
    root.children[4].closed = True
    root.children[5].depart(1)
    root.children[3].add(Thought(2, "x", "x", 2, (1,), (-1.0,)))[0].back_up(0.5)
    order = []
    while (leaf := least_valuable([root])) is not None:
        order.append(leaf.thought.text)
        leaf.closed = True
    assert order == ["c", "b", "a", "x", "d"], "a node whose children are all closed is the next tip"
    assert least_valuable([SearchNode(Thought())]) is None
