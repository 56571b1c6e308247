"""Which KV a node's own rests on; `drop` and `reserve`, which ask for it, are tested with the cache."""

from __future__ import annotations

import pytest

from dendrite.errors import InvalidArgument
from dendrite.kv.ancestry import pending_ancestors
from tests.dendrite.kv.simulated import SimulatedEngine


def test_a_fork_of_a_prompt_being_computed_is_pending_until_its_point_is_reached() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40), compute=False)
    end, early = root.fork()[0], root.at(10).fork()[0]
    nested = end.fork()[0]
    assert pending_ancestors(nested) == [root]
    with pytest.raises(InvalidArgument, match="ancestors are computed"):
        engine.cache.reserve(end, 1)
    engine.compute(root, 20)
    assert pending_ancestors(early) == []
    assert pending_ancestors(end) == [root]
    engine.compute(root)
    assert pending_ancestors(nested) == []


def test_pending_ancestors_come_topmost_first() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(20))
    child = root.fork()[0]
    engine.decode(child, range(20))
    grandchild = child.fork()[0].fork()[0]
    child.release()
    root.release()
    for node in (child, root):
        engine.cache.drop(node)
    assert engine.cache.pool.num_used == 0
    assert pending_ancestors(grandchild) == [root, child]
    for node in (root, child):
        engine.compute(node)
    engine.decode(grandchild, [3])
    engine.verify([grandchild])
