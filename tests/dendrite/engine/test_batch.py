"""Runs of rows that share pages: valid, disjoint, and worth their pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.engine.batch import shared_runs


def runs(tables: list[list[int]], lengths: list[int] | None = None, kv_size: int = 4096) -> list[tuple[int, int, int]]:
    width = max(map(len, tables))
    padded = np.array([table + [0] * (width - len(table)) for table in tables], dtype=np.int64)
    return shared_runs(padded, lengths or [16 * len(table) for table in tables], 16, kv_size)


def test_siblings_share_their_prefix() -> None:
    prefix = [1, 2, 3, 4, 5]
    assert runs([[*prefix, 10 + i] for i in range(4)]) == [(0, 4, 5)]


def test_short_prefixes_and_strangers_are_left_alone() -> None:
    assert runs([[1, 2, 3, 9], [1, 2, 3, 8]]) == []
    assert runs([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]) == []
    assert runs([[1, 2, 3, 4, 5]]) == []


@pytest.mark.parametrize(("rows", "pages", "shared"), [(2, 32, False), (4, 16, False), (8, 4, False), (8, 16, True)])
def test_what_saves_little_is_read_by_every_row(rows: int, pages: int, shared: bool) -> None:
    """With two heads of 64, as the packaged model has."""
    prefix = list(range(1, pages + 1))
    assert runs([[*prefix, 100 + row] for row in range(rows)], kv_size=128) == ([(0, rows, pages)] if shared else [])


def test_two_trees_make_two_runs() -> None:
    first, second = [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]
    tables = [[*first, 20], [*first, 21], [*second, 22], [*second, 23], [*second, 24]]
    assert runs(tables) == [(0, 2, 6), (2, 5, 6)]


def test_a_page_that_is_not_full_is_not_shared() -> None:
    prefix = [1, 2, 3, 4, 5, 6]
    assert runs([prefix, prefix], [6 * 16, 5 * 16 + 3]) == [(0, 2, 5)]


def test_a_long_run_is_not_cut_short_by_a_stranger_of_little_overlap() -> None:
    deep = list(range(1, 31))
    tables = [[*deep, 50], [*deep, 51], [*deep[:4], 52]]
    assert runs(tables) == [(0, 2, 30)]


@given(
    st.lists(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=8), min_size=1, max_size=12),
    st.data(),
)
def test_every_run_is_valid(tables: list[list[int]], data: st.DataObject) -> None:
    lengths = [data.draw(st.integers(16 * (len(table) - 1) + 1, 16 * len(table))) for table in tables]
    end = 0
    for first, last, pages in runs(tables, lengths):
        assert first >= end
        assert last - first >= 2
        assert pages >= 4
        end = last
        for row in range(first, last):
            assert tables[row][:pages] == tables[first][:pages]
            assert lengths[row] >= pages * 16
