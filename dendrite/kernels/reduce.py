"""What stands between the products of `gemm`: each kernel sums the partial products and goes on from there.

The sums are taken in float32 and in a fixed order, so results repeat bit for bit. A program or more for each row; at
few rows these kernels are bound by latency, so all of a row's loads are issued at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dendrite.kernels.fp8 import convert
from dendrite.kernels.pdl import wait_before_next, wait_for_previous

_BLOCK = 1024  # columns of a program where a row is divided
_HEADS = 8  # heads of a program of `rope_append_partials`


def residual_norm(
    partials: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Add a product to the residual stream, and take the RMS norm (arXiv 1910.07467) of the sum as stored.

    Args:
        partials: [S, M, d], whose sum over S is the product.
        bias: [d] of the product, or None.
        hidden: [M, d], changed in place.
        norm_weight: [d].
        eps: of the norm.
        out: [M, d], written: the normed rows.
        pdl: launch while the kernel before still runs.
    """
    splits, rows, size = partials.shape
    block = triton.next_power_of_2(size)
    _residual_norm_kernel[(rows,)](
        partials,
        bias,
        hidden,
        norm_weight,
        out,
        rows,
        eps,
        splits=splits,
        size=size,
        block=block,
        pdl=pdl,
        num_warps=min(16, max(1, block // 128)),
        launch_pdl=pdl,
    )


def rope_append_partials(
    partials: Tensor,
    bias: Tensor | None,
    qk_norm: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    slots: Tensor,
    query_out: Tensor,
    kv: Tensor,
    *,
    kv_scales: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Norm and rotate queries and keys, and store keys and values in their KV slots.

    Args:
        partials: [S, M, (Hq + 2 Hkv) D], whose sum over S is queries, keys, values.
        bias: [(Hq + 2 Hkv) D] of the product, or None.
        qk_norm: [Hq + Hkv, D] weights of the norms of query and key heads, or None.
        eps: of those norms.
        cos_sin: [M, D] float32: the cosines of the row's D / 2 angles, then the sines.
        slots: [M] int32, page * page_size + offset.
        query_out: [M, Hq, D], written.
        kv: [pages, 2, page_size, Hkv, D], one layer's, written at `slots`.
        kv_scales: [2, Hkv] float32, by which keys and values are divided where `kv` holds FP8; None is 1.
        pdl: launch while the kernel before still runs.
    """
    rows, heads, head_dim = query_out.shape
    _, _, page_size, kv_heads, _ = kv.shape
    block_half = triton.next_power_of_2(head_dim // 2)
    _rope_append_partials_kernel[(rows, triton.cdiv(heads + 2 * kv_heads, _HEADS))](
        partials,
        bias,
        qk_norm,
        cos_sin,
        slots,
        query_out,
        kv,
        kv_scales,
        rows,
        eps,
        splits=partials.shape[0],
        heads=heads,
        kv_heads=kv_heads,
        half=head_dim // 2,
        page_size=page_size,
        block_heads=_HEADS,
        block_half=block_half,
        pdl=pdl,
        num_warps=max(1, _HEADS * block_half // 128),
        launch_pdl=pdl,
    )


def swiglu_partials(partials: Tensor, bias: Tensor | None, out: Tensor, *, pdl: bool = False) -> None:
    """Out = silu(gate) * up (arXiv 2002.05202).

    Args:
        partials: [S, M, 2 m], whose sum over S is gate, then up.
        bias: [2 m] of the product, or None.
        out: [M, m], written.
        pdl: launch while the kernel before still runs.
    """
    splits, rows, _ = partials.shape
    inner = out.shape[1]
    _swiglu_partials_kernel[(rows, triton.cdiv(inner, _BLOCK))](
        partials, bias, out, rows, inner, splits=splits, block=_BLOCK, pdl=pdl, launch_pdl=pdl
    )


@triton.jit
def _sum_of(partials, stride, inside, splits: tl.constexpr):
    """Sum of `splits` blocks in float32: at the pointers `partials`, and then `stride` (int64) elements apart."""
    total = tl.load(partials, mask=inside, other=0.0).to(tl.float32)
    for split in tl.static_range(1, splits):
        total += tl.load(partials + split * stride, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["count"])
def _residual_norm_kernel(
    partials, bias, hidden, norm_weight, out,
    count,
    eps,
    splits: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * size + tl.arange(0, block)
    column = tl.arange(0, block)
    inside = column < size
    scale = tl.load(norm_weight + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(pdl)

    row = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
    row += _sum_of(partials + at, count.to(tl.int64) * size, inside, splits)
    if bias is not None:
        row += shift
    stored = row.to(hidden.dtype.element_ty)
    tl.store(hidden + at, stored, mask=inside)
    row = stored.to(tl.float32)
    normed = row * tl.rsqrt(tl.sum(row * row, 0) / size + eps) * scale
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _rope_append_partials_kernel(
    partials, bias, qk_norm, cos_sin, slots, query_out, kv, kv_scales,
    count,
    eps,
    splits: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    page_size: tl.constexpr,
    block_heads: tl.constexpr,
    block_half: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = (heads + 2 * kv_heads) * 2 * half
    m = tl.program_id(0)
    head = (tl.program_id(1) * block_heads + tl.arange(0, block_heads))[:, None]
    channel = tl.arange(0, block_half)[None, :]
    inside = (channel < half) & (head < heads + 2 * kv_heads)
    rotated = inside & (head < heads + kv_heads)  # values are neither normed nor rotated
    at = head * (2 * half) + channel
    if bias is not None:
        shift_a = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
        shift_b = tl.load(bias + at + half, mask=inside, other=0.0).to(tl.float32)
    if qk_norm is not None:
        scale_a = tl.load(qk_norm + at, mask=rotated, other=1.0).to(tl.float32)
        scale_b = tl.load(qk_norm + at + half, mask=rotated, other=1.0).to(tl.float32)
    wait_before_next(pdl)  # attention reads the lengths before it waits

    slot = tl.load(slots + m)
    cos = tl.load(cos_sin + m * (2 * half) + channel, mask=rotated, other=1.0)
    sin = tl.load(cos_sin + m * (2 * half) + half + channel, mask=rotated, other=0.0)
    source = partials + m * columns + at
    stride = count.to(tl.int64) * columns
    a = _sum_of(source, stride, inside, splits)
    b = _sum_of(source + half, stride, inside, splits)
    if bias is not None:
        a += shift_a
        b += shift_b
    if qk_norm is not None:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1, keep_dims=True) / (2 * half) + eps)
        scale = tl.where(head < heads + kv_heads, scale, 1.0)
        a *= scale * scale_a
        b *= scale * scale_b
    first_half = a * cos - b * sin
    second_half = b * cos + a * sin

    is_query = inside & (head < heads)
    target = query_out + m * heads * (2 * half) + at
    tl.store(target, first_half.to(query_out.dtype.element_ty), mask=is_query)
    tl.store(target + half, second_half.to(query_out.dtype.element_ty), mask=is_query)
    is_stored = inside & (head >= heads)
    is_value = (head >= heads + kv_heads).to(tl.int32)
    token = (slot // page_size * 2 + is_value).to(tl.int64) * page_size + slot % page_size
    target = kv + (token * kv_heads + head - heads - is_value * kv_heads) * (2 * half) + channel
    kv_scale = 1.0
    if kv_scales is not None:
        kv_scale = tl.load(kv_scales + head - heads, mask=is_stored, other=1.0)  # all of the keys', then the values'
    tl.store(target, convert(first_half, kv_scale, kv.dtype.element_ty), mask=is_stored)
    tl.store(target + half, convert(second_half, kv_scale, kv.dtype.element_ty), mask=is_stored)


@triton.jit(do_not_specialize=["count"])
def _swiglu_partials_kernel(
    partials, bias, out,
    count,
    inner,
    splits: tl.constexpr,
    block: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < inner
    if bias is not None:
        shift_gate = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        shift_up = tl.load(bias + inner + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(pdl)

    source = partials + m * 2 * inner + column
    stride = count.to(tl.int64) * 2 * inner
    gate = _sum_of(source, stride, inside, splits)
    up = _sum_of(source + inner, stride, inside, splits)
    if bias is not None:
        gate += shift_gate
        up += shift_up
    tl.store(out + m * inner + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)
