from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dendrite.kv import Node
from dendrite.kv.prefix import Match, RadixIndex
from tests.dendrite.kv.simulated import SimulatedEngine

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12) | st.integers(1, 40).map(lambda n: [0] * n)


def bare_node(number: int) -> Node:
    """The index asks a node for no more than where it begins."""
    return Node(SimulatedEngine().prompt([1]).tree, number, None, 0)


class RadixMachine(RuleBasedStateMachine):
    """Against a list of all paths in the index."""

    def __init__(self) -> None:
        super().__init__()
        self.index = RadixIndex()
        self.paths: list[tuple[Node, list[int]]] = []
        self.tree = bare_node(0).tree
        self.made = 0

    @rule(path=TOKENS)
    def insert(self, path: list[int]) -> None:
        self.made += 1
        self.insert_for(Node(self.tree, self.made, None, 0), path)

    @precondition(lambda self: self.paths)
    @rule(number=st.integers(0, 20), more=TOKENS)
    def extend(self, number: int, more: list[int]) -> None:
        """The same prompt, further computed."""
        node = self.paths[number % len(self.paths)][0]
        longest = max((path for other, path in self.paths if other is node), key=len)
        self.insert_for(node, longest + more)

    def insert_for(self, node: Node, path: list[int]) -> None:
        covered = self.longest(path) == len(path)
        held = any(other is node for other, _ in self.paths)
        assert self.index.insert(path, node) is (held or not covered)
        if not covered:
            self.paths.append((node, path))

    @precondition(lambda self: self.paths)
    @rule(number=st.integers(0, 20))
    def remove(self, number: int) -> None:
        node = self.paths[number % len(self.paths)][0]
        self.index.remove(node)
        self.index.remove(node)
        self.paths = [(other, path) for other, path in self.paths if other is not node]

    @rule(tokens=TOKENS)
    def match(self, tokens: list[int]) -> None:
        found = self.index.match(tokens)
        assert (found.offset if found else 0) == self.longest(tokens)
        if found:
            assert any(
                other is found.node and path[: found.offset] == tokens[: found.offset] for other, path in self.paths
            )

    @invariant()
    def holds_the_nodes(self) -> None:
        nodes = {node for node, _ in self.paths}
        assert len(self.index) == len(nodes)
        assert all(node in self.index for node in nodes)

    def longest(self, tokens: list[int]) -> int:
        return max((_common(tokens, path) for _, path in self.paths), default=0)


def _common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


TestRadixMachine = RadixMachine.TestCase


def test_an_empty_index_knows_nothing() -> None:
    assert RadixIndex().match([1, 2]) is None
    assert RadixIndex().match([]) is None


def test_a_match_that_ends_above_the_node_names_the_ancestor() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(10))
    child = root.fork()[0]
    engine.decode(child, range(10, 15))
    index = RadixIndex()
    index.insert(child.path_tokens, child)
    assert index.match([*range(13), 99]) == Match(child, 3)
    assert index.match([*range(10), 99]) == Match(root, 10)
    assert index.match([*range(4), 99]) == Match(root, 4)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_prefix_stays_known_as_long_as_any_path_has_it(gone: int) -> None:
    index = RadixIndex()
    nodes = [bare_node(0), bare_node(1)]
    index.insert([1, 2, 3, 4], nodes[0])
    index.insert([1, 2, 3, 5], nodes[1])
    index.remove(nodes[gone])
    assert index.match([1, 2, 3]) == Match(nodes[1 - gone], 3)


def test_a_continuation_stays_its_own_when_another_goes() -> None:
    index = RadixIndex()
    short, kept, gone = (bare_node(number) for number in range(3))
    index.insert([1, 2], short)
    index.insert([1, 2, 3], kept)
    index.insert([1, 2, 4], gone)
    index.remove(gone)
    assert index.match([1, 2, 3]) == Match(kept, 3)
    assert index.match([1, 2, 4]) == Match(short, 2)
    index.remove(kept)
    assert index.match([1, 2, 3]) == Match(short, 2)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_of_three_continuations_two_stay_known(gone: int) -> None:
    index = RadixIndex()
    short, *nodes = (bare_node(number) for number in range(4))
    index.insert([1, 2], short)
    for last, node in enumerate(nodes):
        index.insert([1, 2, last], node)
    index.remove(nodes[gone])
    for last, node in enumerate(nodes):
        assert index.match([1, 2, last]) == (Match(short, 2) if last == gone else Match(node, 3))


def test_a_prompt_further_computed_goes_on_beside_what_others_added() -> None:
    index = RadixIndex()
    node, other = bare_node(0), bare_node(1)
    index.insert([1, 2], node)
    index.insert([1, 2, 3], other)
    assert index.insert([1, 2, 4], node)
    assert index.match([1, 2, 3]) == Match(other, 3)
    assert index.match([1, 2, 4]) == Match(node, 3)
    assert index.match([1, 2]) == Match(node, 2)


def test_a_long_path_is_no_deep_recursion() -> None:
    index = RadixIndex()
    node = bare_node(0)
    for length in range(1, 1500):
        index.insert([*([0] * length), 1], bare_node(length)) if length % 3 == 0 else index.insert([0] * length, node)
    assert index.match([0] * 5000) is not None
    index.remove(node)
    assert index.match([0] * 5000) is not None
