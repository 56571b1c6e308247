from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import numpy as np
import pytest

from dendrite.errors import InvalidArgument, NodeReleased
from dendrite.kv import Node
from tests.dendrite.kv.simulated import SimulatedEngine


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine(num_pages=400)


@pytest.fixture
def root(engine: SimulatedEngine) -> Node:
    return engine.prompt(range(100, 120))


def test_a_root_holds_its_prompt(root: Node) -> None:
    assert (root.id, root.parent, root.base, root.length, root.computed) == (0, None, 0, 20, 20)
    assert root.tokens == root.path_tokens == list(range(100, 120))
    assert (root.value, root.finish_reason, root.tip, root.logprobs) == (None, None, -1, [])


def test_children_continue_from_the_end_and_copy_nothing(engine: SimulatedEngine, root: Node) -> None:
    used = engine.cache.pool.num_used
    children = root.fork(3)
    assert [child.id for child in children] == [1, 2, 3]
    for child in children:
        assert (child.parent, child.base, child.length, child.tokens, child.pages) == (root, 20, 20, [], [])
        assert child.path_tokens == root.tokens
    assert root.child_count == 3
    assert engine.cache.forks == 3
    assert engine.cache.pool.num_used == used


def test_fork_makes_one_child_unless_told() -> None:
    root = SimulatedEngine().prompt([1])
    assert len(root.fork()) == 1
    assert len(root.at(1).fork()) == 1


def test_forks_of_all_trees_are_counted(engine: SimulatedEngine, root: Node) -> None:
    root.fork(3)
    root.at(1).fork(2)
    engine.prompt([7, 8]).fork()
    assert engine.cache.forks == 6


def test_ids_rise_over_the_whole_tree_and_start_anew_in_another(engine: SimulatedEngine, root: Node) -> None:
    child, other = root.fork(2)
    assert [node.id for node in child.fork(2) + other.fork(1) + root.fork(1)] == [3, 4, 5, 6]
    assert [node.id for node in engine.prompt([7, 8]).fork(2)] == [1, 2]


def test_each_child_has_lists_of_its_own(root: Node) -> None:
    one, two = root.fork(2)
    one.tokens.append(1)
    one.logprobs.append(-0.5)
    assert (two.tokens, two.logprobs, root.logprobs) == ([], [], [])


def test_text_is_what_the_tree_s_detokenizer_makes_of_the_own_tokens(root: Node) -> None:
    child = root.fork()[0]
    child.tokens += [5, 6]
    assert child.text == "[5, 6]"


def test_path_tokens_follow_the_fork_points(engine: SimulatedEngine, root: Node) -> None:
    child = root.at(3).fork()[0]
    engine.decode(child, [1, 2, 3])
    grandchild = child.at(2).fork()[0]
    empty = grandchild.at(0).fork()[0]
    engine.decode(empty, [9])
    engine.decode(root, [50])
    assert empty.path_tokens == [100, 101, 102, 1, 2, 9]
    assert (empty.base, empty.length) == (5, 6)
    engine.verify([root, child, grandchild, empty])


def test_a_node_may_be_forked_while_it_decodes(engine: SimulatedEngine, root: Node) -> None:
    children = []
    for token in range(40):
        engine.decode(root, [token])
        children += root.fork()
    for at, child in enumerate(children):
        assert child.path_tokens == root.tokens[: 21 + at]
    engine.step([(child, [7]) for child in children])
    engine.verify([root, *children])


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", None])
@pytest.mark.parametrize("point", [lambda node: node, lambda node: node.at(1)])
def test_fork_refuses_a_count_below_one(root: Node, n: int, point: Callable[[Node], Node]) -> None:
    with pytest.raises(InvalidArgument, match=r"n=.*: (at least 1|a whole number)"):
        point(root).fork(n)
    assert root.child_count == 0
    assert root.fork()[0].id == 1


def test_any_kind_of_integer_counts(root: Node) -> None:
    children = root.fork(np.int64(2))  # type: ignore[arg-type]
    assert [child.id for child in children] == [1, 2]
    assert all(type(child.id) is int for child in children)
    assert len(root.fork(np.int64(1))) == 1  # type: ignore[arg-type]
    assert root.at(np.int64(2)).fork()[0].base == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [-1, 21, 1.0, None])
def test_at_refuses_a_point_outside_the_segment(root: Node, k: int) -> None:
    with pytest.raises(InvalidArgument, match=r"k="):
        root.at(k)


@pytest.mark.parametrize("k", [0, 1, 20])
def test_at_takes_both_ends(root: Node, k: int) -> None:
    assert root.at(k).fork(2)[1].path_tokens == root.tokens[:k]


def test_a_released_node_cannot_be_forked(root: Node) -> None:
    point = root.at(4)
    root.release()
    assert root.released
    for fork in (root.fork, point.fork, lambda: root.at(0)):
        with pytest.raises(NodeReleased, match="node 0 of tree 1"):
            fork()


def test_release_frees_the_pages_once(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    engine.decode(child, range(30))
    used = engine.cache.pool.num_used
    child.release()
    child.release()
    assert engine.cache.pool.num_used == used - 3
    assert root.child_count == 0
    assert engine.freed == [child]


def test_a_released_node_keeps_what_it_generated(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    engine.decode(child, [4, 5])
    root.release(subtree=True)
    assert child.tokens == [4, 5]
    assert child.path_tokens == [*range(100, 120), 4, 5]


def test_release_leaves_what_descendants_read() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(40))
    child, other = root.fork(2)
    engine.decode(child, [1])
    engine.decode(other, [2])
    root.release()
    other.release()
    engine.verify([child])
    child.release()
    assert engine.cache.pool.num_used == 0
    assert engine.freed == [other, child, root]


def test_release_of_a_subtree_takes_all_below_it_and_nothing_else(engine: SimulatedEngine, root: Node) -> None:
    left, right = root.fork(2)
    below = left.fork(2) + left.at(0).fork(1)
    below += below[0].fork(3)
    for at, node in enumerate([left, right, *below]):
        engine.decode(node, [at])
    left.release(subtree=True)
    left.release(subtree=True)
    assert all(node.released for node in [left, *below])
    assert not right.released
    assert root.child_count == 1
    assert engine.cache.held_pages == 2 + 1
    engine.verify([root, right])


def test_release_of_a_subtree_reaches_below_a_node_released_before(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    grandchild = child.fork()[0]
    engine.decode(grandchild, [1])
    child.release()
    assert not grandchild.released
    child.release(subtree=True)
    assert grandchild.released
    engine.verify([root])


def test_release_of_a_subtree_spares_another_tree_that_shares_the_prompt(engine: SimulatedEngine, root: Node) -> None:
    other = engine.prompt([*root.tokens, 1, 2])
    assert other.parent is root
    root.release(subtree=True)
    assert not other.released
    engine.verify([other])


@pytest.mark.parametrize("subtree", [False, True])
@pytest.mark.parametrize("own", [0, 1])
def test_a_deep_chain_is_released_without_recursion(own: int, subtree: bool) -> None:
    depth = 10 * sys.getrecursionlimit()
    engine = SimulatedEngine(num_pages=depth + 2 if subtree else depth // 8 + 3, page_size=8, prefix_cache=False)
    chain = [engine.prompt([1])]
    for _ in range(depth):
        chain += chain[-1].fork()
        if not subtree:
            chain[-2].release()  # so that tail pages are taken over, not copied
        if own:
            engine.cache.reserve(chain[-1], 1)
            chain[-1].tokens.append(2)
            engine.cache.commit(chain[-1], 1)
    assert len(chain[-1].path_tokens) == 1 + own * (len(chain) - 1)
    engine.cache.page_table(chain[-1])
    chain[0 if subtree else -1].release(subtree=subtree)
    assert engine.cache.pool.num_used == 0
    assert len(engine.freed) == len(chain)


def test_a_thousand_siblings(engine: SimulatedEngine, root: Node) -> None:
    children = root.fork(1000)
    writers = children[::10]
    engine.step([(child, [at]) for at, child in enumerate(writers)])
    engine.verify(writers)
    for child in children[:-1]:
        child.release()
    assert root.child_count == 1
    engine.verify([root, children[-1]])


def test_a_fork_that_never_ran_is_garbage_once_released(engine: SimulatedEngine, root: Node) -> None:
    root.fork(100)
    root.release(subtree=True)
    engine.freed.clear()
    gc.collect()
    assert not [node for node in gc.get_referrers(root.tree) if isinstance(node, Node) and node is not root]


def test_unknown_attributes_are_errors(root: Node) -> None:
    with pytest.raises(AttributeError, match="'Node' object has no attribute 'token'"):
        root.token  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError):
        root.note = 1  # type: ignore[attr-defined]


def test_repr_says_where_the_node_stands(root: Node) -> None:
    child = root.fork()[0]
    assert repr(child) == "Node(1:1, live, base=20, own=0)"
    assert repr(root.at(3)) == "Node(1:0, live, base=0, own=20).at(3)"
    assert repr(root.tree) == "Tree(id=1, seed=0, nodes made=2)"
