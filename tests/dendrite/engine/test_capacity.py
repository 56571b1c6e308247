"""How many pages an engine takes."""

from __future__ import annotations

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine.capacity import kv_pages, page_bytes
from dendrite.errors import InvalidArgument
from tests.tiny_config import TINY

CPU = torch.device("cpu")


def test_tokens_are_rounded_up_to_pages_and_the_scratch_page_comes_on_top() -> None:
    assert kv_pages(EngineConfig(kv_tokens=65, page_size=8), TINY, torch.float32, CPU) == 10


def test_the_cpu_has_a_pool_of_fixed_size() -> None:
    assert kv_pages(EngineConfig(), TINY, torch.float32, CPU) == 65_536 // 16 + 1


def test_bytes_of_a_page() -> None:
    assert page_bytes(TINY, 16, torch.bfloat16) == 2 * 2 * 16 * 2 * 8 * 2


@pytest.mark.gpu
def test_the_pool_takes_its_share_of_what_is_free() -> None:
    device = torch.device("cuda")
    free, total = torch.cuda.mem_get_info(device)
    pages = kv_pages(EngineConfig(memory_fraction=0.5), TINY, torch.bfloat16, device)
    assert abs(pages * page_bytes(TINY, 16, torch.bfloat16) - (free - total / 2)) < 64 << 20


@pytest.mark.gpu
def test_a_pool_without_room_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="memory_fraction"):
        kv_pages(EngineConfig(memory_fraction=1e-6), TINY, torch.bfloat16, torch.device("cuda"))
