from __future__ import annotations

import numpy as np
import pytest

from dendrite.errors import InvariantViolation
from tests.dendrite.kv.simulated import SimulatedEngine


def test_it_grows_in_place() -> None:
    engine = SimulatedEngine(num_pages=200)
    root = engine.prompt(range(10))
    table = engine.cache.page_table(root)
    rebuilt = 0
    for token in range(1000):
        engine.decode(root, [token])
        grown = engine.cache.page_table(root)
        rebuilt += grown.base is not table.base
        table = grown
        assert table.tolist() == root.pages
    assert rebuilt < 10


def test_that_of_a_node_that_has_not_written_covers_what_it_reads() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    assert engine.cache.page_table(root.fork()[0]).tolist() == root.pages
    assert engine.cache.page_table(root.at(32).fork()[0]).tolist() == root.pages[:2]
    assert engine.cache.page_table(root.at(33).fork()[0]).tolist() == root.pages
    assert engine.cache.page_table(root.at(0).fork()[0]).tolist() == []


def test_they_are_right_when_more_nodes_run_than_tables_are_kept() -> None:
    engine = SimulatedEngine(num_pages=4000)
    root = engine.prompt(range(40))
    children = root.fork(1200)
    engine.step([(child, [1]) for child in children])
    engine.step([(child, range(30)) for child in children])
    engine.cache.check()
    for child in children:
        assert engine.cache.page_table(child).tolist() == root.pages[:2] + child.pages
    assert sum(child._table is not None for child in children) == 1024


def test_it_is_an_int64_row() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(40))
    assert engine.cache.page_table(root).dtype == np.int64
    assert engine.cache.page_table(root).shape == (3,)


@pytest.mark.parametrize("built_first", [False, True])
def test_it_stays_right_while_pages_change_hands(built_first: bool) -> None:
    engine = SimulatedEngine(prefix_cache=False)
    root = engine.prompt(range(20))
    child = root.fork()[0]
    if built_first:
        engine.cache.page_table(child)
    pages = list(root.pages)
    root.release()
    engine.decode(child, [1])
    grandchild = child.fork()[0]
    child.release()
    engine.decode(grandchild, range(20))
    assert engine.cache.takeovers == 2
    assert engine.cache.page_table(grandchild)[:2].tolist() == pages
    engine.cache.drop(grandchild)
    for node in (root, child, grandchild):
        engine.compute(node)
    engine.verify([grandchild])


def test_a_path_that_has_lost_pages_has_none() -> None:
    engine = SimulatedEngine()
    root = engine.prompt(range(32))
    child = root.fork()[0]
    engine.cache.drop(root)
    with pytest.raises(InvariantViolation, match="holds the first 2 pages"):
        engine.cache.page_table(child)
