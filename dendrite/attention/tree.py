"""Attention of decoding rows over paged KV, reading what several rows share once.

The work list, the page tables and the lengths lie at fixed addresses on the device: a captured CUDA graph stays valid
when the plan changes, and steps follow one another without host work while rows only grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.attention.tree_cost import FEW_ROWS, LOW_TILE, CostModel, PlanLimits, PlanShape
from dendrite.attention.tree_plan import TreePlan, plan_tree
from dendrite.errors import InvalidArgument
from dendrite.kernels.attention import ITEM_FIELDS, TileConfig, merge_partials, partial_attention
from dendrite.transfer import Staging

MAX_SLOTS = 4096
MAX_SPLITS = 128


@dataclass(slots=True)
class TreeCounters:
    """What has run: batches by kind, and tokens of KV that a layer read or was spared, over all steps."""

    tree_batches: int = 0
    flat_batches: int = 0
    steps: int = 0
    tokens_read: int = 0
    tokens_saved: int = 0


def plan_limits(rows: int, sm_count: int = 132) -> PlanLimits:
    """Capacity of a launch for so many rows: `MAX_SLOTS` partial results in all."""
    splits = min(MAX_SPLITS, MAX_SLOTS // rows)
    if splits < 1:
        raise InvalidArgument("rows", rows, f"must be at most {MAX_SLOTS}")
    return PlanLimits(items=2 * rows + sm_count, splits=splits)


def default_tile(rows: int, group: int, head_dim: int) -> TileConfig:
    """Tile sizes for a launch of so many rows: the fastest on an H100 (`benchmarks.attention --sweep`).

    Many rows are mostly rows with few tokens of their own behind a shared prefix of some thousand. Those are faster
    with two stages, which leave room for more programs: a decode step by 2 to 10 %. Behind 32,768 shared tokens three
    stages would be faster, by a fifth of the attention.
    """
    if rows * group <= LOW_TILE:
        return TileConfig(block_m=16, block_n=128, small_n=128, warps=4, stages=2, small_stages=2)
    stages = 2 if rows > FEW_ROWS and head_dim <= 64 else 3
    return TileConfig(block_m=64, block_n=64, small_n=64, warps=4, stages=stages, small_stages=stages)


def apart_tile(head_dim: int, page_size: int) -> TileConfig:
    """Tile sizes for rows that share nothing, over keys and values of 8 bits.

    Those are widened between memory and the tensor cores, which costs what reading them does unless two warps do it for
    a tile of few queries: on an H100, 130 us a layer instead of 170 for 256 rows of 2,048 tokens of TinyLlama, and 388
    instead of 486 of Llama-3-8B. Shared tokens would take twice as long that way.
    """
    keys = max(page_size, 64 if head_dim <= 64 else 32)
    return TileConfig(block_m=LOW_TILE, block_n=keys, small_n=keys, warps=2, stages=3, small_stages=3)


class TreeAttention:
    """Decode attention over one KV storage, for up to `max_rows` rows.

    Attributes:
        pages: int32 on the device; the rows' page tables, one after the other.
        row_start: [max_rows] int32 on the device; where each row's table begins in `pages`.
        lengths: [max_rows] int32 on the device; tokens that each row's query sees. Whoever advances the rows writes
            them, in the order of the stream; no method here does.
        counters: what has run, see `count`.
        apart: whether `decode` launches the kernel for rows that share nothing; set it to what `reads_apart` says of
            the plan. Plans are good for either.
    """

    def __init__(
        self,
        storage_pages: Tensor,
        num_heads: int,
        max_rows: int,
        max_table: int,
        sm_count: int = 132,
        pdl: bool = False,
        cost: CostModel | None = None,
        tile: TileConfig | None = None,
        kv_scales: Tensor | None = None,
    ) -> None:
        """Allocate everything that the kernels use.

        Args:
            storage_pages: [layers, pages, 2, page_size, Hkv, D], keys before values.
            num_heads: query heads, a multiple of Hkv.
            max_rows: most rows of a batch.
            max_table: most entries of all page tables of a batch together.
            sm_count: multiprocessors of the device.
            pdl: launch with programmatic dependent launch (Hopper): the kernels before must trigger or end.
            cost: of programs; None picks by the work.
            tile: one tile configuration for all launches; None picks by the number of rows.
            kv_scales: [layers, 2, Hkv] float32, by which stored keys and values are multiplied; None is 1.

        Raises:
            InvalidArgument: the heads do not divide, or the head or page size is not a power of two.
        """
        layers, _, _, page_size, kv_heads, head_dim = storage_pages.shape
        check_shape(num_heads, kv_heads, head_dim, page_size)
        device = storage_pages.device
        self._layers = tuple(storage_pages)
        self._kv_scales = (None,) * layers if kv_scales is None else tuple(kv_scales)
        self._heads, self._kv_heads, self._dim, self._page_size = num_heads, kv_heads, head_dim, page_size
        self._max_rows, self._sm_count, self._pdl = max_rows, sm_count, pdl
        self._cost, self._tile = cost, tile
        narrow = storage_pages.dtype == torch.float8_e4m3fn and tile is None and num_heads // kv_heads <= LOW_TILE
        self._apart_tile = apart_tile(head_dim, page_size) if narrow else None
        self.apart = False
        self._token_bytes = layers * 2 * kv_heads * head_dim * storage_pages.element_size()
        self.counters = TreeCounters()

        items = self._limits(max_rows).items
        sizes = (1, max_rows, max_rows, max_rows, items * ITEM_FIELDS, max_table)
        self._sections = _aligned(sizes)
        meta = torch.zeros(self._sections[-1], dtype=torch.int32, device=device)
        self._staging = Staging(meta)
        views = [meta[start : start + size] for start, size in zip(self._sections, sizes, strict=False)]
        self._item_count, self._splits, self._order, self.row_start, self._items, self.pages = views
        self.lengths = torch.zeros(max_rows, dtype=torch.int32, device=device)
        slots = max(rows * self._limits(rows).splits for rows in range(1, max_rows + 1))
        # The result is rounded to 16 bits anyway, and at many rows these bytes are what merging costs.
        partial = torch.bfloat16 if storage_pages.dtype in (torch.bfloat16, torch.float8_e4m3fn) else torch.float32
        self._partials = torch.zeros(slots, num_heads, head_dim, dtype=partial, device=device)
        self._arrivals = torch.zeros(kv_heads, dtype=torch.int32, device=device)
        self._logsums = torch.zeros(slots, num_heads, dtype=torch.float32, device=device)

    @property
    def kv_bytes_saved(self) -> int:
        """Bytes of KV that the counted steps did not read because rows shared them."""
        return self.counters.tokens_saved * self._token_bytes

    def plan(
        self,
        tables: Sequence[npt.NDArray[Any]],
        lengths: Sequence[int] | npt.NDArray[Any],
        horizon: int = 0,
        rows: int | None = None,
    ) -> TreePlan:
        """Plan a batch and upload the work list and page tables, without waiting for the device.

        Args:
            tables: page table of each row, reserved pages included, any integer type.
            lengths: tokens that each row's query sees in the next step; 0 is an idle row.
            horizon: tokens that a row may grow by before the next plan.
            rows: rows that `decode` will be called with; None is the number of tables.

        Raises:
            InvalidArgument: more rows or table entries than there is room for, or a table too short.
        """
        rows = len(tables) if rows is None else rows
        if not len(tables) <= rows <= self._max_rows:
            raise InvalidArgument("rows", rows, f"must be {len(tables)} to {self._max_rows}")
        limits = self._limits(max(1, rows))
        cost = self._cost or CostModel.of(self._dim, rows, max(lengths, default=0))
        plan = plan_tree(tables, lengths, self._shape(max(1, rows)), limits, horizon, cost)
        self._upload(plan)
        return plan

    def upload_tables(self, plan: TreePlan, tables: Sequence[npt.NDArray[Any]]) -> TreePlan:
        """Upload tables that only gained reserved pages since `plan`, which stays in force; returns it with them.

        Raises:
            InvalidArgument: more table entries than there is room for.
        """
        grown = plan.with_tables(tables)
        self._upload(grown)
        return grown

    def reads_apart(self, plan: TreePlan, rows: int) -> bool:
        """Whether `apart` launches are right for the plan, and faster than others."""
        return plan.kind == "flat" and len(self.ways(rows)) > 1

    def ways(self, rows: int) -> tuple[bool, ...]:
        """The values of `apart` that make a difference to launches for so many rows."""
        few = rows * (self._heads // self._kv_heads) <= LOW_TILE
        return (False,) if few or self._apart_tile is None else (False, True)

    def clear(self) -> None:
        """Empty the work list, so that a launch for any number of rows finds nothing to do until the next plan."""
        self._item_count.zero_()
        self._splits.zero_()

    def decode(self, layer: int, query: Tensor, out: Tensor, rows: int, upcoming: Tensor | None = None) -> None:
        """Attend with the first `rows` rows' queries; safe to capture in a CUDA graph.

        Args:
            layer: index of the decoder layer.
            query: [>= rows, Hq, D], contiguous.
            out: the same shape and type, written; zeros where a row is idle.
            rows: rows of the launch, see `plan`.
            upcoming: weights that the next product will read, brought into L2 while attention leaves the memory idle.
        """
        limits = self._limits(rows)
        partial_attention(
            query,
            self._layers[layer],
            pages=self.pages,
            lengths=self.lengths,
            items=self._items,
            item_count=self._item_count,
            order=self._order,
            partials=self._partials,
            logsums=self._logsums,
            splits=limits.splits,
            max_items=limits.items,
            tile=self._apart_tile if self.apart and self._apart_tile else self._tile_for(rows),
            scale=1.0 / math.sqrt(self._dim),
            kv_scales=self._kv_scales[layer],
            upcoming=upcoming,
            merge=(self._splits, self._arrivals, out) if rows == 1 else None,
            pdl=self._pdl,
        )
        if rows == 1:
            return
        merge_partials(self._partials, self._logsums, self._splits, out, rows=rows, splits=limits.splits, pdl=self._pdl)

    def count(self, plan: TreePlan, steps: int) -> None:
        """Add `steps` decode steps by `plan` to the counters."""
        counters = self.counters
        counters.tree_batches += plan.kind == "tree"
        counters.flat_batches += plan.kind == "flat"
        counters.steps += steps
        grown = len(plan.order) * (steps * (steps - 1) // 2)
        counters.tokens_read += plan.tokens * steps + grown
        counters.tokens_saved += (plan.flat_tokens - plan.tokens) * steps

    def _limits(self, rows: int) -> PlanLimits:
        return plan_limits(rows, self._sm_count)

    def _tile_for(self, rows: int) -> TileConfig:
        return self._tile or default_tile(rows, self._heads // self._kv_heads, self._dim)

    def _shape(self, rows: int) -> PlanShape:
        tile = self._tile_for(rows)
        return PlanShape(
            page_size=self._page_size,
            group=self._heads // self._kv_heads,
            kv_heads=self._kv_heads,
            block_m=tile.block_m,
            block_n=tile.block_n,
            sm_count=self._sm_count,
        )

    def _upload(self, plan: TreePlan) -> None:
        count, splits, order, row_start, items, pages, _ = self._sections
        room = len(self.pages)
        if len(plan.pages) > room:
            raise InvalidArgument("tables", len(plan.pages), f"must hold at most {room} pages together")
        memory = self._staging.take()
        memory[count] = len(plan.items)
        memory[splits:order] = 0
        memory[splits : splits + len(plan.splits)] = plan.splits
        memory[order : order + len(plan.order)] = plan.order
        memory[row_start : row_start + len(plan.row_start)] = plan.row_start
        items_end, pages_end = items + plan.items.size, pages + len(plan.pages)
        memory[items:items_end] = plan.items.reshape(-1)
        memory[pages:pages_end] = plan.pages
        self._staging.send((count, items_end), (pages, pages_end))


def _aligned(sizes: Sequence[int]) -> list[int]:
    """Where sections of so many int32 begin, each at 256 bytes, and where the last ends."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // 64) * 64)
    return starts


def check_shape(num_heads: int, kv_heads: int, head_dim: int, page_size: int) -> None:
    """Refuse what the kernels can't serve.

    Raises:
        InvalidArgument: the heads do not divide, or the head or page size is not a power of two they take.
    """
    if num_heads % kv_heads or num_heads > 64 * kv_heads:
        raise InvalidArgument("num_heads", num_heads, f"must be 1 to 64 times the {kv_heads} KV heads")
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise InvalidArgument("head_dim", head_dim, "must be a power of two of at least 16")
    if page_size > 64 or page_size & (page_size - 1):
        raise InvalidArgument("page_size", page_size, "must be a power of two of at most 64")
