"""What gives pages back: dropping a node's KV, trimming what was released, and reservations that were not used."""

from __future__ import annotations

import pytest

from dendrite.errors import InvalidArgument
from dendrite.kv import NodeState
from dendrite.kv.ancestry import droppable, pending_ancestors
from tests.dendrite.kv.simulated import SimulatedEngine, books

# Dropping


def test_drop_frees_pages_and_keeps_tokens() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, range(30))
    used = engine.cache.pool.num_used
    engine.cache.drop(child)
    assert (child.computed, len(child.tokens), child.pages) == (0, 30, [])
    assert engine.cache.pool.num_used == used - 3
    assert engine.freed == [child]
    engine.compute(child)
    engine.verify([root, child])


def test_a_node_whose_kv_is_continued_cannot_be_dropped() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    idle = root.fork()[0]
    grandchild = idle.fork()[0]
    assert droppable(root)
    engine.decode(grandchild, [1])
    before = books(engine.cache, root, idle, grandchild)
    assert not droppable(root)
    with pytest.raises(InvalidArgument, match="no descendant continues"):
        engine.cache.drop(root)
    assert books(engine.cache, root, idle, grandchild) == before
    engine.cache.drop(grandchild)
    engine.cache.drop(root)
    assert engine.cache.pool.num_used == 0
    assert pending_ancestors(grandchild) == [root]


def test_a_child_that_reads_none_of_a_node_s_own_tokens_does_not_keep_it() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(20))
    child = root.fork()[0]
    engine.decode(child, [1, 2])
    beside = child.at(0).fork()[0]
    engine.decode(beside, [3])
    engine.cache.drop(child)
    engine.verify([root, child, beside])


def test_dropping_a_node_that_begins_with_a_page_concerns_no_other() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(20))
    child = root.at(16).fork()[0]
    root.release()  # its last four tokens go: nobody reads them
    engine.decode(child, [1])
    engine.cache.drop(child)
    assert (root.computed, len(root.pages)) == (20, 1)
    engine.compute(child)
    engine.verify([child])


def test_a_dropped_prompt_is_gone_on_release() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    engine.cache.drop(root)
    assert root not in engine.cache.index
    root.release()
    assert root._state is NodeState.FREED
    assert not engine.cache.segments.roots


# Giving pages back early


def test_a_released_node_frees_what_it_holds_past_its_last_fork() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(100))
    near, far = root.at(20).fork()[0], root.at(60).fork()[0]
    root.release()
    assert len(root.pages) == 4
    engine.verify([near, far])
    far.release()
    assert len(root.pages) == 2
    engine.verify([near])


def test_so_does_one_that_begins_further_down() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    (child,) = engine.prompt(range(32)).fork()
    engine.decode(child, range(60))
    near = child.at(20).fork()[0]
    child.release()
    assert len(child.pages) == 2
    engine.verify([near])


def test_a_prompt_that_can_be_found_is_kept_whole() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(100))
    near = root.at(20).fork()[0]
    root.release()
    assert len(root.pages) == 7
    assert engine.prompt(range(100), compute=False).base == 100
    engine.verify([near])


def test_what_is_gone_owns_nothing() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(40))
    root.release()
    assert (root._state, root.pages) == (NodeState.FREED, [])


def test_several_cached_prompts_may_continue_one() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(16))
    for more in (100, 200):
        engine.prompt([*range(16), *range(more, more + 16)]).release()
    assert engine.cache.cached_pages == 2
    engine.verify([root])
    root.release()
    assert engine.cache.cached_pages == 3
    engine.verify([])
    assert engine.cache.evict(3) == 3


def test_reserved_pages_that_nothing_was_written_to_are_given_back() -> None:
    engine = SimulatedEngine(page_size=8)
    root = engine.prompt(range(12))
    (kid,) = root.fork()
    cache = engine.cache
    before = cache.pool.num_free
    assert cache.pages_needed(kid, 30) == 5
    cache.reserve(kid, 30)
    assert cache.pool.num_free == before - 5
    assert cache.pages_needed(kid, 28) == 0
    kid.tokens += [1, 2, 3, 4, 5]
    cache.commit(kid, 5)
    cache.unreserve(kid)
    assert len(kid.pages) == 2
    assert cache.pool.num_free == before - 2
    assert len(cache.page_table(kid)) == 3
    cache.check()


@pytest.mark.parametrize(("length", "written"), [(12, 1), (16, 0)])
def test_the_first_page_stays(length: int, written: int) -> None:
    engine = SimulatedEngine(page_size=8)
    (kid,) = engine.prompt(range(length)).fork()
    engine.cache.reserve(kid, 30)
    kid.tokens += [1] * written
    engine.cache.commit(kid, written)
    engine.cache.unreserve(kid)
    assert len(kid.pages) == 1
    engine.cache.check()


def test_what_is_still_to_be_computed_keeps_its_pages() -> None:
    engine = SimulatedEngine(page_size=8)
    root = engine.prompt(range(12), compute=False)
    engine.cache.reserve(root, 30)
    engine.cache.unreserve(root)
    assert len(root.pages) == 4
