"""Launch configurations of the kernels in `linear`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dendrite.errors import InvalidArgument

Kind = Literal["qkv", "residual", "gate_up", "linear"]


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """How a product is divided.

    block_m: activation rows of a program; 1 multiplies on the CUDA cores, 16 and more on the tensor cores.
    block_n: weight rows of a program.
    block_k: columns of a tile.
    warps: of a program.
    stages: tiles in flight.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for field in ("block_m", "block_n", "block_k", "warps"):
            value = getattr(self, field)
            if value < 1 or value & (value - 1):
                raise InvalidArgument(field, value, "must be a power of two")
        if 1 < self.block_m < 16:
            raise InvalidArgument("block_m", self.block_m, "must be 1, or at least 16")

    def launch_options(self, pdl: bool) -> dict[str, Any]:
        """The keywords that Triton takes at a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "launch_pdl": pdl}


def choose(kind: Kind, rows: int, columns: int, size: int, element_size: int = 2) -> LinearConfig:
    """The configuration for `rows` activation rows and a weight [columns, size] of elements of that many bytes.

    The grid should fill the multiprocessors in one wave, with 32 KiB of weights or more in flight on each.
    """
    if rows == 1:
        return _vector(columns, size)
    block_m = min(64, max(16, 1 << (rows - 1).bit_length()))
    block_k = _largest_divisor(size, (512 if block_m == 16 else 256) // element_size)
    block_n = 16 if columns <= 8192 else 32
    if block_m > 16:
        block_n *= 2
    return LinearConfig(block_m, block_n, block_k, warps=4, stages=4)


def _vector(columns: int, size: int) -> LinearConfig:
    block_n = 4 if columns <= 16384 else 8
    block_k = 2048 if size <= 2048 else 1024
    return LinearConfig(1, block_n, min(block_k, 1 << (size - 1).bit_length()), warps=4, stages=3)


def _largest_divisor(size: int, limit: int) -> int:
    """The largest power of two up to `limit` that divides `size`, or 64 where that would be small."""
    while limit > 64 and size % limit:
        limit //= 2
    return limit
