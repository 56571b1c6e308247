"""The KV tensors: what is written where, tail copies, export and import."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from dendrite.errors import InvalidArgument
from dendrite.kv.pages import TailCopy
from dendrite.kv.storage import KvStorage
from tests.tiny_config import TINY


def storage_of(page_size: int = 8, num_pages: int = 6, dtype: torch.dtype = torch.float32) -> KvStorage:
    return KvStorage(2, num_pages, page_size, kv_heads=3, head_dim=4, dtype=dtype)


def filled() -> KvStorage:
    storage = storage_of()
    storage.pages.copy_(torch.arange(storage.pages.numel()).view(storage.pages.shape))
    return storage


def test_it_starts_zeroed() -> None:
    assert not storage_of().pages.any()


def test_it_has_the_shape_of_the_model_and_lies_on_the_device_asked_for() -> None:
    storage = KvStorage.of(replace(TINY, num_layers=3), 5, 16, torch.bfloat16, torch.device("meta"))
    assert storage.pages.shape == (3, 5, 2, 16, TINY.num_kv_heads, TINY.head_dim)
    assert storage.page_size == 16
    assert (storage.pages.dtype, storage.pages.device.type) == (torch.bfloat16, "meta")


def test_a_write_goes_to_its_layer_page_and_offset() -> None:
    storage = storage_of()
    key, value = torch.randn(2, 3, 3, 4)
    storage.write(1, torch.tensor([8 + 7, 16, 40 + 3]), key, value)
    for row, (page, offset) in enumerate([(1, 7), (2, 0), (5, 3)]):
        assert torch.equal(storage.pages[1, page, 0, offset], key[row])
        assert torch.equal(storage.pages[1, page, 1, offset], value[row])
    assert int(storage.pages.count_nonzero()) == 2 * 3 * 3 * 4


def test_the_last_slot_can_be_written() -> None:
    storage = storage_of(num_pages=2)
    ones = torch.ones(1, 3, 4)
    storage.write(0, torch.tensor([15]), ones, 2 * ones)
    assert torch.equal(storage.pages[0, 1, :, 7], torch.cat((ones, 2 * ones)))


def test_strided_keys_are_written() -> None:
    storage = storage_of()
    both = torch.randn(2, 5, 4)
    storage.write(0, torch.tensor([9, 10]), both[:, :3], both[:, 2:])
    assert torch.equal(storage.pages[0, 1, 0, 1:3], both[:, :3])
    assert torch.equal(storage.pages[0, 1, 1, 1:3], both[:, 2:])


def test_tails_are_copied_in_all_layers() -> None:
    storage = filled()
    before = storage.pages.clone()
    storage.copy_tails([TailCopy(1, 3, 5), TailCopy(1, 4, 2)])
    for target, count in ((3, 5), (4, 2)):
        assert torch.equal(storage.pages[:, target, :, :count], before[:, 1, :, :count])
    assert torch.equal(storage.pages[:, [0, 1, 2, 5]], before[:, [0, 1, 2, 5]])


def test_a_page_may_be_source_and_destination_in_one_call() -> None:
    storage = filled()
    before = storage.pages.clone()
    storage.copy_tails([TailCopy(2, 1, 8), TailCopy(1, 3, 8)])
    assert torch.equal(storage.pages[:, 1], before[:, 2])
    assert torch.equal(storage.pages[:, 3], before[:, 1])


def test_a_cpu_copies_tails_without_the_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dendrite.kernels.pages", None)  # to import it fails, as where Triton is missing
    storage = filled()
    storage.copy_tails([TailCopy(1, 3, 8)])
    assert torch.equal(storage.pages[:, 3], storage.pages[:, 1])


def test_no_copies_is_no_work() -> None:
    storage = filled()
    before = storage.pages.clone()
    storage.copy_tails([])
    assert torch.equal(storage.pages, before)


def test_tokens_can_be_moved_to_a_storage_of_other_pages() -> None:
    source, target = filled(), storage_of(num_pages=4, page_size=16)
    there, here = torch.tensor([8, 15, 16, 40]), torch.tensor([63, 17, 18, 16])
    data = source.read_tokens(there)
    assert data.shape == (2, 2, 4, 3, 4)
    target.write_tokens(here, data)
    assert torch.equal(target.read_tokens(here), data)
    for layer in range(2):
        assert torch.equal(data[layer, 0], source.layer_rows[layer][source.key_rows(there)])
        assert torch.equal(data[layer, 1], source.layer_rows[layer][source.key_rows(there) + source.page_size])
    assert target.pages.count_nonzero() == data.count_nonzero(), "nothing else is written"


def test_tokens_go_to_the_storage_s_device_and_are_read_there() -> None:
    storage = KvStorage(2, 6, 8, kv_heads=3, head_dim=4, device="meta")
    slots = torch.tensor([8, 15])
    storage.write_tokens(slots, torch.zeros(2, 2, 2, 3, 4))  # torch refuses to copy from another device
    assert storage.read_tokens(slots).device.type == "meta"


def test_what_is_read_is_a_copy() -> None:
    storage = filled()
    data = storage.read_tokens(torch.tensor([8, 9]))
    storage.pages.zero_()
    assert data.any()


@pytest.mark.parametrize("data", [torch.zeros(2, 2, 1, 3, 4), torch.zeros(2, 2, 2, 3, 4, dtype=torch.bfloat16)])
def test_data_that_does_not_fit_is_refused(data: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match="data"):
        storage_of().write_tokens(torch.tensor([8, 9]), data)


@pytest.mark.parametrize("slot", [0, 47])
def test_the_first_and_the_last_slot_can_be_moved(slot: int) -> None:
    source, target = filled(), storage_of()
    there, (page, offset) = torch.tensor([slot]), divmod(slot, 8)
    data = source.read_tokens(there)
    assert torch.equal(data[:, :, 0], source.pages[:, page, :, offset])
    target.write_tokens(there, data)
    assert torch.equal(target.pages[:, page, :, offset], data[:, :, 0])


@pytest.mark.parametrize("slot", [-1, 48])
def test_slots_outside_the_storage_are_refused(slot: int) -> None:
    with pytest.raises(InvalidArgument, match="slots"):
        storage_of().read_tokens(torch.tensor([8, slot]))
    with pytest.raises(InvalidArgument, match="slots"):
        storage_of().write_tokens(torch.tensor([slot]), torch.zeros(2, 2, 1, 3, 4))


def test_a_storage_needs_a_page_besides_scratch() -> None:
    with pytest.raises(InvalidArgument, match="num_pages"):
        storage_of(num_pages=1)


def test_sizes_are_in_bytes() -> None:
    storage = storage_of(dtype=torch.bfloat16)
    assert storage.token_bytes == 2 * 2 * 3 * 4 * 2
    assert storage.page_bytes == 8 * storage.token_bytes
    assert storage.total_bytes == 6 * storage.page_bytes
