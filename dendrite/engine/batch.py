"""From a step's plan to the tensors that the decoder reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from dendrite.attention.base import ForwardBatch
from dendrite.engine.plan import Plan, Retip
from dendrite.kv.cache import KvCache
from dendrite.transfer import send

_MIN_SHARED_PAGES = 4
"""A shorter common prefix is not worth a pass of its own."""
_MIN_SAVED_ELEMENTS = 115_000
"""Nor is one that saves fewer elements of keys: a pass of its own costs the CPU more than reading them again."""

Table = npt.NDArray[np.int64]


class BatchBuilder:
    """Lays out decodes, then retips, then prefill chunks: single-query rows first, siblings side by side."""

    def __init__(self, cache: KvCache, page_size: int, kv_size: int, device: torch.device) -> None:
        self._cache = cache
        self._page_size = page_size
        self._kv_size = kv_size
        self._device = device

    def build(self, plan: Plan, sampled: Sequence[int]) -> ForwardBatch:
        """Assemble the batch; `sampled` are the tokens of `plan.decodes`, already appended to their nodes."""
        size = self._page_size
        nodes = [generation.node for generation in plan.decodes]
        lengths = [node.length for node in nodes]
        tokens, positions = list(sampled), [length - 1 for length in lengths]
        tables = [self._cache.page_table(node) for node in nodes]
        slots = [table.item(at // size) * size + at % size for table, at in zip(tables, positions, strict=True)]
        for retip in plan.retips:
            tokens.append(_last_token(retip))
            positions.append(retip.length - 1)
            lengths.append(retip.length)
            slots.append(0)
            tables.append(self._cache.page_table(retip.reader))
        starts = list(range(len(tokens) + 1))
        singles = len(tokens)
        for chunk in plan.chunks:
            node = chunk.job.node
            first = node.base + chunk.start
            table = self._cache.page_table(node)
            tokens.extend(node.tokens[chunk.start : chunk.start + chunk.count])
            positions.extend(range(first, first + chunk.count))
            at = np.arange(first, first + chunk.count)
            slots.extend((table[at // size] * size + at % size).tolist())
            starts.append(starts[-1] + chunk.count)
            lengths.append(first + chunk.count)
            tables.append(table)
        table = self._stack(tables, lengths)
        rows = send(tokens + positions + slots, self._device).view(3, -1).unbind()
        return ForwardBatch(
            tokens=rows[0],
            positions=rows[1],
            slots=rows[2],
            query_start=starts,
            context=lengths,
            page_table=torch.from_numpy(table).to(self._device),
            shared_pages=shared_runs(table[:singles], lengths[:singles], size, self._kv_size),
        )

    def _stack(self, tables: Sequence[Table], lengths: Sequence[int]) -> Table:
        """[B, P] int64, rows padded with the scratch page."""
        counts = [-(-length // self._page_size) for length in lengths]
        stacked = np.zeros((len(tables), max(counts)), dtype=np.int64)
        for row, (table, count) in enumerate(zip(tables, counts, strict=True)):
            stacked[row, :count] = table[:count]
        return stacked


def shared_runs(table: Table, lengths: Sequence[int], page_size: int, kv_size: int) -> list[tuple[int, int, int]]:
    """Runs of adjacent rows whose tables start with the same full pages, as (first, end, pages).

    Rows join a run as long as the pages saved, (rows - 1) * common pages, do not shrink. Runs that save too little are
    left out; `kv_size` is the elements of a token's keys in a layer.
    """
    if len(table) < 2:
        return []
    alike = np.cumprod(table[1:] == table[:-1], axis=1).sum(axis=1)
    full = np.asarray(lengths) // page_size
    common = np.minimum(alike, np.minimum(full[1:], full[:-1])).tolist()
    runs: list[tuple[int, int, int]] = []
    first, pages = 0, 0
    for row, shared in enumerate(common, start=1):
        rows = row - first
        kept = min(pages, shared) if rows > 1 else shared
        if kept >= _MIN_SHARED_PAGES and rows * kept >= (rows - 1) * pages:
            pages = kept
            continue
        if rows > 1:
            runs.append((first, row, pages))
        first, pages = row, 0
    if len(table) - first > 1:
        runs.append((first, len(table), pages))
    per_page = page_size * kv_size
    return [run for run in runs if (run[1] - run[0] - 1) * run[2] * per_page >= _MIN_SAVED_ELEMENTS]


def _last_token(retip: Retip) -> int:
    return retip.node.tokens[retip.length - 1 - retip.node.base]
