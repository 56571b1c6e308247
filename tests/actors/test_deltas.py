from __future__ import annotations

import pickle

import numpy as np

from actors.deltas import ADDED, GROUP, NO_PARENT, Added, EventLog, Released


def test_events_are_packed_tree_by_tree() -> None:
    log = EventLog()
    log.add(Added(8, 0, None, 0, (1, 2, 3)))
    log.add(Added(2**62, 0, None, 0, (7,)))
    log.add(Added(8, 1, 0, 2, (4, 5)))
    log.add(Released(8, 0))
    assert log.events == 4
    pack = log.pack()
    assert pack.groups.tolist() == [(8, 2, 1, 5), (2**62, 1, 0, 1)]
    assert pack.added.tolist() == [(0, NO_PARENT, 0, 3), (1, 0, 2, 2), (0, NO_PARENT, 0, 1)]
    assert pack.released.tolist() == [0]
    assert pack.tokens.tolist() == [1, 2, 3, 4, 5, 7]
    assert (pack.events, log.events, log.pack().events) == (4, 0, 0)


def test_a_pack_goes_over_the_wire_as_four_arrays() -> None:
    log = EventLog()
    for node in range(256):
        log.add(Added(1, node, None, 0, tuple(range(32))))
    pack = log.pack()
    arrays = (pack.groups, pack.added, pack.released, pack.tokens)
    assert [array.dtype for array in arrays] == [GROUP, ADDED, np.int32, np.int32]
    size = sum(array.nbytes for array in arrays)
    assert len(pickle.dumps(pack, 5)) < size + 1_000
    assert size == GROUP.itemsize + 256 * (ADDED.itemsize + 32 * 4)
