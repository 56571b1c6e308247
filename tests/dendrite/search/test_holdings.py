"""Pages are counted as the backend frees them, and what is on record comes back from its tokens."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dendrite.errors import ClusterError, NodeReleased
from dendrite.search.backend import NodeRef
from dendrite.search.holdings import Holdings
from tests.dendrite.search.synthetic import TreeBackend


class HoldingsMachine(RuleBasedStateMachine):
    """Against a model that walks the whole tree: a node's pages stay while it or anything below it is held."""

    @initialize(pages=st.integers(0, 5))
    def begin(self, pages: int) -> None:
        self.holdings = Holdings(TreeBackend({}))
        self.pages, self.parents, self.held = [pages], [-1], [True]
        self.holdings.root(0, "0", pages)

    @rule(data=st.data(), pages=st.integers(0, 5))
    def grow(self, data: st.DataObject, pages: int) -> None:
        parent = data.draw(st.integers(0, len(self.pages) - 1))
        if not self.needed(parent):
            return
        id = len(self.pages)
        self.holdings.child(id, parent, str(id), pages)
        self.pages.append(pages)
        self.parents.append(parent)
        self.held.append(True)

    @rule(data=st.data(), subtree=st.booleans())
    def drop(self, data: st.DataObject, subtree: bool) -> None:
        id = data.draw(st.integers(0, len(self.pages) - 1))
        expected = [each for each in range(len(self.pages)) if each == id or (subtree and self.is_below(each, id))]
        expected = [each for each in expected if self.held[each]]
        assert sorted(map(int, map(str, self.holdings.drop(id, subtree=subtree)))) == expected
        for each in expected:
            self.held[each] = False

    def is_below(self, id: int, ancestor: int) -> bool:
        return id == ancestor or (id > 0 and self.is_below(self.parents[id], ancestor))

    def needed(self, id: int) -> bool:
        return any(held and self.is_below(each, id) for each, held in enumerate(self.held))

    @invariant()
    def pages_are_those_of_what_is_needed(self) -> None:
        if hasattr(self, "holdings"):
            assert self.holdings.pages == sum(pages for id, pages in enumerate(self.pages) if self.needed(id))


TestHoldings = HoldingsMachine.TestCase


async def test_what_has_no_node_is_rebuilt_once_and_released_at_the_end() -> None:
    backend = TreeBackend({})
    holdings = Holdings(backend)
    holdings.root(0, None, 0)
    holdings.child(1, 0, None, 0)
    ref = await holdings.ref(1, lambda: tuple(map(ord, "?a\n")), 0)
    assert await holdings.ref(1, lambda: (), 0) is ref
    assert (backend.prefilled, backend.held) == (["?a\n"], ["a\n"])
    assert holdings.drop(1, subtree=False) == [ref]
    with pytest.raises(NodeReleased):
        await holdings.ref(1, lambda: (), 0)
    await holdings.close()
    assert backend.held == []


async def test_a_tree_that_cannot_be_released_keeps_no_other_one() -> None:
    class Broken(TreeBackend):
        async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
            if node == 0:
                raise ClusterError("worker 0 is not alive")
            await super().release(node, subtree=subtree)

    backend = Broken({})
    holdings = Holdings(backend)
    for id in range(3):
        holdings.root(id, await backend.prefill(f"?{id}"), 0)
    with pytest.raises(ClusterError, match="not alive"):
        await holdings.close()
    assert backend.held == ["0"]
