"""Products of a few activation rows with a weight on the tensor cores, at the speed at which the weight streams in.

A program multiplies a tile of the weight by the activations' rows, acc[n, m] = Σ_k weight[n, k] x[m, k]: the weight's
rows take the tensor core's long side, so that few activations need little padding, and both operands go from shared
memory to the tensor cores without passing through registers. Hence nothing is computed on them here: the activations
come normed, and what follows a product is done where its result is read anyway (see `reduce`). A weight of 8 bits alone
is widened in registers on its way.

Where a weight has too few rows to fill the chip, its columns are divided among several programs. Each leaves a float32
partial sum; no atomics, so results repeat bit for bit.

Before a program waits for the kernel ahead of it, it asks for the first columns of its weight (see `prefetch`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.kernels.gemm_config import GemmConfig, Kind, choose
from dendrite.kernels.gemm_product import tile_product
from dendrite.kernels.pdl import wait_for_previous
from dendrite.kernels.prefetch import prefetch_rows
from dendrite.kernels.scales import scale_arguments, scale_group
from dendrite.quant.weights import Scales


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    scales: Scales | None = None,
    config: GemmConfig | None = None,
    pdl: bool = False,
) -> None:
    """Out = x Wᵀ + bias.

    Args:
        x: [M, K].
        weight: [N, K].
        bias: [N] or None.
        out: [M, N] of any floating type, written.
        scales: of a weight of FP8 elements.
        config: launch configuration in place of the chosen one, with one split.
        pdl: launch while the kernel before still runs.

    Raises:
        InvalidArgument: `config` has several splits.
    """
    config = config or _chosen("linear", x.shape[0], weight)
    _require_one_split(config)
    _launch_linear(x, weight, bias, out, scales, config, pdl)


def linear_partials(
    x: Tensor,
    weight: Tensor,
    workspace: Tensor,
    kind: Kind,
    *,
    scales: Scales | None = None,
    config: GemmConfig | None = None,
    pdl: bool = False,
) -> Tensor:
    """Partial sums of x Wᵀ over parts of K.

    Args:
        x: [M, K].
        weight: [N, K].
        workspace: float32, of `partials_size` elements at least, written.
        kind: the product's place in a layer, by which the configuration is chosen.
        scales: of a weight of FP8 elements.
        config: launch configuration in place of the chosen one.
        pdl: launch while the kernel before still runs.

    Returns:
        [S, M, N], a view of `workspace`; their sum over S is the product.

    Raises:
        InvalidArgument: the workspace is too small.
    """
    rows, columns = x.shape[0], weight.shape[0]
    config = config or _chosen(kind, rows, weight)
    size = config.splits * rows * columns
    if workspace.numel() < size:
        raise InvalidArgument("workspace", workspace.numel(), f"must hold {size} elements")
    partials = workspace.view(-1)[:size].view(config.splits, rows, columns)
    _launch_linear(x, weight, None, partials, scales, config, pdl)
    return partials


def partials_size(kind: Kind, rows: int, weight: Tensor) -> int:
    """Float32 elements of the partial sums that `linear_partials` leaves for up to `rows` rows of activations."""
    columns = weight.shape[0]
    return max(_chosen(kind, count, weight).splits * count for count in range(1, rows + 1)) * columns


def linear_swiglu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    scales: Scales | None = None,
    config: GemmConfig | None = None,
    pdl: bool = False,
) -> None:
    """Project to gate and up, and multiply: out = silu(gate) * up (arXiv 2002.05202).

    Args:
        x: [M, d].
        weight: [2 m, d]: the gate's rows, then up's.
        bias: [2 m] or None.
        out: [M, m], written.
        scales: of a weight of FP8 elements.
        config: launch configuration in place of the chosen one, with one split.
        pdl: launch while the kernel before still runs.

    Raises:
        InvalidArgument: `config` has several splits.
    """
    rows, size = x.shape
    inner = out.shape[1]
    config = config or _chosen("gate_up", rows, weight)
    _require_one_split(config)
    grid = (triton.cdiv(rows, config.block_m), triton.cdiv(inner, config.block_n // 2))
    _swiglu_kernel[grid](
        x,
        weight,
        bias,
        out,
        *scale_arguments(scales, size),
        rows,
        inner,
        size=size,
        span=config.span(size),
        whole=config.divides(size),
        block_m=config.block_m,
        block_n=config.block_n,
        block_k=config.block_k,
        stages=config.stages,
        ahead=config.ahead,
        group=scale_group(scales),
        pdl=pdl,
        **config.launch_options(pdl),
    )


def _chosen(kind: Kind, rows: int, weight: Tensor) -> GemmConfig:
    columns, size = weight.shape
    return choose(kind, rows, columns, size, weight.element_size())


def _require_one_split(config: GemmConfig) -> None:
    if config.splits != 1:
        raise InvalidArgument("splits", config.splits, "must be 1: the product is stored complete")


def _launch_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    scales: Scales | None,
    config: GemmConfig,
    pdl: bool,
) -> None:
    rows, size = x.shape
    columns = weight.shape[0]
    grid = (triton.cdiv(rows, config.block_m), triton.cdiv(columns, config.block_n), config.splits)
    _linear_kernel[grid](
        x,
        weight,
        bias,
        out,
        *scale_arguments(scales, size),
        rows,
        columns,
        size=size,
        span=config.span(size),
        whole=config.divides(size),
        block_m=config.block_m,
        block_n=config.block_n,
        block_k=config.block_k,
        stages=config.stages,
        ahead=config.ahead,
        group=scale_group(scales),
        pdl=pdl,
        **config.launch_options(pdl),
    )


@triton.jit(do_not_specialize=["count"])
def _linear_kernel(
    x, weight, bias, out, scales, groups,
    count,
    columns,
    size: tl.constexpr,
    span: tl.constexpr,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    ahead: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    split = tl.program_id(2)
    rows = tl.minimum(n, columns - 1)
    base = weight + rows.to(tl.int64) * size
    _ask_for_weights(base + split * span, size, span, whole, ahead, pdl)
    if bias is not None:
        shift = tl.load(bias + rows).to(tl.float32)
    if scales is not None and group == 0:
        factor = tl.load(scales + rows)
    wait_for_previous(pdl)

    acc = tile_product(
        x, base, m, count, split * span, scales, rows, groups,
        size, span, whole, block_m, block_n, block_k, stages, group,
    )  # fmt: skip
    if scales is not None and group == 0:
        acc *= factor[:, None]
    if bias is not None:
        acc += shift[:, None]
    target = out + split.to(tl.int64) * count * columns + m.to(tl.int64)[None, :] * columns + n[:, None]
    tl.store(target, acc.to(out.dtype.element_ty), mask=(m < count)[None, :] & (n < columns)[:, None])


@triton.jit(do_not_specialize=["count"])
def _swiglu_kernel(
    x, weight, bias, out, scales, groups,
    count,
    inner,
    size: tl.constexpr,
    span: tl.constexpr,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    stages: tl.constexpr,
    ahead: tl.constexpr,
    group: tl.constexpr,
    pdl: tl.constexpr,
):  # fmt: skip
    pairs: tl.constexpr = block_n // 2
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    row = tl.arange(0, block_n)
    # Eight rows of the gate, then up's eight: a thread of the tensor core's layout holds the rows r and r + 8 of 16.
    rows = tl.minimum(tl.program_id(1) * pairs + row // 16 * 8 + row % 8, inner - 1) + row // 8 % 2 * inner
    base = weight + rows.to(tl.int64) * size
    _ask_for_weights(base, size, span, whole, ahead, pdl)
    if bias is not None:
        shift = tl.load(bias + rows).to(tl.float32)
    if scales is not None and group == 0:
        factor = tl.load(scales + rows)
    wait_for_previous(pdl)

    acc = tile_product(
        x, base, m, count, 0, scales, rows, groups, size, span, whole, block_m, block_n, block_k, stages, group
    )
    if scales is not None and group == 0:
        acc *= factor[:, None]
    if bias is not None:
        acc += shift[:, None]
    halves = tl.permute(tl.reshape(acc, (block_n // 16, 2, 8, block_m)), (0, 2, 3, 1))
    gate, up = tl.split(halves)
    activated = tl.reshape(gate * tl.sigmoid(gate) * up, (pairs, block_m))
    n = tl.program_id(1) * pairs + tl.arange(0, pairs)
    target = out + m.to(tl.int64)[None, :] * inner + n[:, None]
    tl.store(target, activated.to(out.dtype.element_ty), mask=(m < count)[None, :] & (n < inner)[:, None])


@triton.jit
def _ask_for_weights(
    base, size: tl.constexpr, span: tl.constexpr, whole: tl.constexpr, ahead: tl.constexpr, pdl: tl.constexpr
):
    """Prefetch `ahead` bytes, or what there is, from each of a program's rows, which begin at `base`."""
    element_bytes: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
    if pdl and ahead > 0 and whole and size * element_bytes % 16 == 0:
        prefetch_rows(base, min(ahead, span * element_bytes))
