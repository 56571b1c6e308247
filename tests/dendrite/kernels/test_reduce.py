"""The kernels that reduce partial products, against what the decoder computes with the whole product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

pytest.importorskip("triton")

from dendrite.kernels.gemm import linear_partials, linear_swiglu, partials_size
from dendrite.kernels.reduce import residual_norm, rope_append_partials, swiglu_partials
from tests.dendrite.kernels.layers import EPS, Attention, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parts_of(whole: Tensor, splits: int) -> Tensor:
    """[splits, ..] float32, of which `whole` is the sum."""
    parts = torch.randn(splits, *whole.shape, device=whole.device)
    parts[-1] = whole - parts[:-1].sum(0)
    return parts


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize(("rows", "size", "biased"), [(1, 64, False), (3, 192, True), (5, 2048, False)])
def test_residual_norm_adds_and_norms(splits: int, rows: int, size: int, biased: bool) -> None:
    product, hidden = torch.randn(rows, size, device=DEVICE), torch.randn(rows, size, device=DEVICE)
    bias = torch.randn(size, device=DEVICE) if biased else None
    weight = torch.rand(size, device=DEVICE) + 0.5
    out = torch.full_like(hidden, torch.nan)
    expected = hidden + product if bias is None else hidden + product + bias
    residual_norm(parts_of(product, splits), bias, hidden, weight, EPS, out)
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, F.rms_norm(expected, (size,), weight, EPS), rtol=1e-5, atol=1e-5)


def test_the_norm_is_of_what_was_stored() -> None:
    hidden = torch.full((1, 64), 1024.0, dtype=torch.float16, device=DEVICE)
    product = torch.full((1, 1, 64), 0.4, device=DEVICE)  # lost in rounding
    product[..., 32:] = 0.6  # rounded up to 1
    out = torch.empty(1, 64, device=DEVICE)
    residual_norm(product, None, hidden, torch.ones(64, device=DEVICE), EPS, out)
    assert hidden[0, 0] == 1024
    assert hidden[0, -1] == 1025
    torch.testing.assert_close(out, F.rms_norm(hidden.float(), (64,), None, EPS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 32), (8, 2, 64), (5, 2, 48)])
@pytest.mark.parametrize(("normed", "biased"), [(False, True), (True, False), (True, True)])
def test_rope_append_is_what_the_decoder_computes(
    splits: int, rows: int, heads: int, kv_heads: int, head_dim: int, normed: bool, biased: bool
) -> None:
    case = Attention.random(
        rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, size=64, biased=biased, normed=normed
    ).to(DEVICE, torch.float32)
    product = case.projected if case.bias is None else case.projected - case.bias
    query, kv = case.outputs()
    rope_append_partials(parts_of(product, splits), case.bias, case.qk_norm, EPS, case.cos_sin, case.slots, query, kv)
    expected_query, expected_kv = case.expected()
    torch.testing.assert_close(query, expected_query, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kv, expected_kv, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("rows", "inner", "biased"), [(1, 25, True), (3, 1500, False)])
def test_swiglu_partials(splits: int, rows: int, inner: int, biased: bool) -> None:
    product = torch.randn(rows, 2 * inner, device=DEVICE)
    bias = torch.randn(2 * inner, device=DEVICE) if biased else None
    out = torch.full((rows, inner), torch.nan, device=DEVICE)
    swiglu_partials(parts_of(product, splits), bias, out)
    gate, up = (product if bias is None else product + bias).chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "heads", "kv_heads", "head_dim"), [(2048, 32, 4, 64), (4096, 32, 8, 128)], ids=["tinyllama", "llama8b"]
)
@pytest.mark.parametrize("rows", [2, 65, 256])
def test_real_shapes_in_bfloat16(size: int, heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    for normed in (False, True):
        case = Attention.random(
            rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, size=size, biased=True, normed=normed
        ).to("cuda", torch.bfloat16)
        wide = case.to("cuda", torch.float64)
        x = F.rms_norm(case.hidden, (size,), case.norm, EPS)
        workspace = torch.empty(partials_size("qkv", rows, case.weight), device="cuda")
        query, kv = case.outputs()
        partials = linear_partials(x, case.weight, workspace, "qkv", pdl=True)
        rope_append_partials(partials, case.bias, case.qk_norm, EPS, case.cos_sin, case.slots, query, kv, pdl=True)
        expected_query, expected_kv = wide.expected()
        assert relative_error(query, expected_query) < 1e-2
        written = ~expected_kv.isnan()
        assert torch.equal(kv.isnan(), ~written)
        assert relative_error(kv[written], expected_kv[written]) < 1e-2

        product = torch.randn(4, rows, size, device="cuda")
        hidden, out = case.hidden.clone(), torch.empty_like(case.hidden)
        residual_norm(product, case.bias[:size], hidden, case.norm, EPS, out, pdl=True)
        expected = wide.hidden + product.double().sum(0) + wide.bias[:size]
        assert relative_error(hidden, expected) < 5e-3
        assert relative_error(out, F.rms_norm(hidden.double(), (size,), wide.norm, EPS)) < 5e-3


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [2, 40, 200])
def test_overlapping_launches_in_a_graph_equal_serial_ones(rows: int) -> None:
    """Layers in which every kernel reads what the one before it wrote, many times over."""
    size, inner, layers = 1024, 2816, 12
    case = Attention.random(rows, heads=16, kv_heads=4, head_dim=64, size=size, biased=False, normed=False)
    case = case.to("cuda", torch.bfloat16)

    def weights(*shape: int) -> list[Tensor]:
        return [torch.randn(shape, device="cuda").bfloat16() / shape[-1] ** 0.5 for _ in range(layers)]

    output, gate_up, down = weights(size, size), weights(2 * inner, size), weights(size, inner)
    start, normed = case.hidden.clone(), torch.empty_like(case.hidden)
    query, kv = case.outputs()
    activated = torch.empty(rows, inner, device="cuda", dtype=torch.bfloat16)
    workspace = torch.empty(8 * rows * 2 * size, device="cuda")

    def run(pdl: bool) -> None:
        case.hidden.copy_(start)
        normed.copy_(start)
        for layer in range(layers):
            partials = linear_partials(normed, case.weight, workspace, "qkv", pdl=pdl)
            rope_append_partials(partials, None, None, EPS, case.cos_sin, case.slots, query, kv, pdl=pdl)
            partials = linear_partials(query.view(rows, size), output[layer], workspace, "output", pdl=pdl)
            residual_norm(partials, None, case.hidden, case.norm, EPS, normed, pdl=pdl)
            linear_swiglu(normed, gate_up[layer], None, activated, pdl=pdl)
            partials = linear_partials(activated, down[layer], workspace, "down", pdl=pdl)
            residual_norm(partials, None, case.hidden, case.norm, EPS, normed, pdl=pdl)

    run(pdl=False)
    expected = case.hidden.clone(), query.clone(), kv.clone()
    run(pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(pdl=True)
    for _ in range(20):
        graph.replay()
        torch.cuda.synchronize()
        for found, wanted in zip((case.hidden, query, kv), expected, strict=True):
            assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
