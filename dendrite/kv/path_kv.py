"""The KV of a part of a path, packed for another engine of the same model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dendrite.errors import InvalidArgument, KvFormatMismatch

_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "float8_e4m3fn": np.uint8}
"""What holds a type's bits, where NumPy has no such type an integer."""
_BITS = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}


@dataclass(frozen=True, slots=True)
class KvFormat:
    """What two engines must have in common to exchange KV. Page sizes may differ.

    `model` tells weights apart (see `dendrite.model.fingerprint`); `dtype` is that of hidden states, which are `width`
    wide, and `kv_dtype` that of keys and values. `kv_scales` tells apart by what these are multiplied, where they are
    in FP8.
    """

    model: str
    dtype: str
    kv_dtype: str
    kv_scales: str
    layers: int
    kv_heads: int
    head_dim: int
    width: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * np.dtype(_NUMPY[self.kv_dtype]).itemsize

    def accept(self, other: KvFormat) -> None:
        """Check that KV of the format `other` may be used here.

        Raises:
            KvFormatMismatch: it may not.
        """
        for field in fields(self):
            found, expected = getattr(other, field.name), getattr(self, field.name)
            if found != expected:
                raise KvFormatMismatch(field.name, found, expected)


@dataclass(frozen=True, slots=True, eq=False)
class PathKv:
    """T tokens of a path, the first of them at position `start`, with their keys and values.

    The arrays live in host memory, and may be read-only views of memory that other processes read too.

    Attributes:
        format: of the KV.
        start: tokens of the path before these.
        tokens: [T] int32.
        logprobs: [at most T] float64: natural-log probabilities of the last ones, which were generated.
        kv: [layers, 2, T, Hkv, D], keys before values, in one piece. bfloat16 is kept as uint16, FP8 as uint8.
        tip: [d] hidden state of the last token; None where it is not known.
    """

    format: KvFormat
    start: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float64]
    kv: NDArray[Any]
    tip: NDArray[Any] | None

    @property
    def end(self) -> int:
        """Tokens of the path up to and with the last of these."""
        return self.start + len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.tokens, self.logprobs, self.kv, self.tip)
        return sum(array.nbytes for array in arrays if array is not None)

    def check(self) -> None:
        """Check that the arrays are what the format says.

        Raises:
            InvalidArgument: one is of another shape or type.
        """
        shape = self.format
        expected = (shape.layers, 2, len(self.tokens), shape.kv_heads, shape.head_dim)
        _require("kv", self.kv, expected, np.dtype(_NUMPY[shape.kv_dtype]))
        if self.tip is not None:
            _require("tip", self.tip, (shape.width,), np.dtype(_NUMPY[shape.dtype]))
        if len(self.logprobs) > len(self.tokens):
            raise InvalidArgument("logprobs", len(self.logprobs), f"at most {len(self.tokens)}, one for each token")


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor's content in host memory."""
    found = tensor.cpu()
    array: NDArray[Any] = found.view(_BITS.get(found.dtype, found.dtype)).numpy()
    return array


def to_torch(array: NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on `device` with the content of what `to_numpy` gave."""
    tensor = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    tensor.view(_BITS.get(dtype, dtype)).numpy()[...] = array
    return tensor.to(device, non_blocking=True)


def _require(field: str, array: NDArray[Any], shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    if array.shape != shape or array.dtype != kind:
        raise InvalidArgument(field, f"{list(array.shape)} of {array.dtype}", f"must be {list(shape)} of {kind}")
