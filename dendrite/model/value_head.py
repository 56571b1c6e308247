"""A small head that turns a hidden state into the probability that the path will succeed."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dendrite.errors import MissingTensor, TensorShapeMismatch
from dendrite.model.loader import Checkpoint, read_header

VALUE_HEAD_FILE = "value_head.safetensors"


class ValueHead:
    """value = sigmoid(out(silu(dense(hidden)))), in [0, 1].

    The tensors of `value_head.safetensors`: dense.weight [h, d], dense.bias [h], out.weight [1, h], out.bias
    [1].
    """

    def __init__(self, dense: Tensor, dense_bias: Tensor, out: Tensor, out_bias: Tensor) -> None:
        self._dense, self._dense_bias = dense, dense_bias
        self._out, self._out_bias = out, out_bias

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        hidden_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ValueHead | None:
        """Load the head that lies in a model folder; None if there is none.

        Raises:
            MissingTensor, TensorShapeMismatch, CorruptFile: the file does not hold a head for `hidden_size`.
        """
        path = Path(folder) / VALUE_HEAD_FILE
        if not path.exists():
            return None
        header = read_header(path)
        if "dense.weight" not in header:
            raise MissingTensor("dense.weight", str(path))
        found = header["dense.weight"].shape
        if len(found) != 2:
            raise TensorShapeMismatch("dense.weight", found, (-1, hidden_size), str(path))
        inner = found[0]
        shapes: dict[str, tuple[int, ...]] = {
            "dense.weight": (inner, hidden_size),
            "dense.bias": (inner,),
            "out.weight": (1, inner),
            "out.bias": (1,),
        }
        with Checkpoint(path, header) as checkpoint:
            checkpoint.check(shapes)
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes.values()]
            for name, tensor in zip(shapes, tensors, strict=True):
                checkpoint.read_into(name, tensor)
        return cls(*tensors)

    @torch.inference_mode()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Values of [B, d] final hidden states: [B] float32."""
        inner = F.silu(F.linear(hidden.to(self._dense.dtype), self._dense, self._dense_bias))
        return torch.sigmoid(F.linear(inner, self._out, self._out_bias).float()).squeeze(1)
