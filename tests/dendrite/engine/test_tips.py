"""The table of hidden states."""

from __future__ import annotations

import torch

from dendrite.engine.tips import TipStore


def test_slots_are_distinct_and_keep_their_states_while_the_table_grows() -> None:
    store = TipStore(3, torch.float32, torch.device("cpu"), capacity=2)
    states = torch.randn(9, 3)
    slots = []
    for state in states:
        slots.append(store.allocate())
        store.write(slots[-1:], state.unsqueeze(0))
    assert len(set(slots)) == 9
    assert store.used == 9
    assert torch.equal(store.read(slots), states)
    store.release(slots[4])
    assert (store.used, store.allocate()) == (8, slots[4])
