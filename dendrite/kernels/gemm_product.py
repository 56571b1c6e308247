"""The product of a program's tiles on the tensor cores, with weights of 16 or 8 bits: the loop of `gemm`."""

import triton
import triton.language as tl

from dendrite.kernels.fp8 import load_factors


@triton.jit
def tile_product(
    x, base, m, count, begin, scales, rows, groups,
    size: tl.constexpr,
    span: tl.constexpr,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    group: tl.constexpr,
):  # fmt: skip
    """weight[n, begin : begin + span] · x[m, begin : begin + span]ᵀ as [block_n, block_m] float32.

    Args:
        x: [count, size].
        base: [block_n], pointers to the beginnings of the weight's rows.
        m: [block_m] rows of x; those from `count` on count as zeros.
        count: rows of x.
        begin: first column.
        scales: [N, groups] of the weight, or None; those of whole rows (`group` 0) are left to the caller.
        rows: [block_n], which rows of the weight these are.
        groups: scales of a row.
        size: columns of x and of the weight.
        span: columns to multiply, a multiple of block_k.
        whole: whether all programs' columns are inside.
        block_m: rows of x.
        block_n: rows of the weight.
        block_k: columns of a tile.
        stages: tiles in flight.
        group: columns that share a scale, a power of two; 0 where a row has one.
    """
    k = begin + tl.arange(0, block_k)
    tile_at = base[:, None] + k[None, :]
    inputs_at = x + m.to(tl.int64)[:, None] * size + k[None, :]
    valid = (m < count)[:, None]
    acc = tl.zeros((block_n, block_m), tl.float32)
    for start in tl.range(0, span, block_k, num_stages=stages):
        if whole:
            tile = tl.load(tile_at + start, eviction_policy="evict_first")
            inputs = tl.load(inputs_at + start, mask=valid, other=0.0, eviction_policy="evict_last")
        else:
            inside = (start + k < size)[None, :]
            tile = tl.load(tile_at + start, mask=inside, other=0.0, eviction_policy="evict_first")
            inputs = tl.load(inputs_at + start, mask=valid & inside, other=0.0, eviction_policy="evict_last")
        if scales is not None:
            tile = _widened(tile, scales, rows, groups, begin + start, size, block_k, group).to(inputs.dtype)
        acc = tl.dot(tile, tl.trans(inputs), acc, input_precision="ieee")
    return acc


@triton.jit
def _widened(tile, scales, rows, groups, start, size: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr):
    """A tile [rows, block_k] of FP8 elements from column `start` on, times the scales of its groups, float32."""
    wide = tile.to(tl.float32)
    if group > 0:
        shared: tl.constexpr = min(group, block_k)  # columns of the tile that share a scale
        k = start + tl.arange(0, block_k // shared) * shared
        at = scales + (rows.to(tl.int64) * groups)[:, None] + (k // group)[None, :]
        factors = load_factors(at, (k < size)[None, :])
        blocks = tl.reshape(wide, (tile.shape[0], block_k // shared, shared)) * factors[:, :, None]
        wide = tl.reshape(blocks, (tile.shape[0], block_k))
    return wide
