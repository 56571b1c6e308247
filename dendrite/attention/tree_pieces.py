"""Segments and rows of a tree plan cut into items: how many programs each gets, and the work list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dendrite.attention.tree_cost import LOW_TILE, CostModel, PlanLimits, PlanShape

OPEN_END = 1 << 30
"""End token of the last item of a row, which ends where the row does."""
PIECES: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
"""Numbers of pieces to try."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Pages up to `depth` that ranks first..end-1 share, and what reading them once gains, in slot time."""

    first: int
    end: int
    depth: int
    gain: float


@dataclass(frozen=True, slots=True)
class Spans:
    """Tokens [start, end) of ranks first..first+count-1, one element a span; the private ones come last."""

    first: npt.NDArray[Any]
    count: npt.NDArray[Any]
    start: npt.NDArray[Any]
    end: npt.NDArray[Any]
    shared: int


def make_spans(segments: Sequence[Segment], lengths: npt.NDArray[Any], shape: PlanShape) -> Spans:
    """Spans of the segments, parents first, and of what each rank reads for itself."""
    ranks = len(lengths)
    covered = np.zeros(ranks, np.int64)
    shared: list[tuple[int, int, int, int]] = []
    for segment in reversed(segments):
        start = int(covered[segment.first])
        shared.append((segment.first, segment.end - segment.first, start, segment.depth))
        covered[segment.first : segment.end] = segment.depth
    first, count, starts, depth = np.array(shared, np.int64).reshape(-1, 4).T
    return Spans(
        first=np.concatenate((first, np.arange(ranks))),
        count=np.concatenate((count, np.ones(ranks, np.int64))),
        start=np.concatenate((starts, covered)) * shape.page_size,
        end=np.concatenate((depth * shape.page_size, lengths)),
        shared=len(segments),
    )


def tiles_of(spans: Spans, shape: PlanShape) -> npt.NDArray[Any]:
    """Tiles that each span's queries fill."""
    return np.where(spans.count * shape.group <= LOW_TILE, 1, -(-spans.count // shape.tile_rows))


def _rates(spans: Spans, shape: PlanShape, cost: CostModel) -> npt.NDArray[Any]:
    """Slot time of a token in one tile of each span."""
    low = spans.count * shape.group <= LOW_TILE
    return np.where(low, cost.private_token_us, cost.tile_token_us * shape.block_m / 128)


def choose_pieces(
    spans: Spans, shape: PlanShape, limits: PlanLimits, cost: CostModel, horizon: int
) -> npt.NDArray[Any] | None:
    """Tokens of a piece of each span, or None where the limits allow none.

    Tries cutting the most expensive span into 1, 2, 3 ... pieces, and all others into pieces that cost no more, and
    takes the cut that ends earliest.
    """
    tokens = spans.end - spans.start
    tokens[spans.shared :] += horizon // 2
    np.maximum(tokens, 1, out=tokens)
    rate, tiles = _rates(spans, shape, cost), tiles_of(spans, shape)
    price = tokens * rate
    longest = price.max(initial=1e-9)
    slots = shape.sm_count * cost.programs_per_sm / shape.kv_heads
    unit = max(shape.block_n, shape.page_size)
    # More than four rounds of programs for the expensive spans alone are never best.
    useful = min(tokens.max(initial=1) // unit, 4 * slots // max(1, tiles[price > longest / 2].sum()))
    candidates = np.array([1, *(count for count in PIECES if 1 < count <= useful)])
    piece = np.ceil(tokens / np.maximum(np.ceil(price * (candidates / longest)[:, None] - 1e-9), 1) / unit) * unit
    cuts = np.ceil(tokens / piece)

    items = (cuts * tiles).sum(1)
    most = _most_splits(spans, cuts)
    fits = (items <= limits.items) & (most <= limits.splits)
    if not fits[0]:
        return None
    in_tile = np.ceil(spans.count / tiles)
    time = np.minimum(piece * rate, price) + (cost.item_us + in_tile * cost.partial_us)
    slowest = time.max(1, initial=0.0)
    big = (cuts * tiles * (time > 0.7 * slowest[:, None])).sum(1)
    spread = (time * cuts * tiles).sum(1) / slots
    ends = np.maximum(spread, np.ceil(big / slots) * slowest) + most * cost.merge_us
    best = int(np.where(fits, ends, np.inf).argmin())
    chosen: npt.NDArray[Any] = piece[best].astype(np.int64)
    return chosen


def _most_splits(spans: Spans, cuts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Partial results of the row that has most, by candidate: cuts [candidates, spans] to [candidates]."""
    private = cuts[:, spans.shared :]
    if not spans.shared:
        most: npt.NDArray[Any] = private.max(1, initial=0.0)
        return most
    change = np.zeros((len(cuts), private.shape[1] + 1))
    for index in range(spans.shared):
        first = spans.first[index]
        change[:, first] += cuts[:, index]
        change[:, first + spans.count[index]] -= cuts[:, index]
    highest: npt.NDArray[Any] = (change.cumsum(1)[:, :-1] + private).max(1, initial=0.0)
    return highest


def make_items(
    spans: Spans, piece: npt.NDArray[Any], shape: PlanShape, cost: CostModel
) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """The work list, without rows and tables, and the number of partial results of each rank."""
    tokens = spans.end - spans.start
    cuts = np.maximum(-(-tokens // piece), 1)
    tiles = tiles_of(spans, shape)
    ranks = len(cuts) - spans.shared
    splits = np.zeros(ranks, np.int64)
    base = np.zeros(len(cuts), np.int64)
    for index in range(spans.shared):
        first = spans.first[index]
        base[index] = splits[first]
        splits[first : first + spans.count[index]] += cuts[index]
    base[spans.shared :] = splits
    splits += cuts[spans.shared :]

    repeats = cuts * tiles
    span = np.repeat(np.arange(len(cuts)), repeats)
    within = np.arange(len(span)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    tile, cut = np.divmod(within, cuts[span])
    height = np.where(tiles == 1, spans.count, shape.tile_rows)[span]
    items = np.zeros((len(span), 8), np.int32)
    items[:, 0] = spans.first[span] + tile * height
    items[:, 1] = np.minimum(height, spans.first[span] + spans.count[span] - items[:, 0])
    items[:, 2] = spans.start[span] + cut * piece[span]
    end = np.minimum(items[:, 2] + piece[span], spans.end[span])
    time = (end - items[:, 2]) * _rates(spans, shape, cost)[span]
    last = (span >= spans.shared) & (cut == cuts[span] - 1)
    items[:, 3] = np.where(last, OPEN_END, end)
    items[:, 4] = base[span] + cut
    items[:, 5] = last
    return items[np.argsort(-time, kind="stable")], splits
