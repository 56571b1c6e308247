from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors import lineage as lineage_module
from actors.lineage import Copy, Lineage, Segment
from actors.refs import ClusterNode
from dendrite.errors import NodeReleased, UnknownNode


def copy(node: int, tree: int = 1, worker: int = 0, *, rebuilt: bool = False) -> Copy:
    return Copy(ClusterNode(worker, tree, node), 0, rebuilt)


def family() -> tuple[Lineage, Segment, Segment, Segment]:
    """A root, its child and its grandchild."""
    lineage = Lineage()
    root = lineage.add(copy(0), (1, 2), seed=3)
    child = lineage.add(copy(1), (3,), root)
    return lineage, root, child, lineage.add(copy(2), (4, 5), child)


def test_paths_go_through_released_ancestors() -> None:
    lineage, root, child, last = family()
    assert [due.copy.at.node for due in lineage.release(root.name, subtree=False)] == [0]
    lineage.release(child.name, subtree=False)
    assert last.path_tokens == (1, 2, 3, 4, 5)
    assert len(lineage) == 3
    lineage.release(last.name, subtree=False)
    assert len(lineage) == 0


def test_released_nodes_are_told_from_unknown_ones() -> None:
    lineage, root, child, _ = family()
    lineage.release(child.name, subtree=True)
    with pytest.raises(NodeReleased):
        lineage.get(child.name)
    with pytest.raises(UnknownNode):
        lineage.get(ClusterNode(0, 1, 9))
    with pytest.raises(UnknownNode):
        lineage.get(ClusterNode(0, 2, 0))
    assert lineage.get(root.name) is root
    assert lineage.release(child.name, subtree=True) == []


def test_a_subtree_is_one_message_and_one_for_each_copy_made_elsewhere() -> None:
    lineage, root, child, last = family()
    last.copies.append(copy(0, tree=7, worker=1, rebuilt=True))
    due = lineage.release(root.name, subtree=True)
    assert [(each.copy.at, each.subtree) for each in due] == [(root.name, True), (ClusterNode(1, 7, 0), True)]
    assert child.cut
    assert last.cut


def test_a_copy_made_of_a_released_ancestor_goes_with_its_last_descendant() -> None:
    lineage, root, child, last = family()
    lineage.release(root.name, subtree=False)
    root.copies.append(copy(0, tree=7, worker=1, rebuilt=True))
    assert lineage.release(child.name, subtree=False)
    due = lineage.release(last.name, subtree=False)
    assert {each.copy.at for each in due} == {last.name, ClusterNode(1, 7, 0)}


def test_a_segment_in_use_stays() -> None:
    lineage, _, _, last = family()
    last.pins += 1
    lineage.release(ClusterNode(0, 1, 0), subtree=True)
    assert len(lineage) == 3
    last.pins -= 1
    lineage.prune(last)
    assert len(lineage) == 0


def test_a_client_does_not_grow_with_the_trees_it_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage_module, "MOST_TREES", 5)
    lineage = Lineage()
    for tree in range(20):
        lineage.release(lineage.add(copy(0, tree), (1,)).name, subtree=True)
    assert (len(lineage), len(lineage._seen)) == (0, 5)
    with pytest.raises(NodeReleased):
        lineage.get(ClusterNode(0, 15, 0))
    with pytest.raises(UnknownNode):
        lineage.get(ClusterNode(0, 14, 0))


class LineageMachine(RuleBasedStateMachine):
    """Against a plain model: held nodes with their whole paths."""

    @initialize()
    def start(self) -> None:
        self.lineage = Lineage()
        self.paths: dict[ClusterNode, tuple[int, ...]] = {}
        self.parents: dict[ClusterNode, ClusterNode | None] = {}
        self.held: set[ClusterNode] = set()
        self.told: set[ClusterNode] = set()
        root = self.lineage.add(copy(0), (0,))
        self._made(root.name, None, (0,))

    def _made(self, name: ClusterNode, parent: ClusterNode | None, path: tuple[int, ...]) -> None:
        self.paths[name], self.parents[name] = path, parent
        self.held.add(name)

    def _below(self, name: ClusterNode, ancestor: ClusterNode) -> bool:
        at: ClusterNode | None = name
        while at is not None and at != ancestor:
            at = self.parents[at]
        return at == ancestor

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 9), max_size=3).map(tuple))
    def grow(self, data: st.DataObject, tokens: tuple[int, ...]) -> None:
        parent = data.draw(st.sampled_from(sorted(self.held, key=lambda name: name.node)))
        child = self.lineage.add(copy(len(self.paths)), tokens, self.lineage.get(parent))
        self._made(child.name, parent, self.paths[parent] + tokens)

    @rule(data=st.data(), subtree=st.booleans())
    def release(self, data: st.DataObject, subtree: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.paths, key=lambda each: each.node)))
        going = {each for each in self.held if each == name or (subtree and self._below(each, name))}
        due = self.lineage.release(name, subtree=subtree)
        self.held -= going
        reached = {each for each in going for release in due if each == release.copy.at}
        reached |= {each for each in going for release in due if release.subtree and self._below(each, release.copy.at)}
        assert reached == going, "a message reaches every node that is given up"

    @invariant()
    def what_is_kept_is_what_the_held_need(self) -> None:
        needed: set[ClusterNode] = set()
        for held in self.held:
            at: ClusterNode | None = held
            while at is not None and at not in needed:
                needed.add(at)
                at = self.parents[at]
        assert {name for name in self.paths if self.lineage.find(name)} == needed
        assert len(self.lineage) == len(needed)
        for name in self.held:
            assert self.lineage.get(name).path_tokens == self.paths[name]


TestLineageMachine = LineageMachine.TestCase
TestLineageMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
