"""The work list of tree attention: which tokens are read together, for which rows, and in which pieces.

Planned on the host, in numpy, whenever the batch's composition changes; between plans rows only grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dendrite.attention.tree_cost import CostModel, PlanLimits, PlanShape, tile_rate
from dendrite.attention.tree_pieces import OPEN_END, PIECES, Segment, choose_pieces, make_items, make_spans, tiles_of
from dendrite.errors import InvalidArgument

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TreePlan:
    """A work list, with everything of it that the kernels read.

    Attributes:
        kind: `tree` where at least one segment is read for several rows at once, else `flat`.
        items: [n, 8]: first rank, ranks, start token, end token, split, open, row of the first rank, its table's place
            in `pages`; the longest first.
        order: [ranks]: row of each rank.
        splits: [rows]: partial results of each row, 0 where it is idle.
        pages: the rows' page tables, one after the other.
        row_start: [rows]: where each row's table begins in `pages`.
        tokens: tokens a layer reads in a step by this plan, at the lengths it was made for.
        flat_tokens: the same if every row read all of its own.
    """

    kind: Literal["tree", "flat"]
    items: Ints
    order: Ints
    splits: Ints
    pages: Ints
    row_start: Ints
    tokens: int
    flat_tokens: int

    def with_tables(self, tables: Sequence[npt.NDArray[Any]]) -> TreePlan:
        """The same work over tables that have only gained pages since."""
        pages, row_start = _concatenated(tables)
        items = self.items.copy()
        items[:, 7] = row_start[items[:, 6]]
        return replace(self, items=items, pages=pages, row_start=row_start)


def plan_tree(
    tables: Sequence[npt.NDArray[Any]],
    lengths: Sequence[int] | npt.NDArray[Any],
    shape: PlanShape,
    limits: PlanLimits,
    horizon: int = 0,
    cost: CostModel | None = None,
) -> TreePlan:
    """Plan one batch of decoding rows.

    Args:
        tables: page table of each row, reserved pages included.
        lengths: tokens that each row's query sees; 0 is an idle row.
        shape: of the cache, the kernel and the device.
        limits: of the launch.
        horizon: tokens that a row may grow by before the next plan. Its table must hold `lengths` now, and what it
            grows by when it does (`TreePlan.with_tables`).
        cost: of programs; None is the default model.

    Raises:
        InvalidArgument: a row's table is too short, or there are more rows than items allowed.
    """
    cost = cost or CostModel()
    length = np.asarray(lengths, dtype=np.int64)
    _check(tables, length, shape, limits)
    pages, row_start = _concatenated(tables)

    if len(length) == 1 and length[0]:
        return _plan_one(pages, row_start, int(length[0]), shape, limits, horizon, cost)
    active = np.flatnonzero(length)
    order, shared = _sorted_by_prefix(pages, row_start, length // shape.page_size, active)
    segments = _segments(shared, shape, cost)
    ranked = length[order]
    spans = make_spans(segments, ranked, shape)
    pieces = choose_pieces(spans, shape, limits, cost, horizon)
    while pieces is None:
        segments = _without_least(segments)
        spans = make_spans(segments, ranked, shape)
        pieces = choose_pieces(spans, shape, limits, cost, horizon)
    items, used = make_items(spans, pieces, shape, cost)
    items[:, 6] = order[items[:, 0]]
    items[:, 7] = row_start[items[:, 6]]
    splits = np.zeros(len(tables), np.int32)
    splits[order] = used
    return TreePlan(
        kind="tree" if segments else "flat",
        items=items,
        order=order.astype(np.int32),
        splits=splits,
        pages=pages,
        row_start=row_start,
        tokens=int(((spans.end - spans.start) * tiles_of(spans, shape)).sum()),
        flat_tokens=int(length.sum()),
    )


def _plan_one(
    pages: Ints, row_start: Ints, length: int, shape: PlanShape, limits: PlanLimits, horizon: int, cost: CostModel
) -> TreePlan:
    """`plan_tree` of one row, without the arrays: the batch whose steps are shortest should wait least."""
    tokens = length + horizon // 2
    unit = max(shape.block_n, shape.page_size)
    slots = shape.sm_count * cost.programs_per_sm / shape.kv_heads
    best, piece = math.inf, tokens
    for wanted in PIECES:
        size = -(-tokens // (wanted * unit)) * unit
        cuts = -(-tokens // size)
        time = min(size, tokens) * cost.private_token_us + cost.item_us + cost.partial_us
        ends = math.ceil(cuts / slots) * time + cuts * cost.merge_us
        if cuts <= min(limits.splits, limits.items) and ends < best:
            best, piece = ends, size
    starts = range(0, length, piece)
    last = len(starts) - 1
    items = [(0, 1, start, start + piece, index, 0, 0, 0) for index, start in enumerate(starts)]
    items[last] = (0, 1, starts[last], OPEN_END, last, 1, 0, 0)
    return TreePlan(
        kind="flat",
        items=np.array(items, np.int32),
        order=np.zeros(1, np.int32),
        splits=np.array([len(items)], np.int32),
        pages=pages,
        row_start=row_start,
        tokens=length,
        flat_tokens=length,
    )


def _concatenated(tables: Sequence[npt.NDArray[Any]]) -> tuple[Ints, Ints]:
    """The tables one after the other, and where each begins."""
    if not tables:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    sizes = _sizes(tables)
    return np.concatenate(tables, dtype=np.int32, casting="same_kind"), (np.cumsum(sizes) - sizes).astype(np.int32)


def _sizes(tables: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.fromiter(map(len, tables), dtype=np.int64, count=len(tables))


def _check(tables: Sequence[npt.NDArray[Any]], length: npt.NDArray[Any], shape: PlanShape, limits: PlanLimits) -> None:
    sizes = _sizes(tables)
    if length.shape != sizes.shape:
        raise InvalidArgument("lengths", length.shape, f"must be one for each of the {len(sizes)} tables")
    short = np.flatnonzero((length > 0) & (sizes * shape.page_size < length))
    if len(short):
        row = int(short[0])
        limit = f"must hold {int(length[row])} tokens"
        raise InvalidArgument(f"tables[{row}]", f"{int(sizes[row])} pages of {shape.page_size} tokens", limit)
    if len(length) > limits.items:
        raise InvalidArgument("tables", len(length), f"must be at most {limits.items} rows")


def _sorted_by_prefix(
    pages: Ints, row_start: npt.NDArray[Any], full: npt.NDArray[Any], active: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], list[int]]:
    """Active rows in the order of their full pages, and the pages that each shares with the next.

    In the order of the tables' bytes, rows with equal prefixes are neighbours, and what two rows share is the least
    that any neighbours between them share.
    """
    if len(active) < 2:
        return active, [0] * len(active)
    memory = memoryview(pages.data).cast("B")
    begin = 4 * row_start[active]
    bounds = zip(active.tolist(), begin.tolist(), (begin + 4 * full[active]).tolist(), strict=True)
    keys = {row: bytes(memory[start:end]) for row, start, end in bounds}
    order = sorted(keys, key=keys.__getitem__)
    width = 4 * max(1, int(full[active].max()))
    padded = b"".join([keys[row].ljust(width, b"\xff") for row in order])
    matrix = np.frombuffer(padded, np.int32).reshape(len(order), -1)
    differs = matrix[1:] != matrix[:-1]
    first = np.where(differs.any(1), differs.argmax(1), matrix.shape[1])
    ranks = np.array(order)
    depth = full[ranks]
    shared = np.minimum(first, np.minimum(depth[1:], depth[:-1]))
    return ranks, [*shared.tolist(), 0]


def _segments(shared: list[int], shape: PlanShape, cost: CostModel) -> list[Segment]:
    """Shared segments worth items of their own, children before parents.

    `shared[i]` is what ranks i and i + 1 have in common, in pages. Maximal runs of ranks that share at least so much
    nest, as the nodes of the tree do:

        rank       0   1   2   3   4   5
        shared       8   8   3   5   0
        depth 8    |-------|                  pages 3..8 of ranks 0..2
        depth 5                |---|          pages 3..5 of ranks 3..4
        depth 3    |---------------|          pages 0..3 of ranks 0..4

    One pass with a stack closes a run when `shared` falls below its depth. Then all its children are known, and with
    them the price of a token that they read each for themselves; reading it once for the run instead must save more,
    over the segment's tokens, than the items and partial results it adds. A segment that is not kept is read by its
    children, as are its ancestors' that are not kept either.
    """
    kept: list[Segment] = []
    stack: list[tuple[int, int, float]] = [(0, 0, 0.0)]
    for rank, depth in enumerate(shared):
        first, rate = rank, cost.private_token_us
        while depth < stack[-1][0]:
            top, first, rates = stack.pop()
            rates += rate
            tokens = (top - max(depth, stack[-1][0])) * shape.page_size
            rows = rank + 1 - first
            own = tile_rate(rows, shape, cost)
            tiles = -(-rows // shape.tile_rows)
            gain = tokens * (rates - own) - rows * cost.partial_us - tiles * cost.item_us
            rate = rates
            if gain > cost.least_gain_us:
                kept.append(Segment(first, rank + 1, top, gain))
                rate = own
        if depth > stack[-1][0]:
            stack.append((depth, first, rate))
        else:
            top, first, rates = stack[-1]
            stack[-1] = top, first, rates + rate
    return kept


def _without_least(segments: list[Segment]) -> list[Segment]:
    """Three quarters of the segments, those that gain most; their order stays."""
    gains = sorted(segment.gain for segment in segments)
    least = gains[len(gains) // 4]
    return [segment for segment in segments if segment.gain > least]
