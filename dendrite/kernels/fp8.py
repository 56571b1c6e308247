"""E4M3 and E8M0 in kernels: rounding to elements, and the scales of a weight's groups."""

import triton
import triton.language as tl

_LARGEST = tl.constexpr(448.0)
_SMALLEST_NORMAL = tl.constexpr(0.015625)  # 2^-6
# Adding and taking it away rounds float32 to multiples of 2^-9, the step of E4M3's subnormals: 1.5 * 2^23 * 2^-9.
_TO_STEP = tl.constexpr(24576.0)


@triton.jit
def to_e4m3(x):
    """Float32 rounded to E4M3, ties to even; what is larger than 448 becomes that, NaN stays NaN.

    The code is put together here rather than left to a conversion, so that every compiler, and Triton's interpreter,
    agrees.
    """
    given = x.to(tl.int32, bitcast=True)
    magnitude = tl.minimum((given & 0x7FFFFFFF).to(tl.float32, bitcast=True), _LARGEST)
    bits = magnitude.to(tl.int32, bitcast=True)
    bits += 0x7FFFF + ((bits >> 20) & 1)  # to three bits of the mantissa
    normal = (bits >> 20) - ((127 - 7) << 3)  # from float32's bias of the exponent to E4M3's
    subnormal = (((magnitude + _TO_STEP) - _TO_STEP) * 512.0).to(tl.int32)
    code = tl.where(magnitude < _SMALLEST_NORMAL, subnormal, normal)
    code = tl.where(x == x, code, 0x7F) | ((given >> 24) & 0x80)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def convert(x, scale, dtype: tl.constexpr):
    """Float32 `x` as stored in memory of `dtype`: divided by `scale` where that is E4M3, rounded as the host does."""
    return to_e4m3(tl.div_rn(x, scale)) if dtype == tl.float8e4nv else x.to(dtype)


@triton.jit
def load_factors(pointers, mask):
    """Factors at `pointers` in float32: float32 as they are, uint8 as the powers of two that E8M0 stands for."""
    if pointers.dtype.element_ty == tl.uint8:
        stored = tl.load(pointers, mask=mask, other=0).to(tl.int32)
        bits = tl.where(stored == 0, 1 << 22, stored << 23)  # 2^-127 is subnormal in float32
        bits = tl.where(stored == 255, 0x7FC00000, bits)
        factors = bits.to(tl.float32, bitcast=True)
    else:
        factors = tl.load(pointers, mask=mask, other=0.0)
    return factors
