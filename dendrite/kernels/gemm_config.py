"""Launch configurations of the kernels in `gemm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dendrite.errors import InvalidArgument

Kind = Literal["qkv", "output", "gate_up", "down", "linear"]


@dataclass(frozen=True, slots=True)
class GemmConfig:
    """How a product is divided.

    block_m: rows of activations of a program, at least 16; a batch is padded to a multiple.
    block_n: rows of the weight of a program, at least 16; from 64 on the tensor cores read shared memory themselves.
    block_k: columns of a tile.
    splits: programs that share the columns of one output; more than 1 leaves partial sums.
    warps: of a program.
    stages: tiles in flight.
    ahead: bytes of each row of the weight that a program asks for before it waits for the kernel before it.
    """

    block_m: int
    block_n: int
    block_k: int
    splits: int = 1
    warps: int = 4
    stages: int = 4
    ahead: int = 512

    def __post_init__(self) -> None:
        for field in ("block_m", "block_n", "block_k", "warps"):
            value = getattr(self, field)
            if value < 1 or value & (value - 1):
                raise InvalidArgument(field, value, "must be a power of two")
        for field in ("block_m", "block_n", "block_k"):
            value = getattr(self, field)
            if value < 16:
                raise InvalidArgument(field, value, "must be at least 16")
        if self.splits < 1:
            raise InvalidArgument("splits", self.splits, "must be at least 1")
        if self.ahead < 0 or self.ahead % 16:
            raise InvalidArgument("ahead", self.ahead, "must be a multiple of 16 bytes")

    def span(self, size: int) -> int:
        """Columns of a program, of `size` in all: a multiple of `block_k`."""
        tiles = -(-size // self.block_k)
        return -(-tiles // self.splits) * self.block_k

    def divides(self, size: int) -> bool:
        """Whether all programs have `span(size)` columns, so that nothing need be masked."""
        return self.span(size) * self.splits == size

    def launch_options(self, pdl: bool) -> dict[str, Any]:
        """The keywords that Triton takes at a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages, "launch_pdl": pdl}


# Block_n, block_k of 16-bit elements, warps and stages by block_m: the fastest on an H100 at the sizes of TinyLlama
# (`benchmarks.gemm`). At 64 rows and less, two programs fit a multiprocessor, so that grids of more programs than
# multiprocessors need no second wave.
_TILES: dict[Kind, dict[int, tuple[int, int, int, int]]] = {
    "qkv": {16: (64, 256, 4, 3), 32: (64, 128, 4, 4), 64: (64, 128, 4, 3), 128: (64, 64, 4, 4)},
    "output": {16: (64, 128, 4, 4), 32: (64, 64, 4, 8), 64: (64, 64, 4, 6), 128: (64, 64, 4, 4)},
    "gate_up": {16: (64, 128, 4, 5), 32: (64, 128, 4, 4), 64: (128, 64, 8, 6), 128: (128, 128, 8, 3)},
    "down": {16: (64, 128, 4, 4), 32: (64, 64, 4, 8), 64: (64, 64, 4, 6), 128: (64, 64, 4, 4)},
    "linear": {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (64, 128, 4, 3), 128: (128, 64, 8, 3)},
}
_AHEAD = {("output", 128): 1024, ("gate_up", 32): 1024, ("down", 16): 0}  # where it is not 512
_PROGRAMS = 100  # fewer do not keep the memory busy
_LONG_PROGRAMS = 200  # of `down`, whose rows are long, once the activations weigh too
_MOST_SPLITS = 8


def choose(kind: Kind, rows: int, columns: int, size: int, element_size: int = 2) -> GemmConfig:
    """The configuration for `rows` activation rows and a weight [columns, size] of elements of that many bytes."""
    block_m = min(128, max(16, 1 << (rows - 1).bit_length()))
    block_n, block_k, warps, stages = _TILES[kind][block_m]
    block_k = block_k * 2 // max(2, element_size)  # elements of 8 bits are widened in registers, which are as many
    splits = 1
    if kind not in ("linear", "gate_up"):
        tiles = -(-columns // block_n) * -(-rows // block_m)
        wanted = _LONG_PROGRAMS if kind == "down" and block_m > 16 else _PROGRAMS
        while splits < _MOST_SPLITS and tiles * splits < wanted and _halves(size // splits, block_k):
            splits *= 2
    return GemmConfig(block_m, block_n, block_k, splits, warps, stages, _AHEAD.get((kind, block_m), 512))


def _halves(span: int, block_k: int) -> bool:
    """Whether halving a program's columns leaves enough tiles, and none that is half empty."""
    return span >= 8 * block_k and (span % (2 * block_k) == 0 or span % block_k != 0)
