"""The 8-bit number formats: E4M3 and E5M2 elements, E8M0 scales.

E4M3 (`torch.float8_e4m3fn`) holds ±448, no infinity, and one NaN of either sign; E5M2 holds ±57344, infinities and
NaNs (OFP8, Open Compute Project). E8M0 is a power of two from 2^-127 to 2^127, or NaN: the scale of a block of 32
elements in the MX formats (OCP Microscaling, version 1.0). Values round to nearest, ties to even.

What torch does with a value beyond the largest differs between its versions and devices, so it is limited here first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.quant.scheme import MX_BLOCK

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
E4M3_MAX = 448.0
E5M2_MAX = 57344.0
_BIAS = 127
_NAN = 255
_LARGEST = {E4M3: E4M3_MAX, E5M2: E5M2_MAX}


def saturate(values: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """Round to `dtype` (E4M3 or E5M2); what lies beyond its largest value becomes that, NaN stays NaN.

    Raises:
        InvalidArgument: another type.
    """
    if dtype not in _LARGEST:
        raise InvalidArgument("dtype", dtype, f"must be {E4M3} or {E5M2}")
    limit = _LARGEST[dtype]
    return values.float().clamp(-limit, limit).to(dtype)


def scale_exponents(largest: Tensor) -> Tensor:
    """E8M0 of blocks whose largest magnitudes are `largest` (float32): uint8, the same shape.

    The smallest power of two that brings a block into E4M3's range, so that nothing saturates (rounding the scale up;
    arXiv 2506.08027). A block that holds an infinity or NaN gets NaN.
    """
    mantissa, exponent = torch.frexp(largest.float())  # largest = mantissa * 2^exponent, mantissa in [0.5, 1)
    # 448 = 0.875 * 2^9, so ceil(log2(largest / 448)) needs no logarithm.
    stored = (exponent - 9 + (mantissa > 0.875).int() + _BIAS).clamp(0, _NAN - 1)
    stored = torch.where(largest > 0, stored, 0)
    return torch.where(largest.isfinite(), stored, _NAN).to(torch.uint8)


def decode_scales(stored: Tensor) -> Tensor:
    """Powers of two that E8M0 (uint8) stands for, float32."""
    bits = stored.int() << 23
    bits = torch.where(stored == 0, 1 << 22, bits)  # 2^-127 is subnormal in float32
    bits = torch.where(stored == _NAN, 0x7FC00000, bits)
    return bits.view(torch.float32)


def group_count(size: int, group: int) -> int:
    """Groups of `group` columns that a row of `size` has; the last may be shorter."""
    return -(-size // group)


def per_group(values: Tensor, group: int) -> Tensor:
    """[R, C] as [R, groups, group] float32, the last group filled up with zeros."""
    rows, columns = values.shape
    missing = group_count(columns, group) * group - columns
    return torch.nn.functional.pad(values.float(), (0, missing)).view(rows, -1, group)


def spread_scales(scales: Tensor, group: int, columns: int) -> Tensor:
    """[R, groups] factors as [R, columns]: each repeated for the columns of its group."""
    return scales.repeat_interleave(group, 1)[:, :columns]


def quantize_mx(values: Tensor) -> tuple[Tensor, Tensor]:
    """MXFP8 of [R, C]: E4M3 elements [R, C] and E8M0 scales [R, ceil(C / 32)] uint8."""
    rows, columns = values.shape
    blocks = per_group(values, MX_BLOCK)
    stored = scale_exponents(blocks.abs().amax(-1))
    scaled = torch.ldexp(blocks, (_BIAS - stored.int()).unsqueeze(-1))  # exact, where dividing by 2^-127 is not
    elements = saturate(scaled).view(rows, -1)
    if elements.shape[1] != columns:
        elements = elements[:, :columns].clone(memory_format=torch.contiguous_format)  # lets go of the padding
    return elements, stored


def dequantize_mx(elements: Tensor, stored: Tensor) -> Tensor:
    """[R, C] float32 of what `quantize_mx` gave."""
    return elements.float() * spread_scales(decode_scales(stored), MX_BLOCK, elements.shape[1])
