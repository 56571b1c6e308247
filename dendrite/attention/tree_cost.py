"""What the planner of tree attention weighs: the cost of programs, limits of the launch, shape of cache and device."""

from __future__ import annotations

from dataclasses import dataclass

LOW_TILE = 16
"""Queries of the lowest tile, the least that tensor cores take."""
FEW_ROWS = 64
"""Up to here a launch may be bound by latency rather than by its work."""
_LITTLE_WORK = 400_000
"""Rows times tokens of the longest, up to which it is: on an H100 64 rows of 4,160 tokens are, of 32,832 are not."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a program costs, in microseconds of one program slot while all slots are busy.

    Attributes:
        programs_per_sm: slots of a multiprocessor.
        item_us: start and end of a program.
        tile_token_us: a token for a tile of 128 queries.
        private_token_us: a token for the lowest tile.
        partial_us: writing and merging the partial result of a row's query group.
        merge_us: one more partial result in the row that has most, in time and not in work.
        least_gain_us: what reading a segment once must save, in slot time; infinity never shares.
    """

    programs_per_sm: int = 3
    item_us: float = 2.0
    tile_token_us: float = 0.035
    private_token_us: float = 0.012
    partial_us: float = 0.2
    merge_us: float = 0.05
    least_gain_us: float = 0.0

    @classmethod
    def of(cls, head_dim: int, rows: int, longest: int) -> CostModel:
        """The model for a head size and a launch of so many rows, the longest of `longest` tokens.

        Fitted on an H100 at 64 and 128. Where there is little work, fewer programs than fit are better: each more is
        one more partial result to merge.
        """
        if head_dim <= 64:
            little = rows <= FEW_ROWS and rows * longest <= _LITTLE_WORK
            return cls(programs_per_sm=2 if little else 3)
        scale = head_dim / 64
        return cls(programs_per_sm=2, tile_token_us=0.024 * scale, private_token_us=0.01 * scale, partial_us=0.3)


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """Capacity of the launch that a plan is for: items in the work list, and partial results of a row."""

    items: int
    splits: int


@dataclass(frozen=True, slots=True)
class PlanShape:
    """What the planner has to know of the cache, the kernel and the device.

    Attributes:
        page_size: tokens of a page.
        group: query heads that share a KV head.
        kv_heads: KV heads, each a program for every item.
        block_m: queries of a shared item's tile.
        block_n: tokens that the kernel takes at once; pieces are whole numbers of these.
        sm_count: multiprocessors of the device.
    """

    page_size: int
    group: int
    kv_heads: int
    block_m: int
    block_n: int
    sm_count: int

    @property
    def tile_rows(self) -> int:
        """Rows of a shared item, at most."""
        return max(1, self.block_m // self.group)


def tile_rate(rows: int, shape: PlanShape, cost: CostModel) -> float:
    """Slot time of one token for tiles of so many rows in all."""
    if rows * shape.group <= LOW_TILE:
        return cost.private_token_us
    return -(-rows // shape.tile_rows) * cost.tile_token_us * shape.block_m / 128
