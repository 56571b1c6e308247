"""Matrices of E4M3 elements with scales, and how to make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.quant.formats import (
    E4M3,
    E4M3_MAX,
    decode_scales,
    group_count,
    quantize_mx,
    saturate,
    spread_scales,
)
from dendrite.quant.scheme import MX_BLOCK


@dataclass(frozen=True, slots=True)
class Scales:
    """What the elements of a matrix [N, K] are multiplied by.

    group 0: one factor a row, `values` [N] float32. Else one for each row's `group` columns: `values` [N, ceil(K /
    group)], float32, or uint8 for E8M0.
    """

    values: Tensor
    group: int

    @property
    def factors(self) -> Tensor:
        """The factors in float32, shaped as `values`."""
        return decode_scales(self.values) if self.values.dtype == torch.uint8 else self.values


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A matrix [N, K]: `elements` E4M3, contiguous, and their scales.

    Raises:
        InvalidArgument: types or shapes do not go together.
    """

    elements: Tensor
    scales: Scales

    def __post_init__(self) -> None:
        if self.elements.dtype != E4M3 or self.elements.dim() != 2 or not self.elements.is_contiguous():
            found = f"{self.elements.dtype} {list(self.elements.shape)}"
            raise InvalidArgument("elements", found, f"must be a contiguous matrix of {E4M3}")
        rows, columns = self.elements.shape
        group, values = self.scales.group, self.scales.values
        expected = (rows, group_count(columns, group)) if group else (rows,)
        types = (torch.float32, torch.uint8) if group == MX_BLOCK else (torch.float32,)
        if tuple(values.shape) != expected or values.dtype not in types or not values.is_contiguous():
            limit = f"must be {list(expected)} of {' or '.join(map(str, types))} for groups of {group}"
            raise InvalidArgument("scales", f"{values.dtype} {list(values.shape)}", limit)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.elements.shape
        return rows, columns

    @property
    def is_mx(self) -> bool:
        """Whether this is MXFP8: E8M0 scales of 32 elements."""
        return self.scales.values.dtype == torch.uint8

    @property
    def nbytes(self) -> int:
        """Bytes allocated, scales included."""
        return self.elements.untyped_storage().nbytes() + self.scales.values.untyped_storage().nbytes()

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in `dtype`; the product with the scale is rounded once."""
        return _scaled(self.elements, self.scales.factors, self.scales.group).to(dtype)

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows [n] of the matrix: [n, K] in `dtype`."""
        elements = self.elements.view(torch.uint8).index_select(0, index).view(E4M3)
        picked = Scales(self.scales.values.index_select(0, index), self.scales.group)
        return _scaled(elements, picked.factors, picked.group).to(dtype)


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 elements of [R, C] and one float32 scale a row [R]: the largest magnitude of a row becomes 448."""
    wide = values.float()
    scales = row_scales(wide)
    return saturate(wide / scales.unsqueeze(1)), scales


def row_scales(values: Tensor) -> Tensor:
    """Scale of each row of [R, C] float32; 1 for a row of zeros."""
    largest = values.abs().amax(1)
    scales = (largest / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(largest == 0, 1.0, scales)


def quantize_to(values: Tensor, scale: Tensor) -> Tensor:
    """E4M3 elements of [R, C] for a scale given beforehand, one for all [] or one a row [R, 1]; saturates."""
    return saturate(values.float() / scale)


def by_rows(weight: Tensor) -> QuantizedWeight:
    """FP8 with a scale for each output channel, of a weight [N, K].

    Raises:
        InvalidArgument: the weight is not finite.
    """
    _require_finite(weight)
    elements, scales = quantize_rows(weight)
    return QuantizedWeight(elements, Scales(scales, 0))


def by_tensor(weight: Tensor) -> QuantizedWeight:
    """FP8 with one scale for the whole matrix [N, K], kept once for each row.

    Raises:
        InvalidArgument: the weight is not finite.
    """
    _require_finite(weight)
    scale = row_scales(weight.float().reshape(1, -1))
    elements = quantize_to(weight, scale)
    return QuantizedWeight(elements, Scales(scale.repeat(weight.shape[0]), 0))


def by_mx_blocks(weight: Tensor) -> QuantizedWeight:
    """MXFP8 of a weight [N, K].

    Raises:
        InvalidArgument: the weight is not finite.
    """
    _require_finite(weight)
    elements, stored = quantize_mx(weight)
    return QuantizedWeight(elements, Scales(stored, MX_BLOCK))


def _scaled(elements: Tensor, factors: Tensor, group: int) -> Tensor:
    if not group:
        return elements.float() * factors.unsqueeze(1)
    return elements.float() * spread_scales(factors, group, elements.shape[1])


def _require_finite(weight: Tensor) -> None:
    if not bool(weight.isfinite().all()):
        raise InvalidArgument("weight", "infinite or NaN", "only finite weights can be quantised")
