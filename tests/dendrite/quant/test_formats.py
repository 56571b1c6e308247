"""The number formats against their specification, written out, and against torch's own types bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.quant.formats import (
    E4M3,
    E5M2,
    decode_scales,
    dequantize_mx,
    quantize_mx,
    saturate,
    scale_exponents,
)
from dendrite.quant.scheme import MX_BLOCK

CODES = torch.arange(256, dtype=torch.uint8)


def decoded(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """A sign, an exponent and a mantissa, without the special values."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - bias)
    return sign * math.ldexp(1 + fraction, exponent - bias)


def e4m3(code: int) -> float:
    return math.nan if code & 0x7F == 0x7F else decoded(code, 4, 3, 7)


def e5m2(code: int) -> float:
    if code & 0x7C == 0x7C:
        special = math.nan if code & 3 else math.inf
        return -special if code & 0x80 else special
    return decoded(code, 5, 2, 15)


SPECIFICATION = {E4M3: [e4m3(code) for code in range(256)], E5M2: [e5m2(code) for code in range(256)]}
FINITE = {kind: sorted({value for value in values if math.isfinite(value)}) for kind, values in SPECIFICATION.items()}


def nearest(value: float, kind: torch.dtype) -> float:
    """The closest value of the format, of two the one whose code is even; the largest for what lies beyond."""
    choices = FINITE[kind]
    best = min(abs(choice - value) for choice in choices)
    found = [choice for choice in choices if abs(choice - value) == best]
    return next((v for v in found if SPECIFICATION[kind].index(v) % 2 == 0), found[0]) if len(found) > 1 else found[0]


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_every_code_means_what_the_specification_says(kind: torch.dtype) -> None:
    expected = torch.tensor(SPECIFICATION[kind])
    torch.testing.assert_close(CODES.view(kind).float(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_every_finite_value_survives_a_round_trip_bit_for_bit(kind: torch.dtype) -> None:
    values = CODES.view(kind)
    kept = values.float().isfinite()
    assert torch.equal(saturate(values.float(), kind).view(torch.uint8)[kept], CODES[kept])


@given(st.floats(width=32, allow_nan=False), st.sampled_from([E4M3, E5M2]))
def test_a_value_rounds_to_the_nearest(value: float, kind: torch.dtype) -> None:
    found = saturate(torch.tensor([value]), kind).float().item()
    clipped = max(FINITE[kind][0], min(FINITE[kind][-1], value))
    assert found == nearest(clipped, kind)


@given(st.floats(-448, 448, width=32))
def test_within_its_range_rounding_is_torch_s_bit_for_bit(value: float) -> None:
    values = torch.tensor([value])
    assert torch.equal(saturate(values).view(torch.uint8), values.to(E4M3).view(torch.uint8))


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_what_is_too_large_saturates_and_nan_stays(kind: torch.dtype) -> None:
    largest = torch.finfo(kind).max
    found = saturate(torch.tensor([1e30, -1e30, math.inf, -math.inf, math.nan, largest]), kind).float()
    assert found[:4].tolist() == [largest, -largest, largest, -largest]
    assert found[4].isnan()
    assert found[5] == largest


def test_another_type_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dtype"):
        saturate(torch.ones(1), torch.float16)


def test_scales_are_torch_s_e8m0_bit_for_bit() -> None:
    expected = CODES.view(torch.float8_e8m0fnu).float()
    torch.testing.assert_close(decode_scales(CODES), expected, rtol=0, atol=0, equal_nan=True)


@given(st.floats(0.5, 1, exclude_max=True, width=32), st.integers(-140, 128))
def test_a_scale_is_the_smallest_power_of_two_that_fits(mantissa: float, exponent: int) -> None:
    largest = torch.tensor(math.ldexp(mantissa, exponent), dtype=torch.float32).item()
    scale = decode_scales(scale_exponents(torch.tensor([largest]))).double().item()
    assert largest / scale <= 448 or scale == 2.0**127
    assert largest / (scale / 2) > 448 or scale == 2.0**-127


def test_a_block_that_is_not_finite_has_no_scale() -> None:
    assert scale_exponents(torch.tensor([math.inf, math.nan, 0.0])).tolist() == [255, 255, 0]


@given(
    st.integers(1, 5),
    st.integers(1, 100),
    st.sampled_from([2.0**-130, 1e-20, 1e-3, 1.0, 1e3, 1e30]),
    st.integers(0, 2**31),
)
def test_mx_keeps_the_shape_and_the_precision_of_any_matrix(rows: int, columns: int, size: float, seed: int) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    elements, scales = quantize_mx(values)
    assert elements.shape == values.shape
    assert elements.is_contiguous()
    assert scales.shape == (rows, -(-columns // MX_BLOCK))
    found = dequantize_mx(elements, scales)
    step = decode_scales(scales).double().repeat_interleave(MX_BLOCK, 1)[:, :columns]
    # Half a unit in the last of four bits, or of the smallest that the block's scale leaves.
    limit = torch.maximum(values.double().abs() * 2.0**-4, step * 2.0**-10)
    assert bool(((found.double() - values.double()).abs() <= limit).all())


@given(st.integers(-100, 100), st.integers(0, 2**31))
def test_mx_is_exact_where_the_block_is_representable(exponent: int, seed: int) -> None:
    """A power of two times E4M3 values with the largest among them, for the rule to find the same scale."""
    codes = torch.randint(0, 127, (3, MX_BLOCK), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    codes[:, 0] = 126
    values = torch.ldexp(codes.view(E4M3).float(), torch.tensor(exponent))
    elements, scales = quantize_mx(values)
    assert torch.equal(elements.view(torch.uint8), codes)
    assert scales.unique().tolist() == [exponent + 127]
    assert torch.equal(dequantize_mx(elements, scales), values)
