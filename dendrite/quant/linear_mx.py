"""Products whose both sides are MXFP8: blocks of 32 elements with a power of two each."""

from __future__ import annotations

import importlib
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.quant.formats import dequantize_mx, quantize_mx
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.weights import QuantizedWeight

_ROW_TILE, _COLUMN_TILE = 128, 4
"""Rows, and scales of a row, that the tensor cores take at once."""


class MxLinear(QuantizedLinear):
    """y = x Wᵀ + b, x and W in MXFP8.

    On CUDA the tensor cores of Blackwell multiply it, through FlashInfer. The CPU multiplies the same numbers, widened.
    """

    __slots__ = ("_flashinfer", "_tiled_scales")

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        """Take an MXFP8 weight [out, in] and a bias [out].

        Raises:
            InvalidArgument: the weight is not MXFP8.
            MissingDependency: on CUDA, FlashInfer is not installed, or too old.
        """
        if not weight.is_mx:
            raise InvalidArgument("weight", weight.scales.group, "must have E8M0 scales of 32 elements")
        super().__init__(weight, bias)
        self._flashinfer: Any = None
        self._tiled_scales: Tensor | None = None
        if weight.elements.is_cuda:
            self._flashinfer = load_flashinfer()
            self._tiled_scales = tile_scales(weight.scales.values)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for weight, bias, and scales, which Blackwell wants in an order of its own too."""
        tiled = 0 if self._tiled_scales is None else self._tiled_scales.untyped_storage().nbytes()
        return super().nbytes + tiled

    def __call__(self, inputs: Tensor) -> Tensor:
        """[T, in] to [T, out], of the inputs' type."""
        if self._flashinfer is None:
            rounded = dequantize_mx(*quantize_mx(inputs)).to(inputs.dtype)
            return F.linear(rounded, self._quantized.dequantize(inputs.dtype), self._bias)
        elements, scales = self._flashinfer.mxfp8_quantize(inputs, is_sf_swizzled_layout=True)
        product: Tensor = self._flashinfer.mm_mxfp8(
            elements, self._weight.t(), scales, self._tiled_scales, out_dtype=inputs.dtype
        )
        return product if self._bias is None else product.add_(self._bias)

    def into(self, inputs: Tensor, out: Tensor) -> None:
        """Write the product of [T, in] to `out` [T, out]; what it allocates it frees again."""
        out.copy_(self(inputs))


def tile_scales(stored: Tensor) -> Tensor:
    """E8M0 scales [N, K / 32] in the order in which Blackwell's tensor cores read them: flat, uint8.

    Tiles of 128 rows by 4 scales, one after the other along a row of tiles, filled up with zeros. In a tile, the four
    scales of rows r, r + 32, r + 64 and r + 96 lie side by side (cuBLAS, "1D block scaling factors layout").
    """
    rows, columns = stored.shape
    padding = (0, -columns % _COLUMN_TILE, 0, -rows % _ROW_TILE)
    tiles = F.pad(stored, padding).view(-(-rows // _ROW_TILE), 4, 32, -(-columns // _COLUMN_TILE), _COLUMN_TILE)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().view(-1)


def load_flashinfer() -> Any:
    """FlashInfer, which has the MXFP8 product.

    Raises:
        MissingDependency: it is not installed, or has no such product.
    """
    remedy = "pip install 'dendrite[gpu]', or use quantize='mxfp8_weight_only'"
    try:
        found = importlib.import_module("flashinfer")
    except ImportError as error:
        raise MissingDependency("flashinfer", f"MXFP8 products need it ({error})", remedy) from error
    if not hasattr(found, "mm_mxfp8"):
        raise MissingDependency("flashinfer", "this version has no mm_mxfp8", remedy)
    return found
