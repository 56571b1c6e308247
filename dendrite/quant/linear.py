"""Products with a quantised weight and activations as they come."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.model.linear import Linear
from dendrite.quant.weights import QuantizedWeight, Scales

_STREAMED_ROWS = 128
"""Most rows for which a product costs what reading its weight costs; more are bound by arithmetic."""


class QuantizedLinear(Linear):
    """y = x Wᵀ + b with W in 8 bits: what is read is half of 16 bits, what is computed is in the type of x.

    On CUDA, kernels that widen the weight on its way to the product run for few rows. For more rows, and on the CPU,
    the weight is widened as a whole first, for the time of the product.
    """

    __slots__ = ("_quantized",)

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        """Take a weight [out, in] and a bias [out]."""
        super().__init__(weight.elements, bias, pack=False)
        self._quantized = weight

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight with its scales; `weight` are its elements alone."""
        return self._quantized

    @property
    def scales(self) -> Scales:
        """What the weight's elements are multiplied by."""
        return self._quantized.scales

    @property
    def nbytes(self) -> int:
        """Bytes allocated for weight, scales and bias."""
        bias = 0 if self._bias is None else self._bias.untyped_storage().nbytes()
        return self._quantized.nbytes + bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """[T, in] to [T, out], of the inputs' type."""
        if inputs.is_cuda and inputs.shape[0] <= _STREAMED_ROWS:
            out = torch.empty(inputs.shape[0], self._weight.shape[0], dtype=inputs.dtype, device=inputs.device)
            self._stream(inputs, out)
            return out
        return F.linear(inputs, self._quantized.dequantize(inputs.dtype), self._bias)

    def into(self, inputs: Tensor, out: Tensor) -> None:
        """Write the product of [T, in] to `out` [T, out]; what it allocates it frees again."""
        if inputs.is_cuda and inputs.shape[0] <= _STREAMED_ROWS:
            self._stream(inputs, out)
        else:
            out.copy_(self(inputs))

    def _stream(self, inputs: Tensor, out: Tensor) -> None:
        from dendrite.kernels import gemm, linear  # Triton is there where CUDA is

        product = linear.linear if inputs.shape[0] == 1 else gemm.linear
        product(inputs.contiguous(), self._weight, self._bias, out, scales=self.scales)
