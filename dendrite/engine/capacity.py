"""How many KV pages an engine gets."""

from __future__ import annotations

import torch

from dendrite.config import EngineConfig
from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig

_CPU_TOKENS = 65_536


def page_bytes(shape: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page of keys and values over all layers."""
    return shape.num_layers * 2 * page_size * shape.kv_size * dtype.itemsize


def kv_pages(config: EngineConfig, shape: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Pages of the KV pool, the scratch page included.

    `config.kv_tokens` decides where it is given. Else, on CUDA, the pool takes what is free now (so after the weights
    have been loaded) but for the part of the memory that `config.memory_fraction` leaves to the work of a step.

    Raises:
        InvalidArgument: the memory left holds no useful pool.
    """
    size = config.page_size
    if config.kv_tokens is not None:
        return -(-config.kv_tokens // size) + 1
    if device.type != "cuda":
        return _CPU_TOKENS // size + 1
    free, total = torch.cuda.mem_get_info(device)
    budget = free - int((1.0 - config.memory_fraction) * total)
    pages = budget // page_bytes(shape, size, dtype)
    if pages < 2 + config.max_running:
        limit = f"room for at least {config.max_running} KV pages after the weights ({free >> 20} MiB are free)"
        raise InvalidArgument("memory_fraction", config.memory_fraction, limit)
    return int(pages)
