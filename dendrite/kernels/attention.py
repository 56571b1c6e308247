"""Triton kernels of tree attention: partial results over a work list, then their merge by log-sum-exp.

An item of the work list is eight int32: (first rank, ranks, start token, end token, split, open, row, table). Its
ranks have the same pages over tokens [start, end), read once for all of them through row `row`'s page table, which
begins at pages[table]. A program takes the queries of an item's ranks that use one KV head as one tile; each query's
normalised result over those tokens goes to partial slot row * splits + split with the base-2 logarithm of its sum of
exponentials.

A tile is `block_m` queries high, or 16 where the item's queries fit: one launch holds both, so that short private
items fill the gaps that the long shared ones leave.

Softmax in the running form of FlashAttention-2 (Dao 2023, algorithm 1), exponentials in base 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dendrite.kernels.pdl import wait_for_previous
from dendrite.kernels.prefetch import prefetch_share

ITEM_FIELDS = 8
LOG2_E = 1.4426950408889634
SMALL_M = tl.constexpr(16)
_MERGE_COLUMNS = 512  # of a program of `merge_kernel`, four a thread
_FEW_ROWS = 16  # up to here rows are divided among more programs
_BY_HEADS = ((32, 32, 2), (64, 16, 1))  # up to so many rows: partial results that a program takes at once, its warps
_NARROW_HEAD = 64  # wider ones are merged faster by `merge_kernel` at any number of rows


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Tile sizes and launch parameters of the partial kernel.

    Attributes:
        block_m: height (queries) of the tile of a shared item; 16 compiles the low tile only, for batches without one.
        block_n: keys a step of the high tile.
        small_n: keys a step of the low tile.
        warps: warps of a program.
        stages: depth of the load pipeline of the high tile.
        small_stages: depth of the load pipeline of the low tile.
        registers: most registers of a thread, so that more programs fit a multiprocessor; None leaves it to the
            compiler.
    """

    block_m: int
    block_n: int
    small_n: int
    warps: int
    stages: int
    small_stages: int
    registers: int | None = None


@triton.jit
def _block(
    query, key_pointers, value_pointers, mask, scale, top, total, mixed,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into the running softmax: its maxima, sums and weighted values."""
    if MASKED:
        keys = tl.load(key_pointers, mask=mask[:, None], other=0.0)
        values = tl.load(value_pointers, mask=mask[:, None], other=0.0)
    else:
        keys = tl.load(key_pointers)
        values = tl.load(value_pointers)
    scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(mask[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None]
    mixed = tl.dot(weights.to(query.dtype), values.to(query.dtype), mixed, input_precision=PRECISION)
    return higher, total, mixed


@triton.jit
def _tile(
    queries, memory, pages, order, partials, logsums,
    first, count, start, end, split, table, head, splits, scale, kv_scales,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Attend with the queries of one item and KV head to its tokens, and store the partial results."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    SLOT: tl.constexpr = KV_HEADS * DIM
    place = tl.arange(0, BLOCK_M)
    offset = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, DIM)
    valid = place < count * GROUP
    rows = tl.load(order + first + place // GROUP, mask=valid, other=0)
    heads = head * GROUP + place % GROUP
    query = tl.load(queries + (rows * HEADS + heads)[:, None] * DIM + dim[None, :], mask=valid[:, None], other=0.0)
    if memory.dtype.element_ty == tl.float8e4nv and query.dtype == tl.bfloat16:
        # E4M3 is exact in float16 too, and Hopper widens it to that in a fifth of the instructions.
        query = tl.minimum(tl.maximum(query.to(tl.float32), -65504.0), 65504.0).to(tl.float16)

    if kv_scales is not None:
        scale *= tl.load(kv_scales + head)

    # An item starts at a page, and a block is whole pages.
    tl.static_assert(BLOCK_N % PAGE == 0)
    keys_at = memory + head * DIM + (offset % PAGE)[:, None] * SLOT + dim[None, :]
    table_at = pages + table + offset // PAGE
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, DIM], tl.float32)
    whole = start + tl.maximum(end - start, 0) // BLOCK_N * BLOCK_N
    # A block's pages are loaded one block ahead, so that the pipeline below sees loads at known addresses.
    page = tl.load(table_at + start // PAGE, mask=start + offset < end, other=0)
    for token in tl.range(start, whole, BLOCK_N, num_stages=STAGES):
        at = keys_at + page.to(tl.int64)[:, None] * (2 * PAGE * SLOT)
        after = token + BLOCK_N
        page = tl.load(table_at + after // PAGE, mask=after + offset < end, other=0)
        top, total, mixed = _block(
            query, at, at + PAGE * SLOT, offset, scale, top, total, mixed, MASKED=False, PRECISION=PRECISION
        )
    if whole < end:
        at = keys_at + page.to(tl.int64)[:, None] * (2 * PAGE * SLOT)
        top, total, mixed = _block(
            query, at, at + PAGE * SLOT, whole + offset < end, scale, top, total, mixed,
            MASKED=True, PRECISION=PRECISION,
        )  # fmt: skip

    # Where there was nothing to attend to, the maximum is minus infinity and so is the logarithm; zeros, not 0 / 0.
    total = tl.where(total > 0, total, 1.0)
    weight = 1.0 / total
    if kv_scales is not None:
        weight *= tl.load(kv_scales + KV_HEADS + head)
    slot = (rows * splits + split) * HEADS + heads
    tl.store(logsums + slot, top + tl.log2(total), mask=valid)
    to = partials + slot.to(tl.int64)[:, None] * DIM + dim[None, :]
    tl.store(to, (mixed * weight[:, None]).to(partials.dtype.element_ty), mask=valid[:, None])


@triton.jit(do_not_specialize=["splits"])
def partial_kernel(
    queries, memory, pages, lengths, items, item_count, order, partials, logsums, splits, scale, kv_scales,
    upcoming, upcoming_bytes, counts, arrivals, output,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    SMALL_N: tl.constexpr, SMALL_STAGES: tl.constexpr, PRECISION: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, PDL: tl.constexpr,
    MERGING: tl.constexpr,
):  # fmt: skip
    """One program for each KV head and item of the work list.

    With `MERGING`, for batches of one row, the program that ends last for a KV head merges the partial results.
    """
    head = tl.program_id(0)
    index = tl.program_id(1)
    item = items + index * 8
    busy = index < tl.load(item_count)
    first = tl.load(item)
    count = tl.load(item + 1)
    start = tl.load(item + 2)
    end = tl.load(item + 3)
    split = tl.load(item + 4)
    row = tl.load(item + 6)
    table = tl.load(item + 7)
    if PDL:
        program = index * KV_HEADS + head
        prefetch_share(upcoming, upcoming_bytes, program, tl.num_programs(1) * KV_HEADS)
    # The kernel before has written keys, values and queries; the lengths were there before it (`wait_before_next`).
    length = tl.load(lengths + row, cache_modifier=".cg")
    if MERGING:
        parts = tl.load(counts + row)
    if busy | (index == 0):  # one program at least must wait, so that the launch ends after the one before it
        wait_for_previous(PDL)
    if busy:
        if count == 1:
            end = tl.minimum(end, length)
        if BLOCK_M == SMALL_M or count * (HEADS // KV_HEADS) <= SMALL_M:
            _tile(
                queries, memory, pages, order, partials, logsums,
                first, count, start, end, split, table, head, splits, scale, kv_scales,
                SMALL_M, SMALL_N, SMALL_STAGES, PRECISION, HEADS, KV_HEADS, DIM, PAGE,
            )  # fmt: skip
        else:
            _tile(
                queries, memory, pages, order, partials, logsums,
                first, count, start, end, split, table, head, splits, scale, kv_scales,
                BLOCK_M, BLOCK_N, STAGES, PRECISION, HEADS, KV_HEADS, DIM, PAGE,
            )  # fmt: skip
        if MERGING:
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + head, 1, sem="acq_rel")
            if arrived == parts - 1:
                tl.store(arrivals + head, 0)
                GROUP: tl.constexpr = HEADS // KV_HEADS
                column = tl.arange(0, triton.next_power_of_2(GROUP * DIM))
                inside = column < GROUP * DIM
                column += head * GROUP * DIM
                result = _merged(partials, logsums, row, column, inside, parts, splits, HEADS, DIM, 8)
                tl.store(output + row * (HEADS * DIM) + column, result.to(output.dtype.element_ty), mask=inside)
    elif MERGING and index == 0:  # the row is idle
        nothing = tl.arange(0, triton.next_power_of_2(HEADS // KV_HEADS * DIM))
        to = output + head * (HEADS // KV_HEADS * DIM) + nothing
        tl.store(to, tl.zeros_like(nothing).to(output.dtype.element_ty), mask=nothing < HEADS // KV_HEADS * DIM)


@triton.jit
def _merged(
    partials, logsums, row, column, inside, count, splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Columns of a row's result: its partial results, weighed by their sums of exponentials.

    A thread holds all partial results of its columns, so nothing is exchanged between threads; `BLOCK_S` of them are
    loaded at once, past the first-level cache, which may hold what was there before.
    """
    top = tl.full(column.shape, float("-inf"), tl.float32)
    total = tl.zeros(column.shape, tl.float32)
    mixed = tl.zeros(column.shape, tl.float32)
    for begin in range(0, count, BLOCK_S):
        for part in tl.static_range(BLOCK_S):
            valid = inside & (begin + part < count)
            slot = (row * splits + begin + part).to(tl.int64) * HEADS
            logsum = tl.load(logsums + slot + column // DIM, mask=valid, other=float("-inf"), cache_modifier=".cg")
            partial = tl.load(partials + slot * DIM + column, mask=valid, other=0.0, cache_modifier=".cg")
            higher = tl.maximum(top, logsum)
            base = tl.where(higher > float("-inf"), higher, 0.0)
            weight = tl.exp2(logsum - base)
            shrink = tl.exp2(top - base)
            total = total * shrink + weight
            mixed = mixed * shrink + weight * partial.to(tl.float32)
            top = higher
    return mixed / tl.where(total > 0, total, 1.0)


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    partials, logsums, counts, output, splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the partial results: one program for each row and block of columns."""
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    count = tl.load(counts + row)
    wait_for_previous(PDL)
    result = _merged(partials, logsums, row, column, column >= 0, count, splits, HEADS, DIM, BLOCK_S)
    tl.store(output + row * (HEADS * DIM) + column, result.to(output.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])
def merge_heads_kernel(
    partials, logsums, counts, output, splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the partial results: one program for each row and query head.

    For few rows, which have many partial results and few programs: `BLOCK_S` of them are loaded at once, so that few
    loads wait for others, and a program's threads share them.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    dim = tl.arange(0, DIM)
    count = tl.load(counts + row)
    wait_for_previous(PDL)
    top = float("-inf")
    total = 0.0
    mixed = tl.zeros([DIM], tl.float32)
    for begin in range(0, count, BLOCK_S):
        part = begin + tl.arange(0, BLOCK_S)
        valid = part < count
        slot = (row * splits + part).to(tl.int64) * HEADS + head
        logsum = tl.load(logsums + slot, mask=valid, other=float("-inf"), cache_modifier=".cg")
        at = partials + slot[:, None] * DIM + dim[None, :]
        partial = tl.load(at, mask=valid[:, None], other=0.0, cache_modifier=".cg")
        higher = tl.maximum(top, tl.max(logsum, 0))
        base = tl.where(higher > float("-inf"), higher, 0.0)
        weight = tl.exp2(logsum - base)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 0)
        mixed = mixed * shrink + tl.sum(weight[:, None] * partial.to(tl.float32), 0)
        top = higher
    result = mixed / tl.where(total > 0, total, 1.0)
    tl.store(output + (row * HEADS + head) * DIM + dim, result.to(output.dtype.element_ty))


def partial_attention(
    query: Tensor,
    memory: Tensor,
    *,
    pages: Tensor,
    lengths: Tensor,
    items: Tensor,
    item_count: Tensor,
    order: Tensor,
    partials: Tensor,
    logsums: Tensor,
    splits: int,
    max_items: int,
    tile: TileConfig,
    scale: float,
    kv_scales: Tensor | None = None,
    upcoming: Tensor | None = None,
    merge: tuple[Tensor, Tensor, Tensor] | None = None,
    pdl: bool = False,
) -> None:
    """Launch the partial kernel.

    Args:
        query: [rows, Hq, D].
        memory: one layer's KV, [pages, 2, page_size, Hkv, D]; float8_e4m3fn is converted after the load.
        pages: int32; the rows' page tables, one after the other.
        lengths: [rows] int32; tokens that each row's query sees. With `pdl`, not written by the kernel just before.
        items: [>= max_items, 8] int32; the work list.
        item_count: [1] int32; items in the list.
        order: [ranks] int32; row of each rank.
        partials: [rows * splits, Hq, D] of any floating type, written.
        logsums: [rows * splits, Hq] float32, written.
        splits: partial results that each row has room for.
        max_items: items that the launch has programs for.
        tile: tile sizes.
        scale: of the scores, 1 / sqrt(D) as a rule.
        kv_scales: [2, Hkv] float32, by which the stored keys and values of each head are multiplied; None is 1.
        upcoming: weights of the next product, which are brought into L2 meanwhile where `pdl` is on.
        merge: for a batch of one row, what merges its partial results within the launch: `counts` and `output` as in
            `merge_partials`, and between them [Hkv] int32, zero before and after; None leaves the merge to that.
        pdl: launch with programmatic dependent launch.
    """
    _, _, page_size, kv_heads, dim = memory.shape
    counts, arrivals, output = merge or (None, None, None)
    heads = query.shape[1]
    exact = query.dtype == torch.float32
    partial_kernel[(kv_heads, max_items)](
        query,
        memory,
        pages,
        lengths,
        items,
        item_count,
        order,
        partials,
        logsums,
        splits,
        scale * LOG2_E,
        kv_scales,
        upcoming,
        0 if upcoming is None else upcoming.numel() * upcoming.element_size(),
        counts,
        arrivals,
        output,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        STAGES=tile.stages,
        SMALL_N=tile.small_n,
        SMALL_STAGES=tile.small_stages,
        PRECISION="ieee" if exact else "tf32",
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PAGE=page_size,
        PDL=pdl,
        MERGING=merge is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers,
        launch_pdl=pdl,
    )


def merge_partials(
    partials: Tensor, logsums: Tensor, counts: Tensor, output: Tensor, *, rows: int, splits: int, pdl: bool = False
) -> None:
    """Launch the merge.

    Args:
        partials: [rows * splits, Hq, D] of any floating type.
        logsums: [rows * splits, Hq] float32, base 2.
        counts: [rows] int32; partial results of each row, 0 gives zeros.
        output: [>= rows, Hq, D], written.
        rows: rows to merge.
        splits: partial results that each row has room for.
        pdl: launch with programmatic dependent launch.
    """
    _, heads, dim = output.shape
    most = 1 << (splits - 1).bit_length()
    common = {"HEADS": heads, "DIM": dim, "PDL": pdl, "launch_pdl": pdl}
    for rows_most, at_once, warps in _BY_HEADS:
        if rows <= rows_most and dim <= _NARROW_HEAD:
            merge_heads_kernel[(rows, heads)](
                partials, logsums, counts, output, splits, BLOCK_S=min(at_once, most), num_warps=warps, **common
            )
            return
    columns = min(heads * dim & -(heads * dim), _MERGE_COLUMNS if rows > _FEW_ROWS else _MERGE_COLUMNS // 4)
    merge_kernel[(rows, heads * dim // columns)](
        partials,
        logsums,
        counts,
        output,
        splits,
        COLUMNS=columns,
        BLOCK_S=min(4 if rows > _FEW_ROWS else 8, most),
        num_warps=max(1, columns // 128),
        **common,
    )
