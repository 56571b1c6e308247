from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

pytest.importorskip("triton")

from dendrite.kernels.elementwise import final_norm, prepare, rms_norm, rope_append, swiglu
from dendrite.model.config import RopeConfig
from dendrite.model.rope import inverse_frequencies
from tests.dendrite.kernels.layers import EPS, Attention, relative_error

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 96), (5, 2048)])
def test_rms_norm(rows: int, size: int) -> None:
    x, weight = torch.randn(rows, size, device=DEVICE) * 3, torch.rand(size, device=DEVICE) + 0.5
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, out)
    torch.testing.assert_close(out, F.rms_norm(x, (size,), weight, EPS))


@pytest.mark.parametrize(("rows", "inner"), [(1, 25), (3, 1500)])
def test_swiglu(rows: int, inner: int) -> None:
    gate_up = torch.randn(rows, 2 * inner, device=DEVICE)
    out = torch.full((rows, inner), torch.nan, device=DEVICE)
    swiglu(gate_up, out)
    gate, up = gate_up.chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 32), (8, 2, 64), (5, 2, 48)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_append_is_what_the_decoder_computes(
    rows: int, heads: int, kv_heads: int, head_dim: int, normed: bool
) -> None:
    case = Attention.random(
        rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, size=64, biased=True, normed=normed
    ).to(DEVICE, torch.float32)
    query, kv = case.outputs()
    rope_append(case.projected, case.qk_norm, EPS, case.cos_sin, case.slots, query, kv)
    expected_query, expected_kv = case.expected()
    torch.testing.assert_close(query, expected_query, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kv, expected_kv, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_prepare_looks_up_embedding_rotation_and_slot() -> None:
    rows, size, half, page_size, vocabulary = 4, 1100, 24, 8, 11
    frequencies = inverse_frequencies(RopeConfig(theta=10_000.0), 2 * half).to(DEVICE)
    embedding = torch.randn(vocabulary, size, device=DEVICE)
    tokens = torch.tensor([10, 0, 3, 3], device=DEVICE).int()
    positions = torch.tensor([0, 17, 5, 131071], device=DEVICE).int()
    alive = torch.tensor([1, 1, 0, 1], device=DEVICE).int()
    row_start = torch.tensor([3, 0, 1 << 30, 4 - 131071 // 8], device=DEVICE).int()  # a dead row's is not followed
    pages = torch.tensor([7, 9, 5, 2, 6], device=DEVICE).int()
    hidden = torch.full((rows, size), torch.nan, device=DEVICE)
    cos_sin = torch.full((rows, 2 * half), torch.nan, device=DEVICE)
    slots, lengths = (torch.full((rows,), -5, dtype=torch.int32, device=DEVICE) for _ in range(2))

    prepare(
        tokens, positions, alive, pages, row_start, page_size, embedding, frequencies, hidden, cos_sin, slots, lengths
    )

    assert torch.equal(hidden, embedding[tokens.long()])
    angles = positions.long().unsqueeze(1) * frequencies
    torch.testing.assert_close(cos_sin, torch.cat((angles.cos(), angles.sin()), dim=1), rtol=0, atol=2e-6)
    assert slots.tolist() == [2 * 8 + 0, 5 * 8 + 1, 2, 6 * 8 + 131071 % 8]
    assert lengths.tolist() == [1, 18, -5, 131072]


@pytest.mark.parametrize("size", [64, 96])
def test_final_norm_stores_living_rows_only(size: int) -> None:
    rows, capacity = 5, 7
    hidden, weight = torch.randn(rows, size, device=DEVICE), torch.rand(size, device=DEVICE) + 0.5
    alive = torch.tensor([1, 0, 1, 1, 0], device=DEVICE).int()
    step = torch.tensor([2], device=DEVICE).int()
    tips, ring = torch.zeros(capacity, size, device=DEVICE), torch.zeros(4, capacity, size, device=DEVICE)
    final_norm(hidden, weight, EPS, alive, step, tips, ring)
    expected = torch.zeros(capacity, size, device=DEVICE)
    expected[:rows] = F.rms_norm(hidden, (size,), weight, EPS) * alive.unsqueeze(1)
    torch.testing.assert_close(tips, expected)
    torch.testing.assert_close(ring[2], expected)
    assert not ring[[0, 1, 3]].any()


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "heads", "kv_heads", "head_dim"), [(2048, 32, 4, 64), (4096, 32, 8, 128)])
@pytest.mark.parametrize("rows", [1, 65, 256])
def test_real_shapes_in_bfloat16(size: int, heads: int, kv_heads: int, head_dim: int, rows: int) -> None:
    for normed in (False, True):
        case = Attention.random(
            rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, size=size, biased=True, normed=normed
        ).to("cuda", torch.bfloat16)
        wide = case.to("cuda", torch.float64)
        query, kv = case.outputs()
        rope_append(case.projected, case.qk_norm, EPS, case.cos_sin, case.slots, query, kv, pdl=True)
        expected_query, expected_kv = wide.expected()
        assert relative_error(query, expected_query) < 1e-2
        written = ~expected_kv.isnan()
        assert torch.equal(kv.isnan(), ~written)
        assert relative_error(kv[written], expected_kv[written]) < 1e-2

        out = torch.empty_like(case.hidden)
        rms_norm(case.hidden, case.norm, EPS, out, pdl=True)
        assert relative_error(out, F.rms_norm(wide.hidden, (size,), wide.norm, EPS)) < 5e-3
