"""KV of all heads, between storages that hold a part of them each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dendrite.kv.storage import KvStorage
from dendrite.parallel.group import Group
from dendrite.parallel.heads import gather_tokens, scatter_tokens
from tests.dendrite.parallel.threads import on_ranks

SLOTS = torch.tensor([9, 30, 17, 31])
LAYERS, HEADS, WIDTH = 3, 4, 6


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_what_is_scattered_lies_on_its_ranks_and_is_gathered_again(dtype: torch.dtype, ranks: int) -> None:
    kv = torch.randn(LAYERS, 2, len(SLOTS), HEADS, WIDTH).to(dtype)
    compared = torch.uint8 if dtype.itemsize == 1 else dtype  # torch joins and compares no FP8

    def work(group: Group) -> tuple[Tensor, Tensor]:
        storage = KvStorage(LAYERS, 5, 8, HEADS // ranks, WIDTH, dtype)
        scatter_tokens(group, storage, SLOTS, kv if group.shard.rank == 0 else None)
        return storage.read_tokens(SLOTS), gather_tokens(group, storage, SLOTS)

    found = on_ranks(ranks, work)
    assert torch.equal(torch.cat([own.view(compared) for own, _ in found], dim=3), kv.view(compared))
    assert all(torch.equal(whole.view(compared), kv.view(compared)) for _, whole in found)
