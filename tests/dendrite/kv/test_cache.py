from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument, NodeReleased, OutOfPages
from dendrite.kv import KvCache
from dendrite.kv.ancestry import pending_ancestors
from tests.dendrite.kv.simulated import SimulatedEngine, books

BOUNDARIES = [15, 16, 17, 31, 32, 33]


@pytest.mark.parametrize("page_size", [8, 16, 32])
@pytest.mark.parametrize("length", BOUNDARIES)
def test_a_prompt_owns_as_many_pages_as_it_fills(page_size: int, length: int) -> None:
    engine = SimulatedEngine(page_size=page_size)
    root = engine.prompt(range(length))
    assert len(root.pages) == -(-length // page_size)
    assert engine.cache.held_pages == len(root.pages)
    engine.verify([root])


@pytest.mark.parametrize("page_size", [8, 16, 32])
@pytest.mark.parametrize("parent", BOUNDARIES)
@pytest.mark.parametrize("own", [1, *BOUNDARIES])
def test_children_of_every_alignment_read_their_own_path(page_size: int, parent: int, own: int) -> None:
    engine = SimulatedEngine(page_size=page_size)
    root = engine.prompt(range(parent))
    children = root.fork(3) + root.at(parent - 1).fork(2)
    for at, child in enumerate(children):
        engine.decode(child, range(1000 * at, 1000 * at + own))
    engine.decode(root, [5])
    engine.verify([root, *children])
    first = parent // page_size
    assert engine.cache.page_table(children[0])[:first].tolist() == root.pages[:first]


def test_chunked_prefill_writes_the_same_as_one_chunk() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(50), compute=False)
    for n in (1, 15, 16, 17, 1):
        engine.compute(root, n)
        engine.verify([root])
    assert root.computed == 50
    assert len(root.pages) == 4


def test_reserve_takes_only_what_is_lacking() -> None:
    cache = KvCache(20, 16)
    root = cache.new_tree(range(40), tree_id=1, seed=0, detokenize=repr)
    for n, pages in ((0, 0), (1, 1), (16, 1), (17, 2), (16, 2), (40, 3)):
        assert cache.reserve(root, n) is None
        assert len(root.pages) == pages


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 70))
def test_a_node_never_needs_more_than_a_page_beyond_its_tokens(length: int, at: int, own: int, n: int) -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(length))
    child = root.at(min(at, length - 1)).fork()[0]
    engine.decode(child, range(own))
    assert engine.cache.pages_needed(child, n) <= -(-n // 16) + 1


def test_a_path_deep_as_a_chain_reads_as_one() -> None:
    engine = SimulatedEngine(num_pages=300)
    node = engine.prompt(range(5))
    chain = [node]
    for depth in range(100):
        (node,) = node.at(max(0, len(node.tokens) - depth % 3)).fork()
        engine.decode(node, range(depth, depth + 1 + depth % 5))
        chain.append(node)
    engine.verify(chain)
    for member in chain[:-1]:
        member.release()
    engine.verify(chain)
    assert not pending_ancestors(node)


def test_shared_tokens_counts_what_ancestors_own() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    child = root.fork()[0]
    assert (engine.cache.shared_tokens(root), engine.cache.shared_tokens(child)) == (0, 40)
    engine.decode(child, [1])
    assert engine.cache.shared_tokens(child) == 32  # the tail page is its own now


# What fails changes nothing


def test_running_out_of_pages_names_need_and_free_and_leaks_nothing() -> None:
    engine = SimulatedEngine(num_pages=6)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    engine.decode(child, range(8))
    before = books(engine.cache, root, child)
    with pytest.raises(OutOfPages) as refused:
        engine.step([(child, range(50, 83))])
    assert (refused.value.need, refused.value.free) == (3, 1)
    assert books(engine.cache, root, child) == before
    engine.verify([root, child])
    engine.step([(child, range(50, 66))])
    engine.verify([root, child])


def test_a_first_write_that_finds_no_page_changes_nothing() -> None:
    engine = SimulatedEngine(num_pages=4)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    before = books(engine.cache, root, child)
    with pytest.raises(OutOfPages):
        engine.cache.reserve(child, 1)
    assert books(engine.cache, root, child) == before


def test_a_takeover_that_finds_no_further_page_changes_nothing() -> None:
    engine = SimulatedEngine(num_pages=4, prefix_cache=False)
    root = engine.prompt(range(40))
    child = root.fork()[0]
    root.release()
    before = books(engine.cache, root, child)
    with pytest.raises(OutOfPages) as refused:
        engine.cache.reserve(child, 9)
    assert (refused.value.need, refused.value.free) == (1, 0)
    assert books(engine.cache, root, child) == before
    engine.step([(child, range(8))])
    engine.verify([child])


def test_reserve_refuses_what_makes_no_sense() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(4))
    with pytest.raises(InvalidArgument, match="n=-1"):
        engine.cache.reserve(root, -1)
    for n in (-1, 13):
        with pytest.raises(InvalidArgument, match="n="):
            engine.cache.commit(root, n)
    assert root.computed == 4


@pytest.mark.parametrize("start", [0, 16, 20])
def test_no_more_is_committed_than_there_are_slots(start: int) -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(20))
    child = root.at(start).fork()[0]
    engine.cache.reserve(child, 1)
    slots = 16 - start % 16
    child.tokens += range(slots)
    with pytest.raises(InvalidArgument, match=f"n={slots + 1}"):
        engine.cache.commit(child, slots + 1)
    assert child.computed == 0
    engine.cache.commit(child, slots)
    with pytest.raises(InvalidArgument, match="n=1"):
        engine.cache.commit(child, 1)
    assert child.computed == slots


def test_freed_nodes_are_refused() -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(4))
    root.release()
    cache = engine.cache
    for refused in (
        lambda: cache.reserve(root, 1),
        lambda: cache.commit(root, 0),
        lambda: cache.page_table(root),
        lambda: cache.seal(root),
        lambda: cache.drop(root),
    ):
        with pytest.raises(NodeReleased):
            refused()


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="page_size=12"):
        KvCache(10, 12)
    with pytest.raises(InvalidArgument, match="num_pages=1"):
        KvCache(1)
    with pytest.raises(InvalidArgument, match="tokens="):
        KvCache(10).new_tree([], tree_id=1, seed=0, detokenize=repr)


# Pending ancestors


@pytest.mark.parametrize("k", [20, 32, 40])
def test_a_pending_fork_gets_no_pages_at_whatever_point_it_begins(k: int) -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40), compute=False)
    child = root.at(k).fork()[0]
    before = books(engine.cache, root, child)
    with pytest.raises(InvalidArgument, match="ancestors are computed"):
        engine.cache.reserve(child, 1)
    assert books(engine.cache, root, child) == before


def test_a_released_prompt_is_computed_for_the_forks_that_wait_for_it() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40), compute=False)
    child = root.at(20).fork()[0]
    root.release()
    engine.compute(root)
    engine.verify([child])
    assert len(root.pages) == 2  # the rest was of no use to anybody
