"""The products and KV writes of a decode step with FP8 and MXFP8: what they compute from the widened numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

pytest.importorskip("triton")

from dendrite.kernels import elementwise, gemm, linear, reduce
from dendrite.kernels.gemm_config import GemmConfig
from dendrite.kernels.linear_config import LinearConfig
from dendrite.quant.formats import E4M3, group_count, saturate
from dendrite.quant.weights import QuantizedWeight, Scales, by_mx_blocks, by_rows
from tests.dendrite.kernels.layers import EPS, Attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 200  # no multiple of 32, of 128, nor of a tile
GEMV = LinearConfig(block_n=16, block_k=128, warps=4, stages=2)


def by_blocks_of_128(weight: Tensor) -> QuantizedWeight:
    """Groups of 128 columns with float32 scales, as in some checkpoints."""
    rows, columns = weight.shape
    scales = torch.rand(rows, group_count(columns, 128), device=weight.device) + 0.5
    wide = scales.repeat_interleave(128, 1)[:, :columns]
    return QuantizedWeight(saturate(weight / wide), Scales(scales, 128))


WAYS = {"rows": by_rows, "mx": by_mx_blocks, "blocks": by_blocks_of_128}
Way = Callable[[Tensor], QuantizedWeight]
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


@every_way
@pytest.mark.parametrize(("rows", "columns", "biased"), [(1, 50, True), (2, 16, False)])
def test_a_vector_product(way: Way, rows: int, columns: int, biased: bool) -> None:
    x, weight, bias = random(rows, SIZE), way(random(columns, SIZE)), random(columns) if biased else None
    expected = F.linear(x, weight.dequantize(torch.float32), bias)
    out, hidden = torch.full_like(expected, torch.nan), torch.ones_like(expected)
    linear.linear(x, weight.elements, bias, out, scales=weight.scales, config=GEMV)
    linear.linear_residual(x, weight.elements, bias, hidden, scales=weight.scales, config=GEMV)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden, expected + 1, rtol=1e-4, atol=1e-4)


@every_way
def test_gate_and_up_of_a_vector(way: Way) -> None:
    hidden, norm, weight = random(1, SIZE), torch.rand(SIZE, device=DEVICE) + 0.5, way(random(50, SIZE))
    out = torch.full((1, 25), torch.nan, device=DEVICE)
    linear.gate_up_swiglu(hidden, norm, EPS, weight.elements, None, out, scales=weight.scales, config=GEMV)
    wide = weight.dequantize(torch.float32)
    gate, up = F.linear(F.rms_norm(hidden, (SIZE,), norm, EPS), wide).chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-4, atol=1e-4)


@every_way
@pytest.mark.parametrize("config", [GemmConfig(16, 32, 64), GemmConfig(16, 16, 128), GemmConfig(16, 32, 16), None])
@pytest.mark.parametrize(("rows", "biased"), [(2, True), (19, False)])
def test_a_product_of_rows(way: Way, config: GemmConfig | None, rows: int, biased: bool) -> None:
    x, weight, bias = random(rows, SIZE), way(random(50, SIZE)), random(50) if biased else None
    out = torch.full((rows, 50), torch.nan, device=DEVICE)
    gemm.linear(x, weight.elements, bias, out, scales=weight.scales, config=config)
    torch.testing.assert_close(out, F.linear(x, weight.dequantize(torch.float32), bias), rtol=1e-4, atol=1e-4)


@every_way
@pytest.mark.parametrize("splits", [1, 3])
def test_partial_sums_and_swiglu_of_rows(way: Way, splits: int) -> None:
    x, weight = random(5, SIZE), way(random(50, SIZE))
    wide = weight.dequantize(torch.float32)
    workspace = torch.empty(splits * 5 * 50, device=DEVICE)
    config = GemmConfig(16, 32, 32, splits)
    parts = gemm.linear_partials(x, weight.elements, workspace, "down", scales=weight.scales, config=config)
    torch.testing.assert_close(parts.sum(0), F.linear(x, wide), rtol=1e-4, atol=1e-4)
    out = torch.empty(5, 25, device=DEVICE)
    gemm.linear_swiglu(x, weight.elements, None, out, scales=weight.scales, config=replace(config, splits=1))
    gate, up = F.linear(x, wide).chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-4, atol=1e-4)


@every_way
def test_the_embedding_of_a_row(way: Way) -> None:
    embedding = way(random(9, SIZE))
    tokens, zeros = (
        torch.tensor([8, 0, 3], dtype=torch.int32, device=DEVICE),
        torch.zeros(3, dtype=torch.int32, device=DEVICE),
    )
    hidden = torch.empty(3, SIZE, device=DEVICE)
    elementwise.prepare(
        tokens,
        zeros,
        zeros,
        zeros,
        zeros,
        16,
        embedding.elements,
        torch.ones(4, device=DEVICE),
        hidden,
        torch.empty(3, 8, device=DEVICE),
        zeros.clone(),
        zeros.clone(),
        scales=embedding.scales,
    )
    assert torch.equal(hidden, embedding.rows(tokens.long(), torch.float32))


@pytest.mark.parametrize("scaled", [True, False])
def test_keys_and_values_are_stored_by_the_scales_of_their_heads(scaled: bool) -> None:
    """By both kernels that write them, from the same product."""
    case = Attention.random(3, heads=4, kv_heads=2, head_dim=32, size=64, biased=False, normed=True)
    case = case.to(DEVICE, torch.float32)
    query, kv = case.outputs()
    expected_query, expected = case.expected()
    scales = torch.tensor([[0.01, 2.0], [0.5, 0.003]], device=DEVICE) if scaled else None
    factors = torch.ones(2, 2, device=DEVICE) if scales is None else scales
    stored = saturate(expected / factors.view(1, 2, 1, 2, 1))
    unwritten = expected.isnan()
    for write in ("vector", "rows"):
        memory = torch.zeros(kv.shape, dtype=E4M3, device=DEVICE)
        if write == "vector":
            linear.qkv_rope_append(
                case.hidden, case.norm, EPS, case.weight, case.bias, case.qk_norm, case.cos_sin, case.slots, query,
                memory, kv_scales=scales, config=GEMV,
            )  # fmt: skip
        else:
            normed = F.rms_norm(case.hidden, (64,), case.norm, EPS)
            reduce.rope_append_partials(
                F.linear(normed, case.weight)[None], None, case.qk_norm, EPS, case.cos_sin, case.slots, query, memory,
                kv_scales=scales,
            )  # fmt: skip
        torch.testing.assert_close(query, expected_query, rtol=1e-5, atol=1e-5)
        same = memory.view(torch.uint8) == stored.view(torch.uint8)
        assert (same | unwritten).float().mean() > 0.98  # float32 sums in another order may round to a neighbour
        torch.testing.assert_close(memory.float()[~unwritten], stored.float()[~unwritten], rtol=0.13, atol=0.002)
        assert not memory.float()[unwritten].any()
