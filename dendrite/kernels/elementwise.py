"""What a decode step does outside the matrix products: a program or more for each row, bound by launch latency.

`prepare` begins a step and `final_norm` ends its layers, at any batch. `rms_norm` goes before the first product of a
step of more than one row; what stands between the products of such a step is in `reduce`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dendrite.kernels.fp8 import load_factors
from dendrite.kernels.pdl import wait_for_previous
from dendrite.kernels.scales import scale_arguments, scale_group
from dendrite.quant.weights import Scales

_BLOCK = 1024  # columns of a program where a row is divided


def prepare(
    tokens: Tensor,
    positions: Tensor,
    alive: Tensor,
    pages: Tensor,
    row_start: Tensor,
    page_size: int,
    embedding: Tensor,
    inverse_frequencies: Tensor,
    hidden: Tensor,
    cos_sin: Tensor,
    slots: Tensor,
    lengths: Tensor,
    *,
    scales: Scales | None = None,
    pdl: bool = False,
) -> None:
    """Look up each row's embedding, its rotation, and the KV slot that its key and value go to.

    A dead row writes to the scratch page and keeps its length, so that a batch may shrink without a new launch.

    Args:
        tokens: [M] int32.
        positions: [M] int32, where on its path the token stands.
        alive: [M] int32, 0 or 1.
        pages: [..] int32, page tables one after the other.
        row_start: [M] int32, where in `pages` a row's table begins.
        page_size: slots of a page.
        embedding: [V, d].
        inverse_frequencies: [D / 2] float32.
        hidden: [M, d], written.
        cos_sin: [M, D] float32, written: the cosines of the D / 2 angles, then the sines.
        slots: [M] int32, written.
        lengths: [M] int32, written for living rows: position + 1.
        scales: of an embedding of FP8 elements.
        pdl: launch while the kernel before still runs.
    """
    rows, size = hidden.shape
    half = inverse_frequencies.shape[0]
    _prepare_kernel[(rows, triton.cdiv(size, _BLOCK))](
        tokens,
        positions,
        alive,
        pages,
        row_start,
        embedding,
        inverse_frequencies,
        hidden,
        cos_sin,
        slots,
        lengths,
        *scale_arguments(scales, size),
        page_size=page_size,
        size=size,
        half=half,
        block_half=triton.next_power_of_2(half),
        block=_BLOCK,
        group=scale_group(scales),
        pdl=pdl,
        launch_pdl=pdl,
    )


def final_norm(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    alive: Tensor,
    step: Tensor,
    tips: Tensor,
    ring: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Store the final norm of every living row as its tip, and in this step's place of the ring.

    Args:
        hidden: [M, d].
        weight: [d].
        eps: of the norm.
        alive: [M] int32, 0 or 1.
        step: [1] int32, on the device.
        tips: [at least M, d], written.
        ring: [K, R, d], R at least M; written at [step, :M].
        pdl: launch while the kernel before still runs.
    """
    rows, size = hidden.shape
    _final_norm_kernel[(rows,)](
        hidden,
        weight,
        alive,
        step,
        tips,
        ring,
        ring.stride(0),
        eps,
        size=size,
        block=triton.next_power_of_2(size),
        pdl=pdl,
        num_warps=_warps(size),
        launch_pdl=pdl,
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, *, pdl: bool = False) -> None:
    """Out [M, d] = x / sqrt(mean(x²) + eps) * weight (arXiv 1910.07467); x [M, d], weight [d]."""
    rows, size = x.shape
    _rms_norm_kernel[(rows,)](
        x,
        weight,
        out,
        eps,
        size=size,
        block=triton.next_power_of_2(size),
        pdl=pdl,
        num_warps=_warps(size),
        launch_pdl=pdl,
    )


def _warps(size: int) -> int:
    return min(16, max(1, size // 512))


@triton.jit
def _prepare_kernel(
    tokens, positions, alive, pages, row_start, embedding, inverse_frequencies, hidden, cos_sin, slots, lengths,
    scales, groups,
    page_size: tl.constexpr,
    size: tl.constexpr,
    half: tl.constexpr,
    block_half: tl.constexpr,
    block: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    channel = tl.arange(0, block_half)
    frequency = tl.load(inverse_frequencies + channel, mask=channel < half, other=0.0)
    wait_for_previous(pdl)

    token = tl.load(tokens + m).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    row = tl.load(embedding + token * size + column, mask=column < size)
    if scales is not None:
        place = column // group if group > 0 else tl.zeros_like(column)
        row = row.to(tl.float32) * load_factors(scales + token * groups + place, column < size)
    tl.store(hidden + m * size + column, row.to(hidden.dtype.element_ty), mask=column < size)
    if tl.program_id(1) == 0:
        position = tl.load(positions + m)
        angle = position.to(tl.float32) * frequency  # in float32, see `dendrite.model.rope`
        tl.store(cos_sin + m * 2 * half + channel, tl.cos(angle), mask=channel < half)
        tl.store(cos_sin + (m * 2 + 1) * half + channel, tl.sin(angle), mask=channel < half)
        if tl.load(alive + m) != 0:
            page = tl.load(pages + tl.load(row_start + m) + position // page_size)
            tl.store(slots + m, page * page_size + position % page_size)
            tl.store(lengths + m, position + 1)
        else:
            tl.store(slots + m, m % page_size)


@triton.jit
def _final_norm_kernel(
    hidden, weight, alive, step, tips, ring,
    ring_stride,
    eps,
    size: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < size
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(pdl)

    if tl.load(alive + m) != 0:
        normed = _normed(hidden + m * size + column, inside, scale, eps, size).to(tips.dtype.element_ty)
        place = tl.load(step).to(tl.int64) * ring_stride + m * size
        tl.store(tips + m * size + column, normed, mask=inside)
        tl.store(ring + place + column, normed.to(ring.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_kernel(x, weight, out, eps, size: tl.constexpr, block: tl.constexpr, pdl: tl.constexpr):
    m = tl.program_id(0)
    column = tl.arange(0, block)
    inside = column < size
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(pdl)

    normed = _normed(x + m * size + column, inside, scale, eps, size)
    tl.store(out + m * size + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed(pointers, inside, scale, eps, size: tl.constexpr):
    row = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    return row * tl.rsqrt(tl.sum(row * row, 0) / size + eps) * scale
