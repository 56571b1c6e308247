"""Bring memory into the L2 cache before it is needed: weights, while something else keeps the memory waiting.

The instruction is Hopper's bulk prefetch: fire and forget, of any multiple of 16 bytes, without a register or shared
memory for what comes. Each is issued by one thread. It changes nothing but time, so the pointers may be of weights that
a later kernel reads; nothing may be prefetched that another kernel is still writing.
"""

import triton
import triton.language as tl

_GRAIN = tl.constexpr(128)  # bytes: a line of the cache


@triton.jit
def prefetch_share(pointer, bytes_total, program, programs):
    """Bring one program's share of a stretch of memory into L2; nothing where `pointer` is None.

    Args:
        pointer: to the first element, aligned to 16 bytes, or None.
        bytes_total: of the stretch, int32 or int64; a rest of less than 16 is left out.
        program: which share, from 0 on.
        programs: into how many shares the stretch is divided.
    """
    if pointer is not None:
        first, length = share_of_warps(bytes_total, program, programs, tl.extra.cuda.num_threads())
        _prefetch(pointer.to(tl.int64) + first, length)


@triton.jit
def share_of_warps(bytes_total, program, programs, threads: tl.constexpr):
    """Divide a program's share of a stretch among its warps, in whole lines of the cache.

    The instruction takes its operands from registers that a warp has once, so that a warp whose threads ask for
    different memory issues it 32 times, in a loop.

    Returns:
        [threads] int64, the first byte of each thread's warp, and [threads] int32, how many: a multiple of 16, 0 where
        nothing is left.
    """
    warps: tl.constexpr = threads // 32
    chunk = tl.cdiv(tl.cdiv(bytes_total, programs * warps), _GRAIN) * _GRAIN
    first = (program * warps + tl.arange(0, threads) // 32).to(tl.int64) * chunk
    # The end of the stretch may be so far behind that the difference needs 64 bits.
    length = tl.maximum(tl.minimum(chunk, bytes_total - first), 0) // 16 * 16
    return first, length.to(tl.int32)


@triton.jit
def prefetch_rows(base, bytes_each: tl.constexpr):
    """Bring the first `bytes_each` bytes of the rows that begin at `base` [rows, a power of two] into L2.

    Rows and `bytes_each` must be aligned to 16 bytes.
    """
    threads: tl.constexpr = tl.extra.cuda.num_threads()
    # With as many elements as threads, no two threads hold the same one.
    parts: tl.constexpr = max(1, threads // base.shape[0])
    chunk: tl.constexpr = (bytes_each + parts * 16 - 1) // (parts * 16) * 16
    first = tl.arange(0, parts)[None, :] * chunk
    pointers = base.to(tl.int64)[:, None] + first
    length = tl.zeros_like(pointers).to(tl.int32) + tl.minimum(chunk, bytes_each - first)
    _prefetch(pointers, length)


@triton.jit
def _prefetch(pointers, length):
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.gt.s32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointers, length],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
