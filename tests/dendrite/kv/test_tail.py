from __future__ import annotations

import pytest

from dendrite.errors import InvariantViolation
from dendrite.kv import Node, TailCopy, tail
from dendrite.kv.ancestry import pending_ancestors
from tests.dendrite.kv.simulated import SimulatedEngine


@pytest.fixture
def engine() -> SimulatedEngine:
    """Without prefix cache: a prompt that later ones may find keeps its tail page."""
    return SimulatedEngine(prefix_cache=False)


@pytest.fixture
def root(engine: SimulatedEngine) -> Node:
    return engine.prompt(range(20))


def counters(engine: SimulatedEngine) -> tuple[int, int]:
    return engine.cache.cow_copies, engine.cache.takeovers


def test_the_first_writer_copies_exactly_the_filled_slots(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    assert engine.cache.reserve(child, 1) == TailCopy(root.pages[1], child.pages[0], filled=4)
    assert engine.cache.reserve(child, 12) is None
    assert child.pages[0] not in root.pages
    assert counters(engine) == (1, 0)


def test_a_fork_at_a_page_boundary_copies_nothing(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(32))
    for child in root.fork(2) + root.at(16).fork():
        assert engine.cache.reserve(child, 1) is None
    assert counters(engine) == (0, 0)


def test_a_parent_that_goes_on_writes_beside_its_readers(engine: SimulatedEngine, root: Node) -> None:
    early = root.fork()[0]
    engine.decode(root, [50])
    late = root.fork()[0]
    engine.decode(root, [51])
    for copy, filled in ((engine.step([(early, [1])]), 4), (engine.step([(late, [2])]), 5)):
        assert [one.filled for one in copy] == [filled]
    engine.verify([root, early, late])


def test_the_last_reader_of_a_released_owner_takes_the_page_over(engine: SimulatedEngine, root: Node) -> None:
    page = root.pages[1]
    first, second, last = root.fork(3)
    root.release()
    assert [len(engine.step([(child, [at])])) for at, child in enumerate((first, second, last))] == [1, 1, 0]
    assert last.pages == [page]
    assert len(root.pages) == 1
    assert counters(engine) == (2, 1)
    engine.verify([first, second, last])


def test_siblings_released_before_they_wrote_do_not_count_as_readers(engine: SimulatedEngine, root: Node) -> None:
    kept, *others = root.fork(4)
    for node in (*others, root):
        node.release()
    engine.decode(kept, [1])
    assert counters(engine) == (0, 1)
    engine.verify([kept])


def test_a_live_owner_keeps_its_page(engine: SimulatedEngine, root: Node) -> None:
    engine.decode(root.fork()[0], [1])
    assert counters(engine) == (1, 0)


def test_a_prompt_that_can_be_found_keeps_its_page() -> None:
    engine = SimulatedEngine(prefix_cache=True)
    root = engine.prompt(range(20))
    child = root.fork()[0]
    root.release()
    engine.decode(child, [1])
    assert counters(engine) == (1, 0)
    again = engine.prompt(range(20))
    assert again.base == 20
    engine.verify([child, again])


@pytest.mark.parametrize("k", [17, 20])
def test_a_sibling_that_reads_the_same_page_elsewhere_is_a_reader(engine: SimulatedEngine, root: Node, k: int) -> None:
    other, child = root.at(k).fork()[0], root.fork()[0]
    root.release()
    engine.decode(child, [1])
    assert counters(engine) == (1, 0)
    engine.decode(other, [2])
    assert counters(engine) == (1, 1)
    engine.verify([other, child])


def test_a_sibling_that_reads_the_page_in_full_is_a_reader_though_it_has_written(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40))
    far, near = root.fork()[0], root.at(20).fork()[0]
    engine.decode(far, [1])
    root.release()
    engine.decode(near, [2])
    assert engine.cache.takeovers == 0
    engine.verify([far, near])


def test_a_sibling_forked_before_the_page_is_no_reader(engine: SimulatedEngine, root: Node) -> None:
    before, child = root.at(16).fork()[0], root.fork()[0]
    root.release()
    engine.decode(child, [1])
    assert counters(engine) == (0, 1)
    engine.verify([before, child])


def test_what_the_owner_wrote_past_the_page_goes_with_the_takeover(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(60))
    far, near, page_start = root.fork()[0], root.at(20).fork()[0], root.at(16).fork()[0]
    root.release()
    far.release()  # two children are left, so nothing is trimmed
    engine.decode(near, [1])
    assert counters(engine) == (0, 1)
    assert engine.cache.pool.num_used == 2
    engine.verify([near, page_start])


def test_a_fork_of_a_sibling_that_has_not_written_is_a_reader(engine: SimulatedEngine, root: Node) -> None:
    sibling, child = root.fork(2)
    nested = sibling.fork()[0]
    sibling.release()
    root.release()
    engine.decode(child, [1])
    assert counters(engine) == (1, 0)
    engine.decode(nested, [2])
    assert counters(engine) == (1, 1)
    engine.verify([child, nested])


def test_a_fork_of_a_sibling_that_has_not_written_is_none_once_it_has_copied(
    engine: SimulatedEngine, root: Node
) -> None:
    sibling, child = root.fork(2)
    nested = sibling.fork()[0]
    engine.decode(nested, [1])
    sibling.release()
    root.release()
    engine.decode(child, [2])
    assert counters(engine) == (1, 1)
    engine.verify([child, nested])


def test_descendants_of_a_sibling_that_has_copied_are_no_readers(engine: SimulatedEngine, root: Node) -> None:
    sibling, child = root.fork(2)
    engine.decode(sibling, [1])
    nested = sibling.fork()[0]
    engine.decode(nested, [2])
    root.release()
    engine.decode(child, [3])
    assert engine.cache.takeovers == 1
    engine.verify([sibling, nested, child])


def test_a_fork_at_the_start_of_a_node_that_copied_reads_the_original(engine: SimulatedEngine, root: Node) -> None:
    sibling, child = root.fork(2)
    beside = sibling.at(0).fork()[0]
    engine.step([(sibling, [1])])
    root.release()
    engine.decode(child, [2])
    assert engine.cache.takeovers == 0  # `beside` still reads the page
    engine.decode(beside, [3])
    assert engine.cache.takeovers == 1
    engine.verify([sibling, child, beside])


def test_a_fork_at_the_start_of_a_node_that_took_the_page_over(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    root.release()
    engine.decode(child, [1])
    beside = child.at(0).fork()[0]
    engine.verify([child, beside])
    engine.decode(beside, [2])
    assert counters(engine) == (1, 1)
    engine.verify([child, beside])


def test_parent_and_child_that_first_write_in_one_step(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    grandchild = child.fork()[0]
    copies = engine.step([(child, [1]), (grandchild, [2])])
    assert {copy.src_page for copy in copies} == {root.pages[1]}
    engine.verify([root, child, grandchild])


def test_a_page_is_handed_down_a_chain_of_released_owners(engine: SimulatedEngine) -> None:
    node = engine.prompt([0])
    for token in range(1, 40):
        (child,) = node.fork()
        node.release()
        engine.decode(child, [token])
        node = child
        engine.verify([node])
    assert counters(engine) == (0, 37)  # two of the forks were at a page boundary
    assert engine.cache.pool.num_used == 3


def test_dropping_the_taker_makes_the_owner_pending(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    root.release()
    engine.decode(child, [1, 2])
    engine.cache.drop(child)
    assert root.computed == 16  # its last four tokens lay in the page that is gone
    assert pending_ancestors(child) == [root]
    engine.compute(root)
    engine.compute(child)
    engine.verify([child])


def test_dropping_the_taker_of_a_chain_makes_each_owner_in_the_page_pending(engine: SimulatedEngine) -> None:
    chain = [engine.prompt(range(18))]
    for token in range(3):
        chain += chain[-1].fork()
        chain[-2].release()
        engine.decode(chain[-1], [token])
    last = chain[-1]
    engine.cache.drop(last)
    assert pending_ancestors(last) == chain[:-1]
    for node in chain:
        engine.compute(node)
    engine.verify([last])


def test_a_copy_serves_while_the_taker_is_dropped(engine: SimulatedEngine, root: Node) -> None:
    one, two = root.fork(2)
    root.release()
    for node in (one, two):
        engine.decode(node, [1])
    assert counters(engine) == (1, 1)
    engine.cache.drop(two)
    engine.verify([one])
    engine.cache.drop(one)
    for node in (root, one, two):
        engine.compute(node)
    engine.verify([one, two])


def test_owner_names_a_node_whose_page_is_lost(engine: SimulatedEngine, root: Node) -> None:
    child = root.fork()[0]
    engine.cache.drop(root)
    with pytest.raises(InvariantViolation, match="no segment holds"):
        tail.owner(child, 16)


def test_an_owner_is_pending_although_the_one_that_took_its_page_passed_it_on(
    engine: SimulatedEngine, root: Node
) -> None:
    child = root.fork()[0]
    root.release()
    engine.decode(child, [1])
    beside = child.at(0).fork()[0]
    child.release()
    engine.decode(beside, [2])
    assert counters(engine) == (0, 2)
    engine.cache.drop(beside)
    assert pending_ancestors(beside) == [root]
    for node in (root, beside):
        engine.compute(node)
    engine.verify([beside])


def test_an_owner_that_is_still_being_computed_keeps_its_page(engine: SimulatedEngine) -> None:
    root = engine.prompt(range(40), compute=False)
    engine.compute(root, 20)
    child = root.at(18).fork()[0]
    root.release()
    engine.decode(child, [1])
    assert counters(engine) == (1, 0)
    engine.compute(root)
    engine.cache.drop(child)
    engine.compute(child)
    engine.verify([child])
