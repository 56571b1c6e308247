"""Products whose both sides are FP8: weights with a scale a row, activations scaled as they come."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.quant import weights
from dendrite.quant.formats import E4M3
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.weights import QuantizedWeight


class Fp8Linear(QuantizedLinear):
    """y = x Wᵀ + b, x and W in E4M3, summed in float32 (W8A8).

    Each row of x has a scale of its own, its largest magnitude / 448; or, where a checkpoint was calibrated so, all
    have `input_scale`, and larger values saturate. On CUDA the tensor cores multiply FP8 (`torch._scaled_mm`). The CPU
    has no such unit: it multiplies the same numbers in float32.
    """

    __slots__ = ("_input_scale",)

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None, input_scale: Tensor | None = None) -> None:
        """Take a weight [out, in] with a scale a row, a bias [out], and the activations' scale [] if it is fixed.

        Raises:
            InvalidArgument: the weight has scales by group.
        """
        if weight.scales.group:
            limit = "one for each row of the weight; with scales by group use weight-only products"
            raise InvalidArgument("scales", f"groups of {weight.scales.group}", limit)
        super().__init__(weight, bias)
        self._input_scale = input_scale

    def __call__(self, inputs: Tensor) -> Tensor:
        """[T, in] to [T, out], of the inputs' type."""
        elements, scales = self._quantize(inputs)
        if inputs.is_cuda:
            product = torch._scaled_mm(
                elements,
                self._weight.t(),
                scale_a=scales.unsqueeze(1),
                scale_b=self.scales.values.unsqueeze(0),
                out_dtype=torch.bfloat16,  # all that it gives for scales by row
            )
        else:
            product = elements.float() @ self._weight.float().t()
            product = product * scales.unsqueeze(1) * self.scales.values
        product = product.to(inputs.dtype)
        return product if self._bias is None else product.add_(self._bias)

    def into(self, inputs: Tensor, out: Tensor) -> None:
        """Write the product of [T, in] to `out` [T, out]; what it allocates it frees again."""
        out.copy_(self(inputs))

    def _quantize(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Elements [T, in] and scales [T]."""
        if self._input_scale is not None:
            scales = self._input_scale.expand(inputs.shape[0]).contiguous()
            return weights.quantize_to(inputs, self._input_scale), scales
        if not inputs.is_cuda:
            return weights.quantize_rows(inputs)
        from dendrite.kernels.quantize import quantize_rows  # Triton is there where CUDA is

        elements = torch.empty(inputs.shape, dtype=E4M3, device=inputs.device)
        scales = torch.empty(inputs.shape[0], device=inputs.device)
        quantize_rows(inputs, elements, scales)
        return elements, scales
