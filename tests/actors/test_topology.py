from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.deltas import Added, EventLog, Pack, Released
from actors.topology import SETTLE_AFTER, HeldTrees, Topology
from dendrite.errors import InvariantViolation, UnknownNode


def packed(*events: Added | Released) -> Pack:
    log = EventLog()
    for event in events:
        log.add(event)
    return log.pack()


def apply(topology: Topology, *events: Added | Released, worker: int = 0) -> None:
    """Each event in a pack of its own."""
    for event in events:
        topology.apply(worker, packed(event))


def chain(*spans: tuple[int, ...], worker: int = 0, topology: Topology | None = None) -> Topology:
    """A tree 5: node 0 is the root, each next node the child of the one before."""
    topology = topology or Topology()
    base = 0
    for node, span in enumerate(spans):
        apply(topology, Added(5, node, node - 1 if node else None, base, span), worker=worker)
        base += len(span)
    return topology


def test_lineage_is_the_tokens_from_the_root() -> None:
    topology = chain((1, 2), (3,), (4, 5))
    assert topology.path_tokens(5, 2) == (1, 2, 3, 4, 5)
    assert topology.path_tokens(5, 0) == (1, 2)


def test_lineage_of_a_fork_inside_a_span() -> None:
    topology = chain((1, 2), (3, 4, 5))
    apply(topology, Added(5, 2, 1, 3, (9,)), Added(5, 3, 1, 2, (8,)), Added(5, 4, 2, 4, ()))
    assert topology.path_tokens(5, 2) == (1, 2, 3, 9)
    assert topology.path_tokens(5, 3) == (1, 2, 8)
    assert topology.path_tokens(5, 4) == (1, 2, 3, 9)


def test_a_released_node_stays_as_lineage_while_a_child_is_held() -> None:
    topology = chain((1, 2), (3,), (4,))
    apply(topology, Released(5, 0), Released(5, 1))
    assert topology.path_tokens(5, 2) == (1, 2, 3, 4)
    assert (topology.live_nodes(0), topology.records) == (1, 3)

    apply(topology, Released(5, 2))
    assert (topology.live_nodes(0), topology.records, topology.trees) == (0, 0, 0)
    with pytest.raises(UnknownNode):
        topology.path_tokens(5, 2)


def test_release_is_idempotent() -> None:
    topology = chain((1,), (2,))
    apply(topology, Released(5, 1), Released(5, 1), Released(77, 0), Released(5, 9))
    assert (topology.live_nodes(0), topology.records) == (1, 1)
    topology.apply(0, packed(Released(5, 0), Released(5, 0)))
    assert (topology.live_nodes(0), topology.trees) == (0, 0)


def test_a_tree_that_begins_and_ends_with_one_pack_leaves_nothing() -> None:
    topology = Topology()
    changes = topology.apply(0, packed(Added(5, 0, None, 0, (1,)), Released(5, 0), Added(6, 0, None, 0, (1,))))
    assert (changes.begun, changes.ended) == ([6], [5])
    assert (topology.trees, topology.records, topology.live_nodes(0)) == (1, 1, 1)


def test_a_lost_worker_takes_its_trees_along() -> None:
    topology = chain((1,), (2,))
    apply(topology, Added(6, 0, None, 0, (7,)), worker=1)
    topology.drop_worker(0)
    assert (topology.owners(5), topology.owners(6)) == ((), (1,))
    assert (topology.live_nodes(0), topology.live_nodes(1)) == (0, 1)


def test_a_replicated_ancestor_goes_on_each_worker_with_its_last_descendant_there() -> None:
    topology = chain((1, 2), (3,))
    chain((1, 2), (3,), worker=1, topology=topology)
    apply(topology, Added(5, 2, 1, 3, (4,)))
    apply(topology, Added(5, 3, 1, 3, (5,)), worker=1)
    for worker in (0, 1):
        apply(topology, Released(5, 0), Released(5, 1), worker=worker)
    assert (topology.holders(5, 0), topology.holders(5, 1)) == ((0, 1), (0, 1))
    assert (topology.holders(5, 2), topology.holders(5, 3), topology.owners(5)) == ((0,), (1,), (0, 1))

    apply(topology, Released(5, 2))
    assert (topology.holders(5, 0), topology.holders(5, 2), topology.owners(5)) == ((1,), (), (1,))
    assert topology.path_tokens(5, 3) == (1, 2, 3, 5)
    apply(topology, Released(5, 3), worker=1)
    assert (topology.holders(5, 0), topology.trees, topology.records) == ((), 0, 0)


def test_a_report_replaces_what_was_known_of_its_worker() -> None:
    topology = chain((1, 2), (3,), worker=1)
    apply(topology, Added(6, 0, None, 0, (7,)))
    topology.replace(1, packed(Added(5, 4, None, 0, (1, 2, 9))))
    assert topology.path_tokens(5, 4) == (1, 2, 9)
    assert (topology.live_nodes(0), topology.live_nodes(1), topology.records) == (1, 1, 2)


def test_a_child_of_an_unknown_parent_is_a_defect() -> None:
    topology = Topology()
    apply(topology, Added(5, 3, 2, 4, (1,)))
    with pytest.raises(InvariantViolation, match="node 2"):
        topology.path_tokens(5, 3)


def test_packs_are_worked_in_after_a_while() -> None:
    held = HeldTrees()
    held.apply(packed(Added(5, 0, None, 0, (1, 2))))
    copy = held.copy(5)
    assert copy is not None
    assert not copy.settled
    for node in range(SETTLE_AFTER):
        held.apply(packed(Added(6, node, None, 0, (1,))))
    assert copy.settled


def test_what_is_gone_takes_no_room() -> None:
    """A long search that keeps a few nodes of many."""
    held = HeldTrees()
    held.apply(packed(Added(5, 0, None, 0, (1,))))
    for node in range(1, 5_000):
        held.apply(packed(Added(5, node, node - 1, node, (node,) * 10), Released(5, node - 1 if node % 7 else 0)))
        held.apply(packed(Added(5, node + 10_000, 0, 1, (node,)), Released(5, node + 10_000)))
    copy = held.copy(5)
    assert copy is not None
    assert copy.records == 5_000
    assert len(copy._node) < 2 * 5_000 + 500


@given(data=st.data())
def test_held_nodes_keep_exactly_their_ancestors(data: st.DataObject) -> None:
    topology = Topology()
    log = EventLog()
    paths: dict[int, tuple[int, ...]] = {0: (0,)}
    parents: dict[int, int] = {0: -1}
    held: set[int] = {0}
    log.add(Added(5, 0, None, 0, (0,)))
    for node in range(1, data.draw(st.integers(1, 12))):
        release: bool = data.draw(st.booleans())
        if release:
            victim = data.draw(st.sampled_from(sorted(held)))
            log.add(Released(5, victim))
            held.remove(victim)
        if data.draw(st.booleans()):
            topology.apply(0, log.pack())
            if data.draw(st.booleans()):
                assert topology.live_nodes(0) == len(held)
                assert topology.records >= len(held)
        if not held:
            break
        parent = data.draw(st.sampled_from(sorted(held)))
        log.add(Added(5, node, parent, len(paths[parent]), (node,)))
        paths[node], parents[node] = (*paths[parent], node), parent
        held.add(node)
    topology.apply(0, log.pack())

    exported = HeldTrees()
    if topology.trees:
        whole = topology._workers[0].export()
        exported.apply(whole)
        topology.replace(1, whole)
    kept = set()
    for node in held:
        assert topology.path_tokens(5, node) == paths[node]
        while node >= 0:
            kept.add(node)
            assert topology.holders(5, node) == (0, 1)
            node = parents[node]
    assert topology.records == 2 * len(kept)
    assert topology.live_nodes(0) == topology.live_nodes(1) == exported.live == len(held)
