"""What an engine runs on: the choice of attention and of the decode loop by device."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from dendrite.attention.base import Attention
from dendrite.attention.torch_reference import TorchAttention
from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.kv.storage import KvStorage

if TYPE_CHECKING:
    from dendrite.engine.device_loop import DeviceLoop
    from dendrite.engine.tips import TipStore
    from dendrite.kv.cache import KvCache
    from dendrite.model.decoder import Decoder


def make_attention(config: EngineConfig, storage: KvStorage, num_heads: int) -> Attention:
    """Attention for given tokens: FlashInfer on CUDA, plain PyTorch elsewhere and where FlashInfer has no kernel.

    Raises:
        MissingDependency: FlashInfer is not installed, and `device="cuda"` was asked for. `device="auto"` takes the
        slower path, with a warning.
    """
    if storage.pages.device.type != "cuda":
        return TorchAttention(storage)
    from dendrite.attention.flashinfer import FlashInferAttention

    try:
        return FlashInferAttention(storage, num_heads)
    except InvalidArgument:  # a head size or type without a kernel
        return TorchAttention(storage)
    except MissingDependency as error:
        if config.device != "auto":
            raise
        warnings.warn(f"prefill runs on plain PyTorch: {error}", stacklevel=3)
        return TorchAttention(storage)


def make_device_loop(
    decoder: Decoder,
    storage: KvStorage,
    tips: TipStore,
    cache: KvCache,
    config: EngineConfig,
    longest_context: int,
) -> DeviceLoop | None:
    """The loop that decodes many tokens a step on CUDA; None elsewhere."""
    if decoder.device.type != "cuda":
        return None
    from dendrite.engine.device_loop import DeviceLoop

    return DeviceLoop(decoder, storage, tips, cache, config, longest_context)
