"""Which nodes are copies of which, against a plain list of what was told."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.deltas import Load, Replica, Status
from actors.replica_book import ReplicaBook

NONE = np.zeros(0, np.int64)


def status(replicas: list[tuple[int, int, int, int]], ended: list[int]) -> Status:
    return Status(Load(0, 0), False, NONE, np.array(ended, np.int64), NONE, tuple(Replica(*row) for row in replicas))


told = st.lists(
    st.tuples(
        st.integers(0, 2),  # worker
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(100, 101), st.integers(0, 2)), max_size=3),
        st.lists(st.integers(0, 3), max_size=2, unique=True),
        st.booleans(),  # whether the worker is lost first
    ),
    max_size=12,
)


@given(told)
def test_the_book_says_what_was_told_and_has_not_ended(
    events: list[tuple[int, list[tuple[int, ...]], list[int], bool]],
) -> None:
    book = ReplicaBook()
    rows: set[tuple[int, tuple[int, ...]]] = set()
    for worker, replicas, ended, lost in events:
        replicas = [(10 * worker + tree, *rest) for tree, *rest in replicas]  # a tree of copies lies on one worker
        ended = [10 * worker + tree for tree in ended]
        if lost:
            book.forget(worker)
            rows = {row for row in rows if row[0] != worker}
        # A node is a copy of one other only: what is told later of the same node is left out.
        known = {row[1][:2] for row in rows}
        fresh = {row[:2]: row for row in reversed(replicas) if row[:2] not in known}
        book.hear(worker, status(list(fresh.values()), ended))
        rows |= {(worker, row) for row in fresh.values()}
        rows = {row for row in rows if row[1][0] not in ended}
        assert len(book) == len(rows)
        for tree in (100, 101):
            for node in range(3):
                expected = sorted(row[:2] for _, row in rows if row[2:] == (tree, node))
                assert book.copies(tree, node) == expected
