"""Activations to E4M3 with a scale for each row, for products whose both sides are FP8."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dendrite.kernels.fp8 import to_e4m3

_BLOCK = 1024  # columns that a program takes at once


def quantize_rows(x: Tensor, elements: Tensor, scales: Tensor) -> None:
    """Divide each row by its scale, largest magnitude / 448, and round to E4M3.

    Args:
        x: [M, K].
        elements: [M, K] float8_e4m3fn, written.
        scales: [M] float32, written; 1 for a row of zeros.
    """
    rows, size = x.shape
    _quantize_rows_kernel[(rows,)](x, elements, scales, x.stride(0), size=size, block=_BLOCK)


@triton.jit
def _quantize_rows_kernel(x, elements, scales, stride, size: tl.constexpr, block: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    source = x + m * stride
    column = tl.arange(0, block)
    largest = tl.zeros((block,), tl.float32)
    for start in range(0, size, block):
        values = tl.load(source + start + column, mask=start + column < size, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(values), propagate_nan=tl.PropagateNan.ALL)
    top = tl.max(largest, 0)
    scale = tl.where(top == 0, 1.0, tl.maximum(tl.div_rn(top, 448.0), 1.1754943508222875e-38))
    tl.store(scales + m, scale)
    for start in range(0, size, block):
        inside = start + column < size
        values = tl.load(source + start + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(elements + m * size + start + column, to_e4m3(tl.div_rn(values, scale)), mask=inside)
