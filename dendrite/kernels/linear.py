"""Products of one row with a weight matrix, fused with what stands before and after them in a decoder layer.

A decode step reads every weight once, so for one row a product costs what streaming its weight costs, and what counts
is that the memory never idles. Each kernel here therefore asks for its weight before it waits for the kernel ahead of
it (programmatic dependent launch), and one program owns whole output columns: no atomics, no second pass.

The products run on the CUDA cores, with the next tile of the weight in registers while the present one is used. More
rows are taken one by one, and each reads the weight anew; `gemm` has the products that share it.

The RMS norm before a product needs no pass of its own: with r(x) = 1 / sqrt(mean(x²) + eps), norm(x) · W is
r(x) · ((x ⊙ norm_weight) · W), and the squares are summed in the loop of the product.

The grid has a program for each of `count` rows and none beyond, and still the kernels mask by `count`: without that,
ptxas 12.8 needs more registers for some of them, and spills some for a head of 32,000 columns.
"""

from __future__ import annotations

import math
from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.kernels.fp8 import convert
from dendrite.kernels.linear_config import LinearConfig, choose, choose_for_bytes
from dendrite.kernels.pdl import wait_before_next, wait_for_previous
from dendrite.kernels.product import product, request
from dendrite.kernels.scales import scale_arguments, scale_group
from dendrite.quant.weights import Scales


def qkv_rope_append(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    qk_norm: Tensor | None,
    cos_sin: Tensor,
    slots: Tensor,
    query_out: Tensor,
    kv: Tensor,
    *,
    scales: Scales | None = None,
    kv_scales: Tensor | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> None:
    """Norm, project to queries, keys and values, rotate, and store keys and values in their KV slots.

    Args:
        hidden: [M, d].
        norm_weight: [d], of the norm before the product.
        eps: of that norm and of the query and key norms.
        weight: [(Hq + 2 Hkv) D, d]: queries, keys, values.
        bias: [(Hq + 2 Hkv) D] or None.
        qk_norm: [Hq + Hkv, D] weights of the norms of query and key heads, or None.
        cos_sin: [M, D] float32: the cosines of the row's D / 2 angles, then the sines.
        slots: [M] int32, page * page_size + offset.
        query_out: [M, Hq, D], written.
        kv: [pages, 2, page_size, Hkv, D], one layer's, written at `slots`.
        scales: of a weight of FP8 elements.
        kv_scales: [2, Hkv] float32, by which keys and values are divided where `kv` holds FP8; None is 1.
        config: launch configuration in place of the chosen one.
        pdl: launch while the kernel before still runs.

    Raises:
        InvalidArgument: the heads cannot be divided among programs.
    """
    rows, size = hidden.shape
    _, heads, head_dim = query_out.shape
    _, _, page_size, kv_heads, _ = kv.shape
    config = config or _chosen(weight, scales)
    config = _for_heads(config, head_dim, whole=qk_norm is not None)
    grid = (rows, (heads + 2 * kv_heads) * head_dim // config.block_n)
    _qkv_kernel[grid](
        hidden,
        norm_weight,
        weight,
        bias,
        qk_norm,
        cos_sin,
        slots,
        query_out,
        kv,
        *scale_arguments(scales, size),
        kv_scales,
        rows,
        eps,
        size=size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        block_n=config.block_n,
        block_k=config.block_k,
        stages=config.stages,
        group=scale_group(scales),
        pdl=pdl,
        **config.launch_options(pdl),
    )


def gate_up_swiglu(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    scales: Scales | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> None:
    """Norm, project to gate and up, and multiply: out = silu(gate) * up (arXiv 2002.05202).

    Args:
        hidden: [M, d].
        norm_weight: [d].
        eps: of the norm.
        weight: [2 m, d]: the gate's rows, then up's.
        bias: [2 m] or None.
        out: [M, m], written.
        scales: of a weight of FP8 elements.
        config: launch configuration in place of the chosen one.
        pdl: launch while the kernel before still runs.
    """
    rows, size = hidden.shape
    inner = out.shape[1]
    config = config or _chosen(weight, scales)
    grid = (rows, triton.cdiv(inner, config.block_n // 2))
    _gate_up_kernel[grid](
        hidden,
        norm_weight,
        weight,
        bias,
        out,
        *scale_arguments(scales, size),
        rows,
        inner,
        eps,
        size=size,
        block_n=config.block_n,
        block_k=config.block_k,
        stages=config.stages,
        group=scale_group(scales),
        pdl=pdl,
        **config.launch_options(pdl),
    )


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    *,
    scales: Scales | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> None:
    """Hidden += x Wᵀ + bias, in place; x [M, K], weight [N, K], `scales` if FP8, bias [N] or None, hidden [M, N]."""
    config = config or _chosen(weight, scales)
    _launch_linear(x, weight, bias, hidden, scales, config, residual=True, pdl=pdl)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    scales: Scales | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> None:
    """Out = x Wᵀ + bias; x [M, K], weight [N, K] with `scales` if FP8, bias [N] or None, out [M, N] of any type."""
    config = config or _chosen(weight, scales)
    _launch_linear(x, weight, bias, out, scales, config, residual=False, pdl=pdl)


def _launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    scales: Scales | None,
    config: LinearConfig,
    *,
    residual: bool,
    pdl: bool,
) -> None:
    rows, size = x.shape
    columns = weight.shape[0]
    grid = (rows, triton.cdiv(columns, config.block_n))
    _linear_kernel[grid](
        x,
        weight,
        bias,
        out,
        *scale_arguments(scales, size),
        rows,
        columns,
        size=size,
        residual=residual,
        block_n=config.block_n,
        block_k=config.block_k,
        stages=config.stages,
        group=scale_group(scales),
        pdl=pdl,
        **config.launch_options(pdl),
    )


def _chosen(weight: Tensor, scales: Scales | None) -> LinearConfig:
    by_rows = scales is not None and not scales.group
    return (choose_for_bytes if by_rows else choose)(*weight.shape)


def _for_heads(config: LinearConfig, head_dim: int, *, whole: bool) -> LinearConfig:
    """Give each program columns of one head, the rotation's pairs together, or a `whole` head, whose norm needs it.

    The tile keeps its area.
    """
    if whole and head_dim & (head_dim - 1):
        raise InvalidArgument("head_dim", head_dim, "must be a power of two where queries and keys are normed")
    block_n = head_dim if whole else math.gcd(config.block_n, head_dim)
    if block_n < 2:
        raise InvalidArgument("head_dim", head_dim, "must be even")
    block_k = config.block_k
    if block_n > config.block_n:
        block_k = max(64, block_k * config.block_n // block_n)
    return replace(config, block_n=block_n, block_k=block_k)


@triton.jit(do_not_specialize=["count"])
def _qkv_kernel(
    hidden, norm_weight, weight, bias, qk_norm, cos_sin, slots, query_out, kv, scales, groups, kv_scales,
    count,
    eps,
    size: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    page_size: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    half: tl.constexpr = head_dim // 2
    pairs: tl.constexpr = block_n // 2
    parts: tl.constexpr = head_dim // block_n
    m = tl.program_id(0)
    head = tl.program_id(1) // parts
    first = tl.program_id(1) % parts * pairs
    column = tl.arange(0, block_n)
    # A column and its partner in the rotation lie side by side, so that one thread holds both.
    rows = head * head_dim + first + column // 2 + column % 2 * half
    base = weight + rows.to(tl.int64) * size
    ahead = request(base, norm_weight, size, block_k)
    pair = first + tl.arange(0, pairs)
    rotated = head < heads + kv_heads  # values are neither normed nor rotated
    if bias is not None:
        shift = tl.load(bias + rows).to(tl.float32)
    if qk_norm is not None:
        scale_a = tl.load(qk_norm + head * head_dim + pair, mask=rotated, other=1.0).to(tl.float32)
        scale_b = tl.load(qk_norm + head * head_dim + half + pair, mask=rotated, other=1.0).to(tl.float32)
    wait_before_next(pdl)  # attention reads the lengths before it waits

    inside = m < count
    angles = cos_sin + m * head_dim + pair[None, :]
    cos = tl.load(angles, mask=inside & rotated, other=1.0)
    sin = tl.load(angles + half, mask=inside & rotated, other=0.0)
    slot = tl.load(slots + m, mask=inside, other=0)
    acc = product(hidden + m * size, norm_weight, base, ahead, scales, rows, groups, eps, size, block_k, stages, group)
    if bias is not None:
        acc += shift[None, :]
    a, b = tl.split(tl.reshape(acc, (1, pairs, 2)))
    if qk_norm is not None:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / head_dim + eps)
        scale = tl.where(rotated, scale, 1.0)[:, None]
        a *= scale * scale_a[None, :]
        b *= scale * scale_b[None, :]
    first_half = a * cos - b * sin
    second_half = b * cos + a * sin
    if head < heads:
        target = query_out + (m * heads + head) * head_dim + pair[None, :]
        tl.store(target, first_half.to(query_out.dtype.element_ty), mask=inside)
        tl.store(target + half, second_half.to(query_out.dtype.element_ty), mask=inside)
    else:
        is_value = (head >= heads + kv_heads).to(tl.int32)
        kv_head = head - heads - is_value * kv_heads
        token = (slot // page_size * 2 + is_value).to(tl.int64) * page_size + slot % page_size
        stored_at = kv + (token * kv_heads + kv_head) * head_dim + pair[None, :]
        kv_scale = 1.0
        if kv_scales is not None:
            kv_scale = tl.load(kv_scales + head - heads)  # all of the keys', then the values'
        tl.store(stored_at, convert(first_half, kv_scale, kv.dtype.element_ty), mask=inside)
        tl.store(stored_at + half, convert(second_half, kv_scale, kv.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _gate_up_kernel(
    hidden, norm_weight, weight, bias, out, scales, groups,
    count,
    inner,
    eps,
    size: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    pairs: tl.constexpr = block_n // 2
    m = tl.program_id(0)
    column = tl.arange(0, block_n)
    # A gate and its up lie side by side, so that one thread holds both.
    rows = tl.minimum(tl.program_id(1) * pairs + column // 2, inner - 1) + column % 2 * inner
    base = weight + rows.to(tl.int64) * size
    ahead = request(base, norm_weight, size, block_k)
    if bias is not None:
        shift = tl.load(bias + rows).to(tl.float32)
    wait_for_previous(pdl)

    acc = product(hidden + m * size, norm_weight, base, ahead, scales, rows, groups, eps, size, block_k, stages, group)
    if bias is not None:
        acc += shift[None, :]
    gate, up = tl.split(tl.reshape(acc, (1, pairs, 2)))
    n = tl.program_id(1) * pairs + tl.arange(0, pairs)
    inside = (m < count) & (n < inner)[None, :]
    activated = gate * tl.sigmoid(gate) * up
    tl.store(out + m * inner + n[None, :], activated.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _linear_kernel(
    x, weight, bias, out, scales, groups,
    count,
    columns,
    size: tl.constexpr,
    residual: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    rows = tl.minimum(n, columns - 1)
    base = weight + rows.to(tl.int64) * size
    ahead = request(base, None, size, block_k)
    if bias is not None:
        shift = tl.load(bias + rows).to(tl.float32)
    wait_for_previous(pdl)

    inside = (m < count) & (n < columns)[None, :]
    target = out + m.to(tl.int64) * columns + n[None, :]
    if residual:
        before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    acc = product(x + m * size, None, base, ahead, scales, rows, groups, 0.0, size, block_k, stages, group)
    if bias is not None:
        acc += shift[None, :]
    if residual:
        acc += before
    tl.store(target, acc.to(out.dtype.element_ty), mask=inside)
