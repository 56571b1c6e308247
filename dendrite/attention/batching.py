"""How decoding sequences of different lengths become few padded batches."""

from __future__ import annotations

from dataclasses import dataclass

from dendrite.attention.base import ForwardBatch

# Padding a batch may carry, in tokens, before a second batch is worth its calls. Both cost about as much on a
# CPU.
_MAX_PADDING = 2048


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Neighbouring single-query sequences `first:end` that share their first tokens, or one alone.

    `longest` is the most tokens that any of them has beyond the shared ones, at least 1.
    """

    first: int
    end: int
    shared_tokens: int
    longest: int


def decode_groups(batch: ForwardBatch, page_size: int) -> list[DecodeGroup]:
    """All single-query sequences of a batch, in order, grouped by its `shared_pages`.

    A group's prefix is cut so that every member keeps a key of its own (at the least the one it has just
    written): then no part of the attention is ever empty.
    """
    shared = {first: (end, pages) for first, end, pages in batch.shared_pages}
    starts, context = batch.query_start, batch.context
    groups: list[DecodeGroup] = []
    sequence = 0
    while sequence < len(context):
        end, pages = shared.get(sequence, (sequence + 1, 0))
        if starts[sequence + 1] - starts[sequence] == 1:
            lengths = context[sequence:end]
            tokens = min(pages, (min(lengths) - 1) // page_size) * page_size if end - sequence > 1 else 0
            groups.append(DecodeGroup(sequence, end, tokens, max(lengths) - tokens))
        sequence = end
    return groups


def padded_batches(groups: list[DecodeGroup]) -> list[list[DecodeGroup]]:
    """Split groups into batches of similar length, each in ascending order of sequences.

    Groups that share a prefix and sequences that share none are kept apart, since only the first are merged
    from two parts. Within a kind, the longest open a batch, and shorter ones join it until its padding would
    cost more than another batch.
    """
    batches: list[list[DecodeGroup]] = []
    for kind in (True, False):
        padding, width = 0, 0
        members = [group for group in groups if bool(group.shared_tokens) == kind]
        for group in sorted(members, key=lambda group: -group.longest):
            wasted = (width - group.longest) * (group.end - group.first)
            if width == 0 or padding + wasted > _MAX_PADDING:
                batches.append([])
                padding, width, wasted = 0, group.longest, 0
            padding += wasted
            batches[-1].append(group)
    return [sorted(batch, key=lambda group: group.first) for batch in batches]
