"""Launch configurations of the kernels in `linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dendrite.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """How a product is divided.

    block_n: weight rows of a program.
    block_k: columns of a tile.
    warps: of a program.
    stages: tiles in flight.
    """

    block_n: int
    block_k: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for field in ("block_n", "block_k", "warps"):
            value = getattr(self, field)
            if value < 1 or value & (value - 1):
                raise InvalidArgument(field, value, "must be a power of two")

    def launch_options(self, pdl: bool) -> dict[str, Any]:
        """The keywords that Triton takes at a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "launch_pdl": pdl}


def choose_for_bytes(columns: int, size: int) -> LinearConfig:
    """The configuration for a weight [columns, size] of 8-bit elements with one scale a row.

    As many bytes in flight as `choose` has where rows are long, fewer where they are short: on an H100, 10 % of
    TinyLlama's products.
    """
    block_n = 4 if columns <= 16384 else 8
    if size > 4096:
        return LinearConfig(block_n, 4096, warps=4, stages=2)
    if size > 2048 or columns > 8192:
        return LinearConfig(block_n, min(1024, 1 << (size - 1).bit_length()), warps=4, stages=3)
    return LinearConfig(block_n, min(2048, 1 << (size - 1).bit_length()), warps=4, stages=2)


def choose(columns: int, size: int) -> LinearConfig:
    """The configuration for a weight [columns, size].

    The grid should fill the multiprocessors in few waves, with 32 KiB of weights or more in flight on each. The first
    tile is asked for before the kernel ahead has ended, so wide tiles pay: on an H100, 2,048 columns instead of 1,024
    for rows of 5,632 save 5 % of TinyLlama's step, for rows of 14,336 1 % of Llama-3-8B's; for rows of 4,096 they lose.
    """
    block_n = 4 if columns <= 16384 else 8
    block_k = 1024 if 2048 < size <= 4096 else 2048
    return LinearConfig(block_n, min(block_k, 1 << (size - 1).bit_length()), warps=4, stages=3)
