"""Keys and values of all heads, out of and into storages that hold a part of the heads each."""

from __future__ import annotations

import torch
from torch import Tensor

from dendrite.kv.storage import KvStorage
from dendrite.parallel.group import Group


def gather_tokens(group: Group, storage: KvStorage, slots: Tensor) -> Tensor:
    """What lies in slots [T], on every rank: [layers, 2, T, Hkv, D] with the heads of all. All ranks must call it."""
    parts = group.gather(storage.read_tokens(slots).view(torch.uint8))
    return torch.cat(parts, dim=3).view(storage.pages.dtype)


def scatter_tokens(group: Group, storage: KvStorage, slots: Tensor, kv: Tensor | None = None) -> None:
    """Fill slots [T] with what `gather_tokens` gave. All ranks must call it, and rank 0 has `kv`."""
    layers, *_, heads, head_dim = storage.pages.shape
    shard = group.shard
    if kv is None:
        shape = (layers, 2, len(slots), heads * shard.size, head_dim)
        kv = torch.empty(shape, dtype=storage.pages.dtype, device=storage.pages.device)
    kv = kv.contiguous()
    group.broadcast(kv.view(torch.uint8))
    storage.write_tokens(slots, kv[:, :, :, shard.rank * heads : (shard.rank + 1) * heads].contiguous())
