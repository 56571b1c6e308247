"""Attention over paged KV in plain PyTorch: the CPU path, and what every kernel is checked against.

A step's sequences fall into two kinds. Prefill chunks (several queries) run one by one through PyTorch's
fused attention. Decoding sequences (one query) run as padded batches, and the prefix that a group of them
shares is read once for the group, as one matrix product for all its queries; the two parts are merged by
their log-sum-exp (Hydragen, arXiv 2402.05099). Everything that all layers have in common is computed once, in
`begin`.

Scores and sums are in float32 at least, whatever the storage holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.attention.batching import DecodeGroup, decode_groups, padded_batches
from dendrite.kv.storage import KvStorage
from dendrite.quant.formats import E4M3


@dataclass(frozen=True, slots=True)
class _Memory:
    """A layer's keys and values: [_, D] in the storage's type, and in FP8 [2, Hkv], what they are multiplied by.

    FP8 is kept as bytes: not every torch gathers it by index.
    """

    vectors: Tensor
    scales: Tensor | None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A prefill chunk, queries `start:end`; `mask` [q, c] is None where it is plainly causal."""

    start: int
    end: int
    context: int
    index: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The pages that `count` neighbours of a decode batch share; `length` in tokens."""

    first: int
    count: int
    length: int
    index: Tensor


@dataclass(frozen=True, slots=True)
class _Decode:
    """Single-query sequences in one padded batch: their own keys, and the prefixes that groups of them share.

    `rows` are the batch's queries among the step's, as a slice where they are neighbours. `mask` [n * Hkv, 1,
    width] is 0 or -inf; None where all have `width` keys.
    """

    rows: slice | Tensor
    count: int
    width: int
    index: Tensor
    mask: Tensor | None
    prefixes: tuple[_Prefix, ...]


class TorchAttention:
    """`Attention` on any device that PyTorch knows; see the module."""

    def __init__(self, storage: KvStorage) -> None:
        """Attend over `storage`; all layers have its number of key-value heads and head size."""
        self._storage = storage
        self._page_size = storage.page_size
        self._kv_heads, self._head_dim = storage.pages.shape[-2:]
        self._scale = float(self._head_dim) ** -0.5
        self._device = storage.pages.device
        dtype = storage.pages.dtype
        self._compute = torch.float32 if dtype.itemsize < 4 else dtype
        self._layers = tuple(
            _Memory(rows.view(-1, self._head_dim), None)
            if storage.scales is None
            else _Memory(rows.view(torch.uint8).view(-1, self._head_dim), storage.scales[layer])
            for layer, rows in enumerate(storage.layer_rows)
        )
        self._write_rows = torch.empty(0, dtype=torch.int64)
        self._chunks: list[_Chunk] = []
        self._decodes: list[_Decode] = []

    @torch.inference_mode()
    def begin(self, batch: ForwardBatch) -> None:
        """Work out which memory each part of the batch reads and writes."""
        self._write_rows = self._storage.key_rows(batch.slots)
        starts = batch.query_start
        self._chunks = [
            self._chunk(batch, sequence)
            for sequence in range(len(batch.context))
            if starts[sequence + 1] - starts[sequence] > 1
        ]
        groups = decode_groups(batch, self._page_size)
        self._decodes = [self._decode(batch, padded) for padded in padded_batches(groups)]

    @torch.inference_mode()
    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attention.forward`."""
        self._storage.write_rows(layer, self._write_rows, key, value)
        memory = self._layers[layer]
        scaled = query.to(self._compute) * self._scale
        if len(self._decodes) == 1 and not self._chunks and isinstance(self._decodes[0].rows, slice):
            return self._run_decode(self._decodes[0], memory, scaled).to(query.dtype)
        result = torch.empty_like(scaled)
        for chunk in self._chunks:
            result[chunk.start : chunk.end] = self._run_chunk(chunk, memory, scaled)
        for decode in self._decodes:
            result[decode.rows] = self._run_decode(decode, memory, scaled[decode.rows])
        return result.to(query.dtype)

    def _run_chunk(self, chunk: _Chunk, memory: _Memory, query: Tensor) -> Tensor:
        """Attend with one chunk's queries, to [q, Hq, D]."""
        keys, values = self._gather(memory, chunk.index, chunk.context).view(2, 1, self._kv_heads, chunk.context, -1)
        queries = query[chunk.start : chunk.end].transpose(0, 1).unsqueeze(0)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, chunk.mask, is_causal=chunk.mask is None, scale=1.0, enable_gqa=True
        )
        return mixed.squeeze(0).transpose(0, 1)

    def _run_decode(self, decode: _Decode, memory: _Memory, query: Tensor) -> Tensor:
        """Attend with the queries [n, Hq, D] of one padded batch, to the same shape."""
        kv_heads, head_dim = self._kv_heads, self._head_dim
        keys, values = self._gather(memory, decode.index, decode.width).view(2, -1, decode.width, head_dim)
        queries = query.reshape(keys.shape[0], -1, head_dim)
        mask, transposed = decode.mask, keys.mT
        scores = torch.bmm(queries, transposed) if mask is None else torch.baddbmm(mask, queries, transposed)
        weights = scores.softmax(-1)
        own = torch.bmm(weights, values).view(decode.count, kv_heads, -1, head_dim)
        if decode.prefixes:
            own_lse = _log_sum_exp(scores, weights).view(decode.count, kv_heads, -1)
            parts = [self._run_prefix(prefix, memory, query) for prefix in decode.prefixes]
            shared = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts])
            shared_lse = parts[0][1] if len(parts) == 1 else torch.cat([lse for _, lse in parts])
            # Softmax over both parts weighs each by exp(lse), which two terms make a sigmoid.
            own = torch.lerp(own, shared, torch.sigmoid(shared_lse - own_lse).unsqueeze(-1))
        return own.reshape(query.shape)

    def _run_prefix(self, prefix: _Prefix, memory: _Memory, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to a shared prefix: [m, Hkv, G, D] and the log-sum-exp of the scores [m, Hkv, G]."""
        kv_heads, head_dim, count = self._kv_heads, self._head_dim, prefix.count
        keys, values = self._gather(memory, prefix.index, prefix.length).view(2, kv_heads, prefix.length, head_dim)
        queries = query[prefix.first : prefix.first + count].reshape(count, kv_heads, -1, head_dim)
        by_head = queries.transpose(0, 1).reshape(kv_heads, -1, head_dim)
        scores = torch.bmm(by_head, keys.mT)
        weights = scores.softmax(-1)
        lse = _log_sum_exp(scores, weights).view(kv_heads, count, -1)
        mixed = torch.bmm(weights, values).view(kv_heads, count, -1, head_dim)
        return mixed.transpose(0, 1), lse.transpose(0, 1)

    def _gather(self, memory: _Memory, index: Tensor, width: int) -> Tensor:
        """The keys and values at `index`, [2 * n * Hkv * width] as of `_head_index`: [2 * n * Hkv * width, D]."""
        found = memory.vectors.index_select(0, index)
        if memory.scales is None:
            return found.to(self._compute)
        wide = found.view(E4M3).to(self._compute)
        wide.view(2, -1, self._kv_heads, width, self._head_dim).mul_(memory.scales.view(2, 1, -1, 1, 1))
        return wide

    def _chunk(self, batch: ForwardBatch, sequence: int) -> _Chunk:
        start, end = batch.query_start[sequence : sequence + 2]
        queries, context = end - start, batch.context[sequence]
        positions = torch.arange(context, device=self._device)
        rows = self._key_rows(batch.page_table[sequence : sequence + 1], positions.unsqueeze(0))
        mask = None
        if queries < context:
            mask = torch.ones(queries, context, dtype=torch.bool, device=self._device).tril(context - queries)
        return _Chunk(start, end, context, self._head_index(rows), mask)

    def _decode(self, batch: ForwardBatch, groups: list[DecodeGroup]) -> _Decode:
        sequences = [sequence for group in groups for sequence in range(group.first, group.end)]
        contexts = [batch.context[sequence] for sequence in sequences]
        starts = [group.shared_tokens for group in groups for _ in range(group.first, group.end)]
        lengths = [context - start for context, start in zip(contexts, starts, strict=True)]
        width = max(lengths)
        end, start = self._ints(contexts).unsqueeze(1), self._ints(starts).unsqueeze(1)
        # Past its end a sequence reads its last key again, so that masked values are its own and always
        # finite.
        positions = torch.minimum(start + torch.arange(width, device=self._device), end - 1)
        table = batch.page_table[_neighbours(sequences, self._device)]
        mask = None
        if min(lengths) < width:
            beyond = torch.arange(width, device=self._device) >= end - start
            mask = torch.zeros(beyond.shape, dtype=self._compute, device=self._device)
            mask = mask.masked_fill_(beyond, float("-inf")).repeat_interleave(self._kv_heads, 0).unsqueeze(1)
        return _Decode(
            rows=_neighbours([batch.query_start[sequence] for sequence in sequences], self._device),
            count=len(sequences),
            width=width,
            index=self._head_index(self._key_rows(table, positions)),
            mask=mask,
            prefixes=self._prefixes(batch, groups),
        )

    def _prefixes(self, batch: ForwardBatch, groups: list[DecodeGroup]) -> tuple[_Prefix, ...]:
        prefixes: list[_Prefix] = []
        offset = 0
        for group in groups:
            count = group.end - group.first
            if group.shared_tokens:
                positions = torch.arange(group.shared_tokens, device=self._device).unsqueeze(0)
                rows = self._key_rows(batch.page_table[group.first : group.first + 1], positions)
                prefixes.append(_Prefix(offset, count, group.shared_tokens, self._head_index(rows)))
            offset += count
        return tuple(prefixes)

    def _key_rows(self, page_table: Tensor, positions: Tensor) -> Tensor:
        """Storage row of the keys at positions [n, L], by page tables [n, P]: [n, L]."""
        pages = page_table.gather(1, torch.div(positions, self._page_size, rounding_mode="floor"))
        return pages * (2 * self._page_size) + positions % self._page_size

    def _head_index(self, rows: Tensor) -> Tensor:
        """Index of the heads' vectors in a layer's memory [_, D], keys then values: flat [2 * n * Hkv * L]."""
        heads = torch.arange(self._kv_heads, device=self._device).view(1, -1, 1)
        keys = rows.unsqueeze(1) * self._kv_heads + heads
        return torch.stack((keys, keys + self._page_size * self._kv_heads)).flatten()

    def _ints(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _log_sum_exp(scores: Tensor, weights: Tensor) -> Tensor:
    """Over the last axis, from the scores' softmax: the largest score has the weight exp(score - lse), at least 1 / n.

    Two maxima cost a third of taking the exponentials again.
    """
    return scores.amax(-1) - weights.amax(-1).log_()


def _neighbours(rows: list[int], device: torch.device) -> slice | Tensor:
    """Rows in ascending order as an index: a slice, which copies nothing, where there is no gap."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, dtype=torch.int64, device=device)
