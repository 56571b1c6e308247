"""The product at the heart of the kernels in `linear`: some rows of activations with some rows of a weight."""

import triton
import triton.language as tl

_PREFETCH_BYTES = tl.constexpr(32768)  # each program asks for so much before it waits
_CHUNK = tl.constexpr(64)  # elements of one prefetch
_VECTOR = tl.constexpr(8)  # elements that a thread loads at once: 16 bytes at 16 bits


@triton.jit
def request(
    weight, norm_weight, rows,
    size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    """Ask for the first weights of `rows` [block_n], before any activation is there.

    Returns:
        What `product` takes as `ahead`: the first tile of the weight (for one row of activations only) and of the
        norm's weight.
    """
    base = weight + rows.to(tl.int64) * size
    norm = _load_norm(norm_weight, 0, size, block_k)
    tile = 0.0
    if block_m == 1:
        tile = _load_tile(base, 0, size, block_k)
    elif pdl and size % _CHUNK == 0:
        _prefetch(base, size, max(1, _PREFETCH_BYTES // 2 // block_n // _CHUNK))
        if norm_weight is not None:
            _prefetch(norm_weight + tl.arange(0, 1), size, triton.next_power_of_2(size // _CHUNK))
    return tile, norm


@triton.jit
def product(
    x, norm_weight, weight, rows, m, count, ahead,
    eps,
    size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    """norm(x[m]) · weight[rows]ᵀ, without the norm where `norm_weight` is None.

    Args:
        x: [count, size] activations.
        norm_weight: [size] or None.
        weight: [N, size].
        rows: [block_n] rows of the weight, all inside.
        m: [block_m] rows of x; those from `count` on give what nobody may use.
        count: rows of x.
        ahead: what `request` gave.
        eps: of the norm.
        size: length of a row.
        block_m: rows of x; 1 is the style without tensor cores.
        block_n: rows of the weight.
        block_k: columns of a tile.
        stages: tiles in flight.

    Returns:
        [block_m, block_n] float32.
    """
    base = weight + rows.to(tl.int64) * size
    if block_m == 1:
        acc = _vector_product(
            x + tl.program_id(0) * size, norm_weight, base, ahead, eps, size, block_n, block_k, stages
        )
    else:
        acc = _dot_product(x, norm_weight, base, m, count, ahead, eps, size, block_m, block_n, block_k, stages)
    return acc


@triton.jit
def _vector_product(
    x, norm_weight, base, ahead,
    eps,
    size: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    acc = tl.zeros((block_n, block_k // _VECTOR), tl.float32)
    squares = tl.zeros((block_k,), tl.float32)
    # The first tile is used last: it was on its way already, and so does not hold up the others.
    first = _load_inputs(x, 0, size, block_k)
    for start in tl.range(block_k, size, block_k, num_stages=stages):
        tile = _load_tile(base, start, size, block_k)
        norm = _load_norm(norm_weight, start, size, block_k)
        inputs = _load_inputs(x, start, size, block_k)
        acc += _terms(inputs, norm, tile, norm_weight)
        squares += _squared(inputs)
    tile, norm = ahead
    acc += _terms(first, norm, tile, norm_weight)
    squares += _squared(first)
    total = tl.sum(acc, 1)
    if norm_weight is not None:
        total *= tl.rsqrt(tl.sum(squares, 0) / size + eps)
    return total[None, :]


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
def _dot_product(
    x, norm_weight, base, m, count, ahead,
    eps,
    size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
):  # fmt: skip
    _, norm = ahead
    k = tl.arange(0, block_k)
    inputs_at = x + m[:, None] * size + k[None, :]
    tile_at = base[None, :] + k[:, None]
    valid = (m < count)[:, None]
    acc = tl.zeros((block_m, block_n), tl.float32)
    squares = tl.zeros((block_m, block_k // _VECTOR), tl.float32)
    for start in tl.range(0, size, block_k, num_stages=stages):
        # One tile ahead by hand: the pipeliner leaves out loads of less than four bytes a thread.
        next_norm = _load_norm(norm_weight, start + block_k, size, block_k)
        if size % block_k == 0:
            inputs = tl.load(inputs_at + start, mask=valid, other=0.0)
            tile = tl.load(tile_at + start, eviction_policy="evict_first")
        else:
            inside = start + k < size
            inputs = tl.load(inputs_at + start, mask=valid & inside[None, :], other=0.0)
            tile = tl.load(tile_at + start, mask=inside[:, None], other=0.0, eviction_policy="evict_first")
        if norm_weight is not None:
            squares += _sum_within_threads(_squared(inputs))
            inputs *= norm[None, :]
        acc = tl.dot(inputs, tile, acc, input_precision="ieee")
        norm = next_norm
    if norm_weight is not None:
        acc *= tl.rsqrt(tl.sum(squares, 1) / size + eps)[:, None]
    return acc


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


@triton.jit
def _prefetch(base, size: tl.constexpr, chunks: tl.constexpr):
    """Bring the first chunks of the rows that begin at `base` [rows], of a whole number of them, into L2."""
    at = tl.minimum(tl.arange(0, chunks) * _CHUNK, size - _CHUNK)
    pointers = (base[:, None] + at[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], 128; mov.u32 $0, 0;",
        "=r,l",
        [pointers],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
