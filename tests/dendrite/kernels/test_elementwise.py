from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

pytest.importorskip("triton")

from dendrite.kernels.elementwise import final_norm, prepare, rms_norm
from dendrite.model.config import RopeConfig
from dendrite.model.rope import inverse_frequencies
from tests.dendrite.kernels.layers import EPS, relative_error

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 96), (5, 2048)])
def test_rms_norm(rows: int, size: int) -> None:
    x, weight = torch.randn(rows, size, device=DEVICE) * 3, torch.rand(size, device=DEVICE) + 0.5
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, out)
    torch.testing.assert_close(out, F.rms_norm(x, (size,), weight, EPS))


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
@pytest.mark.parametrize("size", [2048, 4096])
@pytest.mark.parametrize("rows", [1, 65, 256])
def test_rms_norm_of_real_shapes_in_bfloat16(rows: int, size: int) -> None:
    x = (torch.randn(rows, size, device="cuda") * 3).bfloat16()
    weight = (torch.rand(size, device="cuda") + 0.5).bfloat16()
    out = torch.empty_like(x)
    rms_norm(x, weight, EPS, out, pdl=True)
    assert relative_error(out, F.rms_norm(x.double(), (size,), weight.double(), EPS)) < 5e-3
