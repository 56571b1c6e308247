"""The check finds each kind of damage that it is there to find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dendrite.errors import InvariantViolation
from dendrite.kv import Node, NodeState
from tests.dendrite.kv.simulated import SimulatedEngine


def _cycle(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._children = {root: None}
    root.parent = child


def _lost_page(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.pool.alloc(1)


def _page_freed_early(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.pool.free(child.pages)


def _page_owned_twice(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.pages.append(root.pages[0])


def _slots_missing(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.pool.free([child.pages.pop()])


def _more_computed_than_tokens(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.computed += 1


def _parent_not_computed(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.computed = 3


def _parent_lost_pages(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root._state = NodeState.HELD
    engine.cache.index.remove(root)
    engine.cache.pool.free(root.pages)
    root.pages = []


def _foreign_child(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.parent = None


def _child_outside_its_parent(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.tokens.pop()
    root.computed -= 1


def _freed_but_referred_to(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._state = NodeState.FREED


def _released_but_not_gone(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._state = NodeState.HELD


def _stale_table(engine: SimulatedEngine, root: Node, child: Node) -> None:
    assert child._table is not None
    child._table[:] = 29


def _miscounted_cache(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.segments.cached_pages += 1


def _miscounted_idle(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root._idle = 1


def _queue_of_live_nodes(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.segments.lru.add(root)


DAMAGE = [value for name, value in list(globals().items()) if name.startswith("_") and callable(value)]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found(damage: Callable[[SimulatedEngine, Node, Node], None]) -> None:
    engine = SimulatedEngine(num_pages=30)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, range(20))
    engine.verify([root, child])
    damage(engine, root, child)
    with pytest.raises(InvariantViolation):
        engine.cache.check()
