from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.deltas import Added
from actors.topology import Topology
from dendrite.errors import UnknownNode


def chain(*spans: tuple[int, ...]) -> Topology:
    """A tree 5 on worker 0: node 0 is the root, each next node the child of the one before."""
    topology, base = Topology(), 0
    for node, span in enumerate(spans):
        topology.add(0, Added(5, node, node - 1 if node else None, base, span))
        base += len(span)
    return topology


def test_lineage_is_the_tokens_from_the_root() -> None:
    topology = chain((1, 2), (3,), (4, 5))
    assert topology.path_tokens(5, 2) == (1, 2, 3, 4, 5)
    assert topology.path_tokens(5, 0) == (1, 2)


def test_lineage_of_a_fork_inside_a_span() -> None:
    topology = chain((1, 2), (3, 4, 5))
    topology.add(0, Added(5, 2, 1, 3, (9,)))
    assert topology.path_tokens(5, 2) == (1, 2, 3, 9)


def test_a_released_node_stays_as_lineage_while_a_child_is_held() -> None:
    topology = chain((1, 2), (3,), (4,))
    topology.release(5, 0)
    topology.release(5, 1)
    assert topology.path_tokens(5, 2) == (1, 2, 3, 4)
    assert (topology.live_nodes(0), topology.records) == (1, 3)

    assert topology.release(5, 2)
    assert (topology.live_nodes(0), topology.records, topology.trees) == (0, 0, 0)
    with pytest.raises(UnknownNode):
        topology.path_tokens(5, 2)


def test_release_is_idempotent() -> None:
    topology = chain((1,), (2,))
    assert not topology.release(5, 1)
    assert not topology.release(5, 1)
    assert not topology.release(77, 0)
    assert topology.live_nodes(0) == 1


def test_a_lost_worker_takes_its_trees_along() -> None:
    topology = chain((1,), (2,))
    topology.add(1, Added(6, 0, None, 0, (7,)))
    topology.drop_worker(0)
    assert (topology.owner(5), topology.owner(6)) == (None, 1)
    assert (topology.live_nodes(0), topology.live_nodes(1)) == (0, 1)


@given(data=st.data())
def test_held_nodes_keep_exactly_their_ancestors(data: st.DataObject) -> None:
    topology = Topology()
    paths: dict[int, tuple[int, ...]] = {0: (0,)}
    parents: dict[int, int] = {0: -1}
    held: set[int] = {0}
    topology.add(0, Added(5, 0, None, 0, (0,)))
    for node in range(1, data.draw(st.integers(1, 12))):
        release: bool = data.draw(st.booleans())
        if release:
            victim = data.draw(st.sampled_from(sorted(held)))
            topology.release(5, victim)
            held.remove(victim)
        if not held:
            break
        parent = data.draw(st.sampled_from(sorted(held)))
        topology.add(0, Added(5, node, parent, len(paths[parent]), (node,)))
        paths[node], parents[node] = (*paths[parent], node), parent
        held.add(node)

    kept = set()
    for node in held:
        assert topology.path_tokens(5, node) == paths[node]
        while node >= 0:
            kept.add(node)
            node = parents[node]
    assert topology.records == len(kept)
    assert topology.live_nodes(0) == len(held)
