"""Rounding to E4M3 in kernels, bit for bit as on the host, and the row scales."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from dendrite.kernels.fp8 import load_factors, to_e4m3
from dendrite.kernels.quantize import quantize_rows
from dendrite.quant import weights
from dendrite.quant.formats import E4M3, decode_scales, saturate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _round(x, out, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(out + at, to_e4m3(tl.load(x + at)))


@triton.jit
def _factors(stored, out, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(out + at, load_factors(stored + at, at < size))


def rounded(values: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(values.shape, dtype=E4M3, device=DEVICE)
    _round[(1,)](values.to(DEVICE), out, values.numel())
    return out.cpu()


def test_rounding_to_e4m3_is_the_host_s_bit_for_bit() -> None:
    """All codes, the middles between them, and their neighbours in float32; then random numbers of every size."""
    codes = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    middles = (codes[1:] + codes[:-1]) / 2
    near = [torch.nextafter(middles, torch.tensor(direction)) for direction in (0.0, 1e9)]
    values = torch.cat((codes, middles, *near, torch.tensor([449.0, 1e30, torch.inf, 464.0, 1e-9])))
    noise = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    values = torch.cat((values, -values[1:], noise, noise * 300, noise * 2.0**-8))
    values = torch.nn.functional.pad(values, (0, 8192 - len(values)))
    assert torch.equal(rounded(values).view(torch.uint8), saturate(values).view(torch.uint8))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of a branch that is not taken
def test_nan_stays() -> None:
    assert rounded(torch.tensor([torch.nan, 1.0])).float().isnan().tolist() == [True, False]


def test_scales_are_decoded_as_on_the_host() -> None:
    stored = torch.arange(256, dtype=torch.uint8)
    out = torch.zeros(256, device=DEVICE)
    _factors[(1,)](stored.to(DEVICE), out, 256)
    torch.testing.assert_close(out.cpu(), decode_scales(stored), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (3, 50), (5, 1024), (2, 2500)])
def test_rows_are_quantised_bit_for_bit_as_on_the_host(rows: int, columns: int) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * 7
    values[0] = 0.0 if rows > 1 else values[0]
    elements = torch.zeros(rows, columns, dtype=E4M3, device=DEVICE)
    scales = torch.zeros(rows, device=DEVICE)
    quantize_rows(values.to(DEVICE), elements, scales)
    expected, expected_scales = weights.quantize_rows(values)
    assert torch.equal(scales.cpu(), expected_scales)
    assert torch.equal(elements.cpu().view(torch.uint8), expected.view(torch.uint8))


def test_a_column_slice_is_read_by_its_stride() -> None:
    values = torch.randn(4, 96, device=DEVICE)
    elements = torch.zeros(4, 64, dtype=E4M3, device=DEVICE)
    scales = torch.zeros(4, device=DEVICE)
    quantize_rows(values[:, :64], elements, scales)
    torch.testing.assert_close(elements.float() * scales.unsqueeze(1), values[:, :64], rtol=0.07, atol=1e-2)
