"""What the decoder asks of an attention implementation, and the description of one step's batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, flattened: sequence b owns rows `query_start[b]:query_start[b + 1]`.

    A sequence is a node that runs in this step. Its queries are the last tokens of its context: with q queries and a
    context of c tokens (the queries included), query i stands at position c - q + i and sees keys 0 .. c - q + i.

        tokens      [T] int64   token ids, T = total queries
        positions   [T] int64   position of each token on its path
        slots       [T] int64   KV slot (page * page_size + offset) each token's key and value go to
        query_start [B + 1] list of int (host)
        context     [B] list of int (host)   context length, this step's tokens included
        page_table  [B, P] int64   pages of each sequence in order, rows padded with page 0
        shared_pages list of (first sequence, end sequence, pages): runs of single-query sequences, adjacent in the
                    batch, whose page tables start with the same `pages` full pages. Disjoint and in order; a hint
                    that an implementation may use to read those pages once, never needed for the right answer.

    Page 0 of the storage is scratch: no node owns it, and a slot below `page_size` is a write nobody reads.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    query_start: list[int]
    context: list[int]
    page_table: Tensor
    shared_pages: list[tuple[int, int, int]]


class Attention(Protocol):
    """Causal attention over paged KV. One instance serves all layers of one engine."""

    def begin(self, batch: ForwardBatch) -> None:
        """Prepare for a forward pass over `batch` (masks, index tensors); called once a step, before any layer."""
        ...

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store this step's keys and values, then attend.

        Args:
            layer: index of the decoder layer.
            query: [T, Hq, D], positions already applied.
            key: [T, Hkv, D], positions already applied.
            value: [T, Hkv, D].

        Returns:
            [T, Hq, D], in the type of `query`.
        """
        ...
