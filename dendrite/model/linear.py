"""Matrix products with fixed weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.errors import InvalidArgument
from dendrite.quant.weights import Scales

# oneDNN picks the blocks of a packed weight for a number of rows; a decode step of a search has tens.
_PACKED_FOR_ROWS = 32
# Rows are rounded up to multiples: (up to so many rows, of so much). oneDNN compiles a product for each number of rows
# and keeps a thousand of them: half a megabyte and a millisecond each, of which a model of one width has four or five.
_STEPS = ((16, 1), (32, 4), (256, 8), (512, 16), (math.inf, 64))


class Linear:
    """y = x Wᵀ + b.

    On the CPU, PyTorch's product rearranges the weight at every call. Here it is rearranged once, by oneDNN, which
    halves the time of the small batches that a decode step is made of. Its kernels are compiled for a number of rows,
    so rows of zeros are added up to one of few numbers (`padded_rows`). The layout is opaque, so the weight cannot be
    read back; `pack=False` keeps it as given, for a weight that something else uses too.
    """

    __slots__ = ("_bias", "_packed", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        """Take a weight [out, in] and a bias [out]."""
        self._bias = bias
        self._packed = pack and _can_pack(weight)
        if self._packed:
            weight = torch.ops.mkldnn._reorder_linear_weight.default(weight, _PACKED_FOR_ROWS)
        self._weight = weight

    @property
    def weight(self) -> Tensor:
        """The weight as given, [out, in].

        Raises:
            InvalidArgument: it was packed.
        """
        if self._packed:
            raise InvalidArgument("weight", "packed", "a weight that was not rearranged (pack=False)")
        return self._weight

    def dense(self) -> Tensor:
        """The weight as given, [out, in]; a copy where it was packed."""
        return self._weight.to_dense() if self._packed else self._weight

    @property
    def bias(self) -> Tensor | None:
        """The bias as given, [out]."""
        return self._bias

    @property
    def scales(self) -> Scales | None:
        """What the weight's elements are multiplied by; None unless they are quantised."""
        return None

    @property
    def weight_memory(self) -> int:
        """Address of the weight, by which a weight that is used twice is found; 0 where it was rearranged."""
        return 0 if self._packed else self._weight.data_ptr()

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias; oneDNN may pad what it rearranges beyond that."""
        bias = 0 if self._bias is None else self._bias.numel() * self._bias.element_size()
        return self._weight.numel() * self._weight.element_size() + bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """[T, in] to [T, out], of the weight's type."""
        if self._packed:
            rows = inputs.shape[0]
            more = padded_rows(rows) - rows
            padded = F.pad(inputs, (0, 0, 0, more)) if more else inputs
            product: Tensor = torch.ops.mkldnn._linear_pointwise.default(
                padded, self._weight, self._bias, "none", [], ""
            )
            return product[:rows]
        return F.linear(inputs, self._weight, self._bias)

    def into(self, inputs: Tensor, out: Tensor) -> None:
        """Write the product of [T, in] to `out` [T, out]; allocates nothing."""
        if self._bias is None:
            torch.mm(inputs, self.weight.t(), out=out)
        else:
            torch.addmm(self._bias, inputs, self.weight.t(), out=out)


def padded_rows(rows: int) -> int:
    """With how many rows a packed product of so many is computed: at most 63 more, and at most a quarter more."""
    step = next(step for most, step in _STEPS if rows <= most)
    return -(-rows // step) * step


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
