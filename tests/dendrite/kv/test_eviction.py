"""Cached prompts: found again, kept while read, and evicted from the leaves up when pages run out."""

from __future__ import annotations

import pytest

from dendrite.errors import OutOfPages
from dendrite.kv import KvCache, Node
from dendrite.kv.eviction import LruQueue
from tests.dendrite.kv.simulated import SimulatedEngine


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine(num_pages=30)


def test_a_released_prompt_stays_for_the_next_of_its_kind(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40))
    root.release()
    assert (engine.cache.held_pages, engine.cache.cached_pages) == (0, 3)
    again = engine.prompt(range(40), compute=False)
    assert (again.parent, again.base, again.tokens) == (root, 40, [])
    assert again.path_tokens == list(range(40))
    assert (engine.cache.held_pages, engine.cache.cached_pages) == (3, 0)
    engine.verify([again])


@pytest.mark.parametrize("match", [1, 15, 16, 17, 31, 32, 33, 39])
@pytest.mark.parametrize("live", [False, True])
def test_a_prompt_may_share_any_number_of_tokens(engine: SimulatedEngine, match: int, live: bool) -> None:
    root = engine.prompt(range(40))
    if not live:
        root.release()
    other = engine.prompt([*range(match), 100, 101])
    assert (other.parent, other.base, other.tokens) == (root, match, [100, 101])
    child = other.fork()[0]
    engine.decode(child, range(20))
    other.release()
    engine.verify([root, child])


def test_only_what_is_computed_is_found(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40), compute=False)
    engine.compute(root, 10)
    engine.cache.seal(root)
    assert engine.prompt(range(40), compute=False).base == 10
    engine.compute(root)
    engine.cache.seal(root)
    assert engine.prompt(range(40), compute=False).base == 40


def test_a_dropped_prompt_is_not_found(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40))
    engine.cache.drop(root)
    assert engine.prompt(range(40), compute=False).base == 0


def test_without_prefix_cache_nothing_is_kept_or_found() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(40))
    assert engine.prompt(range(40)).parent is None
    root.release()
    assert engine.cache.held_pages == 3
    assert engine.cache.cached_pages == 0


def test_a_second_copy_of_a_prompt_is_freed(engine: SimulatedEngine) -> None:
    one, two = engine.prompt(range(40), compute=False), engine.prompt(range(40), compute=False)
    for root in (one, two):
        engine.compute(root)
        engine.cache.seal(root)
    two.release()
    assert (engine.cache.held_pages, engine.cache.cached_pages) == (3, 0)
    one.release()
    assert (engine.cache.held_pages, engine.cache.cached_pages) == (0, 3)


def test_a_cached_segment_is_found_below_a_tail_that_was_taken_over(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(20), compute=False)
    engine.compute(root)  # not sealed
    child = root.fork()[0]
    root.release()
    engine.decode(child, range(20, 40))
    engine.cache.seal(child)
    assert engine.cache.takeovers == 1
    inside_the_tail = engine.prompt([*range(18), 99])
    assert (inside_the_tail.parent, inside_the_tail.base) == (root, 16)
    beyond = engine.prompt([*range(30), 99])
    assert (beyond.parent, beyond.base) == (child, 30)
    engine.verify([child, inside_the_tail, beyond])


def test_prompts_are_found_again_unless_told_otherwise() -> None:
    cache = KvCache(10)
    root = cache.new_tree(range(20), tree_id=1, seed=0, detokenize=repr)
    cache.reserve(root, 20)
    cache.commit(root, 20)
    cache.seal(root)
    assert cache.new_tree(range(20), tree_id=2, seed=0, detokenize=repr).parent is root


def test_a_prompt_of_one_token_is_found(engine: SimulatedEngine) -> None:
    root = engine.prompt([7])
    again = engine.prompt([7, 8])
    assert (again.parent, again.base, again.tokens) == (root, 1, [8])
    engine.verify([root, again])


def test_a_fork_that_has_computed_nothing_makes_nothing_known(engine: SimulatedEngine) -> None:
    child = engine.prompt(range(32), compute=False).fork()[0]
    engine.cache.seal(child)
    assert child not in engine.cache.index
    assert engine.prompt(range(32), compute=False).parent is None


@pytest.mark.parametrize(("start", "own"), [(16, 4), (18, 15), (20, 20)])
def test_a_node_whose_tail_page_was_taken_over_makes_nothing_known(
    engine: SimulatedEngine, start: int, own: int
) -> None:
    child = engine.prompt(range(start)).fork()[0]
    engine.decode(child, range(start, start + own))
    grandchild = child.fork()[0]
    child.release()
    engine.decode(grandchild, [99])
    assert engine.cache.takeovers == 1
    engine.cache.seal(child)
    assert child not in engine.cache.index
    assert engine.prompt(range(start + own), compute=False).base == start
    engine.verify([grandchild])


def test_a_prompt_that_ends_in_a_page_taken_over_continues_the_node_before_it(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(16))
    child = root.fork()[0]
    engine.decode(child, range(16, 20))
    grandchild = child.fork()[0]
    child.release()
    engine.decode(grandchild, range(20, 40))
    engine.cache.seal(grandchild)
    assert (engine.cache.takeovers, child.pages) == (1, [])
    other = engine.prompt([*range(18), 99])
    assert (other.parent, other.base, other.tokens) == (root, 16, [16, 17, 99])
    engine.verify([grandchild, other])


def test_a_prompt_begins_anew_where_all_that_is_known_of_it_lies_in_a_page_taken_over(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(10), compute=False)
    engine.compute(root)  # not sealed
    child = root.fork()[0]
    root.release()
    engine.decode(child, range(10, 20))
    engine.cache.seal(child)
    assert (engine.cache.takeovers, root.pages) == (1, [])
    other = engine.prompt([*range(5), 99])
    assert (other.parent, other.base, other.tokens) == (None, 0, [*range(5), 99])
    engine.verify([child, other])


def test_the_least_recently_used_goes_first(engine: SimulatedEngine) -> None:
    roots = [engine.prompt(range(start, start + 16)) for start in (0, 100, 200)]
    for root in roots:
        root.release()
    engine.prompt(range(16), compute=False).release()  # used again
    assert engine.cache.evict(1) == 1
    assert engine.freed[-1] is roots[1]
    assert engine.cache.evict(2) == 2
    assert engine.freed[-2:] == [roots[2], roots[0]]
    assert engine.cache.evict(1) == 0
    assert engine.cache.evicted_pages == 3


def test_leaves_go_before_what_they_continue(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(16))
    longer = engine.prompt(range(32))
    root.release()
    assert engine.cache.cached_pages == 0  # `longer` reads it
    longer.release()
    assert engine.cache.cached_pages == 2
    assert engine.cache.evict(1) == 1
    assert engine.freed[-1] is longer
    engine.cache.check()
    assert engine.cache.evict(1) == 1
    assert engine.freed[-1] is root


def test_what_a_live_node_reads_is_not_evicted(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, [1])
    root.release()
    assert engine.cache.evict(10) == 0
    engine.verify([child])
    child.release()
    assert engine.cache.evict(10) == 3


def test_reserve_evicts_as_much_as_it_needs(engine: SimulatedEngine) -> None:
    for start in range(0, 700, 100):
        engine.prompt(range(start, start + 64)).release()
    assert (engine.cache.pool.num_free, engine.cache.cached_pages, engine.cache.available_pages) == (1, 28, 29)
    root = engine.prompt(range(1000, 1080))
    assert (engine.cache.cached_pages, len(root.pages)) == (24, 5)
    engine.verify([root])


def test_a_request_beyond_what_can_be_evicted_evicts_nothing(engine: SimulatedEngine) -> None:
    for start in range(0, 600, 100):
        engine.prompt(range(start, start + 64)).release()
    root = engine.prompt(range(1000, 1480), compute=False)
    with pytest.raises(OutOfPages) as refused:
        engine.compute(root)
    assert (refused.value.need, refused.value.free) == (30, 29)
    assert engine.cache.cached_pages == 24
    assert engine.cache.evicted_pages == 0


def test_clear_cache_keeps_live_prompts(engine: SimulatedEngine) -> None:
    live = engine.prompt(range(40))
    for start in (100, 200):
        engine.prompt(range(start, start + 20)).release()
    engine.cache.clear_cache()
    assert (engine.cache.held_pages, engine.cache.cached_pages) == (3, 0)
    assert engine.prompt(range(40), compute=False).parent is live


def test_a_cached_leaf_below_generated_nodes_takes_them_along(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(20))
    child = root.fork()[0]
    engine.decode(child, range(30, 50))
    answer = child.fork()[0]
    engine.decode(answer, range(50, 60))
    engine.cache.seal(answer)
    root.release(subtree=True)
    assert engine.cache.held_pages == 0
    engine.verify([])
    follow_up = engine.prompt([*range(20), *range(30, 60), 7])
    assert (follow_up.parent, follow_up.base) == (answer, 50)
    engine.verify([follow_up])
    follow_up.release()
    engine.cache.clear_cache()
    assert engine.cache.pool.num_used == 0


def test_the_queue_is_in_order_of_entry() -> None:
    nodes = [SimulatedEngine().prompt([1]) for _ in range(3)]
    queue = LruQueue()
    assert queue.oldest() is None
    for node in nodes:
        queue.add(node)
    queue.discard(nodes[0])
    queue.discard(nodes[0])
    assert (len(queue), queue.oldest(), nodes[0] in queue, nodes[2] in queue) == (2, nodes[1], False, True)


def test_each_segment_is_reported_free_once(engine: SimulatedEngine) -> None:
    made: list[Node] = []
    for start in range(0, 300, 20):
        root = engine.prompt(range(start, start + 40))
        child = root.fork()[0]
        engine.decode(child, [1])
        root.release(subtree=True)
        made += [root, child]
    engine.cache.clear_cache()
    assert sorted(map(id, engine.freed)) == sorted(map(id, made))
