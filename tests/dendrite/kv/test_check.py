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
    _forget_tables(engine, root, child)
    child.pages.append(root.pages[0])


def _slots_missing(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.pool.free([child.pages.pop()])


def _slots_of_a_prompt_missing(engine: SimulatedEngine, root: Node, child: Node) -> None:
    """A released prompt that can be found must have its slots as well."""
    root._state = NodeState.HELD
    engine.cache.pool.free([root.pages.pop()])


def _computed_without_a_page(engine: SimulatedEngine, root: Node, child: Node) -> None:
    (idle,) = root.fork()
    idle.tokens = [1]
    idle.computed = 1


def _more_computed_than_tokens(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.computed += 1


def _parent_not_computed(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.computed = 3


def _copy_without_what_it_copied(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.computed = 31  # the child's copy of the tail page begins at 32


def _parent_lost_pages(engine: SimulatedEngine, root: Node, child: Node) -> None:
    _forget_tables(engine, root, child)
    root._state = NodeState.HELD
    engine.cache.index.remove(root)
    engine.cache.pool.free(root.pages)
    root.pages = []


def _tail_page_lost(engine: SimulatedEngine, root: Node, child: Node) -> None:
    """The child has a copy; the fork that has not written reads the page itself, if only its first slot."""
    _forget_tables(engine, root, child)
    root.at(33).fork()
    root._state = NodeState.HELD
    engine.cache.index.remove(root)
    engine.cache.pool.free([root.pages.pop()])


def _foreign_child(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.parent = None


def _first_node_not_at_the_start(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.base = 1


def _child_outside_its_parent(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root.tokens.pop()
    root.computed -= 1


def _freed_but_referred_to(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._state = NodeState.FREED


def _released_but_not_gone(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._state = NodeState.HELD


def _cached_below_a_live_node(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root._state = NodeState.CACHED


def _cached_and_not_to_be_found(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child._state = NodeState.CACHED
    root._idle = 1


def _stale_table(engine: SimulatedEngine, root: Node, child: Node) -> None:
    assert child._table is not None
    child._table[:] = 29


def _miscounted_cache(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.segments.cached_pages += 1


def _miscounted_idle(engine: SimulatedEngine, root: Node, child: Node) -> None:
    root._idle = 1


def _queue_of_live_nodes(engine: SimulatedEngine, root: Node, child: Node) -> None:
    engine.cache.segments.lru.add(root)


def _queue_without_a_cached_node(engine: SimulatedEngine, root: Node, child: Node) -> None:
    child.release()
    root.release()
    engine.cache.segments.lru.discard(root)
    engine.cache.segments.lru.add(child)


def _forget_tables(engine: SimulatedEngine, *nodes: Node) -> None:
    """So that the damage itself is found, and not a table that it makes stale."""
    for node in nodes:
        engine.cache.segments.tables.forget(node)


DAMAGE = {
    _cycle: "is reached twice",
    _lost_page: "taken but owned by nobody",
    _page_freed_early: "are owned and free",
    _page_owned_twice: "is owned by two segments",
    _slots_missing: "20 tokens computed and 8 slots",
    _slots_of_a_prompt_missing: "40 tokens computed and 32 slots",
    _computed_without_a_page: "1 tokens computed and 0 slots",
    _more_computed_than_tokens: "has 21 tokens computed",
    _parent_not_computed: "has KV on top of KV that is missing",
    _copy_without_what_it_copied: "has KV on top of KV that is missing",
    _parent_lost_pages: "reads pages that its parent has lost",
    _tail_page_lost: "no segment holds the page before",
    _foreign_child: "by a node that is not its parent",
    _first_node_not_at_the_start: "is a first node but continues another",
    _child_outside_its_parent: "starts outside its parent's span",
    _freed_but_referred_to: "has been freed but is still referred to",
    _released_but_not_gone: "is held by nobody",
    _cached_below_a_live_node: "counts as cached but a live node continues it",
    _cached_and_not_to_be_found: "is cached but no prompt can find it",
    _stale_table: "has a page table that misses its own pages",
    _miscounted_cache: "1 pages count as cached; cached nodes own 0",
    _miscounted_idle: "counts 1 cached children and has 0",
    _queue_of_live_nodes: "the eviction queue is not",
    _queue_without_a_cached_node: "the eviction queue is not",
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.items(), ids=[damage.__name__.strip("_") for damage in DAMAGE])
def test_damage_is_found(damage: Callable[[SimulatedEngine, Node, Node], None], message: str) -> None:
    engine = SimulatedEngine(num_pages=30)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, range(20))
    engine.verify([root, child])
    damage(engine, root, child)
    with pytest.raises(InvariantViolation, match=message):
        engine.cache.check()


def test_a_copy_of_the_tail_is_all_that_a_child_needs_of_it() -> None:
    engine = SimulatedEngine(num_pages=30)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, range(20))
    root.computed = 32
    engine.cache.check()
