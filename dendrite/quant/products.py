"""How the matrices of a decoder become products, by the mode that was asked for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.model.linear import Linear
from dendrite.quant.checkpoint import StoredWeight
from dendrite.quant.linear import QuantizedLinear
from dendrite.quant.linear_fp8 import Fp8Linear
from dendrite.quant.linear_mx import MxLinear
from dendrite.quant.scheme import QuantizeMode, StoredScheme
from dendrite.quant.weights import QuantizedWeight, by_mx_blocks, by_rows

_QUANTIZE: dict[QuantizeMode, Callable[[Tensor], QuantizedWeight]] = {
    "fp8": by_rows,
    "fp8_weight_only": by_rows,
    "mxfp8": by_mx_blocks,
    "mxfp8_weight_only": by_mx_blocks,
}


class Products:
    """Makes products of plain and of stored matrices.

    Attributes:
        mode: how plain matrices are quantised when they are loaded; None leaves them as they are.
        effective: how the products of the layers are computed: as `mode` says, or else as the checkpoint means it.
    """

    def __init__(self, mode: QuantizeMode | None = None, stored: StoredScheme | None = None) -> None:
        """Take the mode asked for, and the checkpoint's scheme where it is quantised already.

        Raises:
            InvalidArgument: the stored weights can't be used in that mode.
        """
        if mode is not None and stored is not None and mode not in stored.modes:
            limit = f"the checkpoint is quantised already: {' or '.join(stored.modes)}, or None for its own"
            raise InvalidArgument("quantize", mode, limit)
        self.mode = mode
        self.effective = mode or (stored.modes[0] if stored is not None else None)

    def plain(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The product with a weight [N, K] that is not quantised yet."""
        if self.mode is None:
            return Linear(weight, bias)
        return _product(_QUANTIZE[self.mode](weight), bias, self.mode)

    def stored(self, found: StoredWeight, bias: Tensor | None) -> Linear:
        """The product with a weight that was stored in 8 bits."""
        return _product(found.weight, bias, self.effective, found.input_scale)

    def table(self, weight: Tensor) -> QuantizedWeight | None:
        """A table [V, d] whose rows are looked up, quantised; None where nothing is quantised when loaded."""
        return None if self.mode is None else _QUANTIZE[self.mode](weight)

    def head(self, weight: Tensor) -> Linear:
        """The product that gives logits. Its activations stay as they are: rounding them would cost most here."""
        table = self.table(weight)
        return Linear(weight) if table is None else QuantizedLinear(table)


def _product(
    weight: QuantizedWeight, bias: Tensor | None, mode: QuantizeMode | None, input_scale: Tensor | None = None
) -> Linear:
    if mode == "fp8":
        return Fp8Linear(weight, bias, input_scale)
    if mode == "mxfp8":
        return MxLinear(weight, bias)
    return QuantizedLinear(weight, bias)
