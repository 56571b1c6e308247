"""The product at the heart of the kernels in `linear`: one row of activations with some rows of a weight."""

import triton
import triton.language as tl

from dendrite.kernels.fp8 import load_factors

_VECTOR = tl.constexpr(8)  # elements that a thread loads at once: 16 bytes at 16 bits


@triton.jit
def request(base, norm_weight, size: tl.constexpr, block_k: tl.constexpr):
    """Ask for the first weights of the rows that begin at `base` [block_n], before any activation is there.

    Returns:
        What `product` takes as `ahead`: the first tile of the weight and of the norm's weight.
    """
    norm = _load_norm(norm_weight, 0, size, block_k)
    return _load_tile(base, 0, size, block_k), norm


@triton.jit
def product(
    x, norm_weight, base, ahead, scales, rows, groups,
    eps,
    size: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    group: tl.constexpr,
):  # fmt: skip
    """norm(x) · weight rowsᵀ, without the norm where `norm_weight` is None.

    Args:
        x: [size] activations.
        norm_weight: [size] or None.
        base: [block_n] pointers to where the rows of the weight begin.
        ahead: what `request` gave.
        scales: [N, groups] of the weight, or None.
        rows: [block_n], which rows of the weight these are.
        groups: scales of a row.
        eps: of the norm.
        size: length of a row.
        block_k: columns of a tile.
        stages: tiles in flight.
        group: columns that share a scale, a multiple of 8; 0 where a row has one.

    Returns:
        [1, block_n] float32.
    """
    acc = tl.zeros((base.shape[0], block_k // _VECTOR), tl.float32)
    squares = tl.zeros((block_k,), tl.float32)
    # The first tile is used last: it was on its way already, and so does not hold up the others.
    first = _load_inputs(x, 0, size, block_k)
    if group > 0:  # scales are too small for asynchronous copies, so each tile's are loaded one tile ahead
        first_factors = _factors(scales, rows, groups, 0, size, block_k, group)
        factors = _factors(scales, rows, groups, block_k, size, block_k, group)
    for start in tl.range(block_k, size, block_k, num_stages=stages):
        tile = _load_tile(base, start, size, block_k)
        norm = _load_norm(norm_weight, start, size, block_k)
        inputs = _load_inputs(x, start, size, block_k)
        terms = _terms(inputs, norm, tile, norm_weight)
        if group > 0:
            following = _factors(scales, rows, groups, start + block_k, size, block_k, group)
            terms *= factors
            factors = following
        acc += terms
        squares += _squared(inputs)
    tile, norm = ahead
    terms = _terms(first, norm, tile, norm_weight)
    if group > 0:
        terms *= first_factors
    acc += terms
    squares += _squared(first)
    total = tl.sum(acc, 1)
    if norm_weight is not None:
        total *= tl.rsqrt(tl.sum(squares, 0) / size + eps)
    if scales is not None and group == 0:
        total *= tl.load(scales + rows)
    return total[None, :]


@triton.jit
def _factors(
    scales, rows, groups, start, size: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr
):  # fmt: skip
    """Factors of a tile's terms, eight columns each."""
    k = start + tl.arange(0, block_k // _VECTOR) * _VECTOR
    at = scales + (rows.to(tl.int64) * groups)[:, None] + (k // group)[None, :]
    return load_factors(at, (k < size)[None, :])


@triton.jit
def _load_inputs(x, start, size: tl.constexpr, block_k: tl.constexpr):
    k = start + tl.arange(0, block_k)
    return tl.load(x + k, mask=k < size, other=0.0)


@triton.jit
def _terms(inputs, norm, tile, norm_weight):
    """What a tile adds to the products, not yet summed over the threads."""
    wide = inputs.to(tl.float32)
    if norm_weight is not None:
        wide *= norm.to(tl.float32)
    return _sum_within_threads(tile.to(tl.float32) * wide[None, :])


@triton.jit
def _squared(inputs):
    wide = inputs.to(tl.float32)
    return wide * wide


@triton.jit
def _sum_within_threads(terms):
    """Sum neighbours [rows, columns] to [rows, columns / 8], so that a loop needs no exchange between threads."""
    return tl.sum(tl.reshape(terms, (terms.shape[0], terms.shape[1] // _VECTOR, _VECTOR)), 2)


@triton.jit
def _load_tile(base, start, size: tl.constexpr, block_k: tl.constexpr):
    """Columns from `start` on of the weight rows that begin at `base` [block_n]."""
    k = start + tl.arange(0, block_k)
    return tl.load(base[:, None] + k[None, :], mask=(k < size)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_norm(norm_weight, start, size: tl.constexpr, block_k: tl.constexpr):
    """The norm's weight from `start` on, or 1 where there is no norm."""
    norm = 1.0
    if norm_weight is not None:
        k = start + tl.arange(0, block_k)
        norm = tl.load(norm_weight + k, mask=k < size, other=0.0)
    return norm
