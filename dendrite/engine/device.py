"""What an engine runs on: the choice of attention and of the decode loop by device."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from dendrite.attention.base import Attention
from dendrite.attention.torch_reference import TorchAttention
from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.kv.storage import KvStorage
from dendrite.quant.capability import check_kv
from dendrite.quant.formats import E4M3

if TYPE_CHECKING:
    from dendrite.engine.device_loop import DeviceLoop
    from dendrite.engine.runner import ModelRunner
    from dendrite.engine.tips import TipStore
    from dendrite.kv.cache import KvCache
    from dendrite.model.decoder import Decoder
    from dendrite.model.value_head import ValueHead
    from dendrite.parallel.leader import Leader


def choose_device(config: EngineConfig) -> torch.device:
    """The device that `config` asks for.

    Raises:
        InvalidArgument: it is CUDA, and torch sees none.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("device", "cuda", "torch sees no CUDA device here; use device='cpu' or 'auto'")
    return torch.device(config.device)


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype | None:
    """The type of weights and KV on that device; None is the checkpoint's own."""
    if config.dtype is not None:
        found: torch.dtype = getattr(torch, config.dtype)
        return found
    return torch.float32 if device.type == "cpu" else None


def check_types(config: EngineConfig, decoder: Decoder) -> torch.dtype:
    """The type that keys and values are stored in.

    Raises:
        InvalidArgument: the settings ask for 8-bit weights that the decoder was not made with, or for FP8 keys and
        values where no kernel reads them.
    """
    made = decoder.weights.quantize
    if config.quantize not in (None, made):
        limit = f"the decoder was made with {made!r}; pass quantize= to what makes it, or use Engine.from_pretrained"
        raise InvalidArgument("quantize", config.quantize, limit)
    check_kv(config.kv_dtype, decoder.config, config.page_size, decoder.device)
    return E4M3 if config.kv_dtype == "fp8" else decoder.dtype


def make_attention(config: EngineConfig, storage: KvStorage, num_heads: int, dtype: torch.dtype) -> Attention:
    """Attention for given tokens: FlashInfer on CUDA, plain PyTorch elsewhere and where FlashInfer has no kernel.

    Raises:
        MissingDependency: FlashInfer is not installed, and `device="cuda"` was asked for. `device="auto"` takes the
        slower path, with a warning.
    """
    if storage.pages.device.type != "cuda":
        return TorchAttention(storage)
    from dendrite.attention.flashinfer import FlashInferAttention

    try:
        return FlashInferAttention(storage, num_heads, dtype=dtype)
    except InvalidArgument:  # a head size or type without a kernel
        return TorchAttention(storage)
    except MissingDependency as error:
        if config.device != "auto":
            raise
        warnings.warn(f"prefill runs on plain PyTorch: {error}", stacklevel=3)
        return TorchAttention(storage)


def make_runner(
    decoder: Decoder, value_head: ValueHead | None, storage: KvStorage, attention: Attention, leader: Leader | None
) -> ModelRunner:
    """What runs the model: on this rank alone, or on all that `leader` leads."""
    from dendrite.engine.runner import ModelRunner

    if leader is None:
        return ModelRunner(decoder, value_head, storage, attention)
    from dendrite.parallel.runner import LeaderRunner

    return LeaderRunner(decoder, value_head, storage, attention, leader)


def make_device_loop(
    decoder: Decoder,
    storage: KvStorage,
    tips: TipStore,
    cache: KvCache,
    config: EngineConfig,
    longest_context: int,
) -> DeviceLoop | None:
    """The loop that decodes many tokens a step on CUDA; None elsewhere.

    None too, with a warning, for a model that its kernels can't serve, such as one with a head size that is not a power
    of two, and for one that is divided among GPUs: such a model decodes token by token, without graphs.

    Raises:
        InvalidArgument: `max_running` is more than the kernels have room for.
    """
    if decoder.device.type != "cuda":
        return None
    if decoder.group is not None:
        warnings.warn("decoding goes token by token, without CUDA graphs: tensor_parallel > 1", stacklevel=3)
        return None
    from dendrite.attention.tree import MAX_SLOTS, check_shape
    from dendrite.engine.device_loop import DeviceLoop

    if config.max_running > MAX_SLOTS:
        raise InvalidArgument("max_running", config.max_running, f"at most {MAX_SLOTS} on CUDA")
    shape = decoder.config
    try:
        check_shape(shape.num_heads, shape.num_kv_heads, shape.head_dim, config.page_size)
    except InvalidArgument as error:
        warnings.warn(f"decoding runs on plain PyTorch: {error}", stacklevel=3)
        return None
    return DeviceLoop(decoder, storage, tips, cache, config, longest_context)
