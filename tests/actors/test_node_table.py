from __future__ import annotations

import pytest

from actors import node_table
from actors.node_table import NodeTable
from actors.refs import lease_of, unique_id
from dendrite.errors import NodeReleased, UnknownNode
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


@pytest.fixture
def root() -> Node:
    return KvCache(4).new_tree([1, 2, 3], tree_id=1, seed=0, detokenize=lambda tokens: "")


def test_a_tree_of_which_nothing_is_held_is_remembered(root: Node) -> None:
    table, tree = NodeTable(), unique_id(3, 0)
    child = root.fork()[0]
    table.add(tree, root)
    table.add(tree, child)
    assert table.pop(tree, root.id, subtree=True) == [root, child]
    assert (len(table), table.leases) == (0, set())
    for node in (root, child):
        with pytest.raises(NodeReleased):
            table.get(tree, node.id)
    with pytest.raises(UnknownNode):
        table.get(tree, child.id + 1)


def test_a_tree_may_go_on_after_its_end(root: Node) -> None:
    table, tree = NodeTable(), unique_id(3, 0)
    child = root.fork()[0]
    table.add(tree, child)
    table.pop(tree, child.id)
    table.add(tree, root)  # a call that was under way
    assert table.get(tree, root.id) is root
    with pytest.raises(NodeReleased):
        table.get(tree, child.id)


def test_a_lease_that_lasts_does_not_grow_with_its_trees(root: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_table, "MOST_ENDED", 5)
    table = NodeTable()
    trees = [unique_id(3, count) for count in range(20)]
    for tree in trees:
        table.add(tree, root)
        table.pop(tree, root.id)
    assert (len(table._trees), len(table._ended)) == (0, 5)
    with pytest.raises(NodeReleased):
        table.get(trees[-5], root.id)
    with pytest.raises(UnknownNode):
        table.get(trees[-6], root.id)


def test_closing_a_lease_forgets_all_its_trees(root: Node) -> None:
    table = NodeTable()
    ended, open_, other = unique_id(3, 0), unique_id(3, 1), unique_id(4, 0)
    for tree in (ended, open_, other):
        table.add(tree, root)
    table.pop(ended, root.id)
    assert table.leases == {3, 4}
    assert list(table.close(lease_of(open_))) == [(open_, root)]
    assert (len(table), table.leases) == (1, {4})
    for tree in (ended, open_):
        with pytest.raises(UnknownNode):
            table.get(tree, root.id)
