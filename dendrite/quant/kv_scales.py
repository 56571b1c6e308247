"""Scales of FP8 keys and values: read from a checkpoint, or calibrated on text.

E4M3 is a floating-point format: between 2^-6 and 448 its precision does not depend on the scale. A scale is needed for
heads whose keys or values would saturate, or are so small that they fall among the subnormals. Calibrated scales are
powers of two, so that scaling itself rounds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dendrite.attention.base import Attention, ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.errors import CorruptFile, InvalidArgument, MissingTensor, TensorShapeMismatch
from dendrite.kv.storage import KvStorage
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.model.loader import Checkpoint
from dendrite.model.weights import KV_SCALE_NAMES
from dendrite.parallel.sharding import Shard
from dendrite.quant.formats import E4M3_MAX

Granularity = Literal["head", "tensor"]
_HEADROOM = 2.0
"""How much larger than any seen in calibration a key or value may be before it saturates."""
_PAGE = 16


def scale_names(layer: int) -> tuple[str, str]:
    """Names of a layer's scales in a checkpoint: of keys, of values."""
    key, value = (f"model.layers.{layer}{name}" for name in KV_SCALE_NAMES)
    return key, value


def read_kv_scales(folder: str | Path, config: ModelConfig, shard: Shard | None = None) -> Tensor | None:
    """The checkpoint's scales [layers, 2, Hkv] float32; None where it has none.

    With `shard`, those of that rank's heads, and `config` is that of its part.

    Raises:
        MissingTensor: some layers have scales, and one has not.
        TensorShapeMismatch: a tensor holds neither one scale nor one for each head.
        CorruptFile: a scale is no positive number.
    """
    with Checkpoint.from_folder(folder) as checkpoint:
        if not any(name.endswith(KV_SCALE_NAMES) for name in checkpoint.names):
            return None
        shard = shard or Shard()
        heads = config.num_kv_heads * shard.size
        scales = torch.empty(config.num_layers, 2, heads)
        for layer in range(config.num_layers):
            for kind, name in enumerate(scale_names(layer)):
                info = checkpoint.info(name)
                if info is None:
                    raise MissingTensor(name, str(folder))
                stored = checkpoint.read(name).float().reshape(-1)
                if stored.numel() not in (1, heads):
                    raise TensorShapeMismatch(name, info.shape, (heads,), str(info.file))
                if not bool((stored.isfinite() & (stored > 0)).all()):
                    raise CorruptFile(str(info.file), f"tensor {name!r} holds a scale that is no positive number")
                scales[layer, kind] = stored
    return scales.chunk(shard.size, 2)[shard.rank].contiguous()


@torch.inference_mode()
def calibrate(decoder: Decoder, sequences: Sequence[Sequence[int]], granularity: Granularity = "head") -> Tensor:
    """Scales [layers, 2, Hkv] float32 from the largest keys and values of some token sequences.

    Args:
        decoder: whose keys and values.
        sequences: token ids, each run on its own.
        granularity: a scale for each head, or one for all heads of a layer's keys, and one for its values.

    Raises:
        InvalidArgument: there is no token, or a key or value is infinite or NaN.
    """
    shape = decoder.config
    sequences = [sequence for sequence in sequences if sequence]
    if not sequences:
        raise InvalidArgument("sequences", [], "at least one token to calibrate on")
    largest = torch.zeros(shape.num_layers, 2, shape.num_kv_heads, device=decoder.device)
    for sequence in sequences:
        batch = _alone(sequence, decoder.device)
        pages = batch.page_table.shape[1] + 1
        storage = KvStorage.of(shape, pages, _PAGE, decoder.dtype, decoder.device)
        decoder.forward(batch, _Recorder(TorchAttention(storage), largest))
    if not bool(largest.isfinite().all()):
        raise InvalidArgument("sequences", "infinite or NaN", "gave keys or values that are not finite")
    if granularity == "tensor":
        largest = largest.amax(2, keepdim=True).expand_as(largest)
    exponents = (largest * (_HEADROOM / E4M3_MAX)).log2().ceil()
    return torch.where(largest > 0, exponents.clamp(-100, 100).exp2(), 1.0).contiguous()


class _Recorder:
    """Passes on to another attention, keeping each head's largest magnitudes [layers, 2, Hkv]."""

    def __init__(self, inner: Attention, largest: Tensor) -> None:
        self._inner, self._largest = inner, largest

    def begin(self, batch: ForwardBatch) -> None:
        self._inner.begin(batch)

    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for kind, part in enumerate((key, value)):
            seen = self._largest[layer, kind]
            torch.maximum(seen, part.float().abs().amax((0, 2)), out=seen)
        return self._inner.forward(layer, query, key, value)


def _alone(sequence: Sequence[int], device: torch.device) -> ForwardBatch:
    """A batch of one sequence, in pages of its own."""
    count = len(sequence)
    pages = -(-count // _PAGE)
    positions = torch.arange(count, device=device)
    return ForwardBatch(
        tokens=torch.tensor(list(sequence), device=device),
        positions=positions,
        slots=positions + _PAGE,
        query_start=[0, count],
        context=[count],
        page_table=torch.arange(1, pages + 1, device=device).unsqueeze(0),
        shared_pages=[],
    )
