"""Which decoding sequences share a padded batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.attention.base import ForwardBatch
from dendrite.attention.batching import DecodeGroup, decode_groups, padded_batches


def batch_of(queries: list[int], context: list[int], shared: list[tuple[int, int, int]] | None = None) -> ForwardBatch:
    starts = [0]
    for count in queries:
        starts.append(starts[-1] + count)
    empty = torch.empty(0, dtype=torch.int64)
    return ForwardBatch(empty, empty, empty, starts, context, empty, shared or [])


def test_prefill_chunks_are_left_out() -> None:
    assert decode_groups(batch_of([1, 4, 1], [9, 4, 3]), 8) == [DecodeGroup(0, 1, 0, 9), DecodeGroup(2, 3, 0, 3)]


def test_a_group_keeps_a_token_of_its_own() -> None:
    groups = decode_groups(batch_of([1, 1, 1], [16, 20, 30], [(0, 2, 2)]), 8)
    assert groups == [DecodeGroup(0, 2, 8, 12), DecodeGroup(2, 3, 0, 30)]


def test_equal_lengths_are_one_batch() -> None:
    groups = [DecodeGroup(i, i + 1, 0, 100) for i in range(64)]
    assert padded_batches(groups) == [groups]


def test_shared_prefixes_are_kept_apart_from_sequences_without() -> None:
    shared, alone = DecodeGroup(0, 4, 64, 5), DecodeGroup(4, 5, 0, 5)
    assert padded_batches([shared, alone]) == [[shared], [alone]]


def test_a_long_sequence_does_not_pad_many_short_ones() -> None:
    short = [DecodeGroup(i, i + 1, 0, 8) for i in range(32)]
    long = DecodeGroup(32, 33, 0, 4096)
    assert padded_batches([*short, long]) == [[long], short]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.integers(1, 5000)), max_size=20))
def test_every_group_is_in_one_batch_in_order(drawn: list[tuple[int, bool, int]]) -> None:
    groups, first = [], 0
    for count, shares, longest in drawn:
        groups.append(DecodeGroup(first, first + count, 16 * shares, longest))
        first += count
    batches = padded_batches(groups)
    assert sorted((group for batch in batches for group in batch), key=lambda group: group.first) == groups
    assert all(batch == sorted(batch, key=lambda group: group.first) for batch in batches)
