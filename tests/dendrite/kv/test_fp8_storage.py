"""Keys and values in FP8: how they are rounded, and that copies move them bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.kv.pages import TailCopy
from dendrite.kv.storage import KvStorage
from dendrite.quant.formats import E4M3, saturate
from tests.tiny_config import TINY

LAYERS, HEADS, DIM, PAGE = 2, 3, 4, 8


def storage_of(scales: torch.Tensor | None = None, num_pages: int = 6) -> KvStorage:
    return KvStorage(LAYERS, num_pages, PAGE, HEADS, DIM, E4M3, scales=scales)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def filled() -> KvStorage:
    storage = storage_of()
    noise = torch.Generator().manual_seed(0)
    bits(storage.pages).copy_(torch.randint(0, 127, storage.pages.shape, generator=noise))
    return storage


SCALES = torch.rand(LAYERS, 2, HEADS, generator=torch.Generator().manual_seed(1)) * 3 + 0.01


@given(st.floats(1e-4, 1e4), st.integers(0, 2**31), st.booleans())
def test_what_is_written_is_divided_by_the_scale_of_its_head(size: float, seed: int, scaled: bool) -> None:
    storage = storage_of(SCALES if scaled else None)
    key, value = torch.randn(2, 2, HEADS, DIM, generator=torch.Generator().manual_seed(seed)) * size
    storage.write(1, torch.tensor([PAGE + 7, 2 * PAGE]), key, value)
    factors = SCALES[1] if scaled else torch.ones(2, HEADS)
    for row, (page, offset) in enumerate([(1, 7), (2, 0)]):
        for kind, given_rows in enumerate((key, value)):
            expected = saturate(given_rows[row] / factors[kind].unsqueeze(-1))
            assert torch.equal(bits(storage.pages[1, page, kind, offset]), bits(expected))
    assert not bits(storage.pages[0]).any()


def test_values_out_of_range_saturate_and_nan_stays() -> None:
    storage = storage_of()
    key = torch.tensor([1e9, -1e9, math.inf, math.nan]).expand(1, HEADS, DIM)
    storage.write(0, torch.tensor([PAGE]), key, key)
    found = storage.pages[0, 1, 0, 0, 0].float()
    assert found[:3].tolist() == [448.0, -448.0, 448.0]
    assert found[3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_type_of_key_is_taken(dtype: torch.dtype) -> None:
    storage = storage_of()
    ones = torch.ones(1, HEADS, DIM, dtype=dtype)
    storage.write(0, torch.tensor([PAGE]), ones, ones)
    assert torch.equal(storage.pages[0, 1, :, 0].float(), torch.ones(2, HEADS, DIM))


def test_tails_are_copied_bit_for_bit() -> None:
    storage = filled()
    before = bits(storage.pages).clone()
    storage.copy_tails([TailCopy(1, 3, 5), TailCopy(1, 4, 2)])
    for target in (3, 4):
        assert torch.equal(bits(storage.pages)[:, target], before[:, 1])
    assert torch.equal(bits(storage.pages)[:, [0, 1, 2, 5]], before[:, [0, 1, 2, 5]])


def test_tokens_are_read_and_written_bit_for_bit() -> None:
    source, target = filled(), storage_of()
    data = source.read_tokens(torch.tensor([4 * PAGE + 3, PAGE]))
    assert data.dtype == E4M3
    target.write_tokens(torch.tensor([2 * PAGE, 3 * PAGE + 7]), data)
    for to, (page, offset) in (((2, 0), (4, 3)), ((3, 7), (1, 0))):
        assert torch.equal(bits(target.pages)[:, to[0], :, to[1]], bits(source.pages)[:, page, :, offset])


def test_tokens_of_another_type_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="data"):
        storage_of().write_tokens(torch.tensor([PAGE]), torch.zeros(LAYERS, 2, 1, HEADS, DIM))


def test_bytes_are_what_is_allocated() -> None:
    fp8, wide = storage_of(), KvStorage(LAYERS, 6, PAGE, HEADS, DIM, torch.bfloat16)
    assert fp8.total_bytes == fp8.pages.untyped_storage().nbytes() == 6 * LAYERS * 2 * PAGE * HEADS * DIM
    assert fp8.total_bytes * 2 == wide.total_bytes
    assert fp8.page_bytes * 6 == fp8.total_bytes
    assert fp8.scale_bytes == LAYERS * 2 * HEADS * 4
    assert wide.scale_bytes == 0


@pytest.mark.parametrize("wrong", [torch.ones(LAYERS, 2), -SCALES, SCALES * math.nan, SCALES * 0])
def test_scales_that_do_not_fit_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match="scales"):
        storage_of(wrong)


def test_scales_are_a_copy_in_float32() -> None:
    given_scales = SCALES.clone()
    storage = storage_of(given_scales)
    given_scales.zero_()
    assert storage.scales is not None
    assert torch.equal(storage.scales, SCALES)
    wide = storage_of(SCALES.double()).scales
    assert wide is not None
    assert wide.dtype == torch.float32


@pytest.mark.parametrize("scales", [None, SCALES])
def test_scales_lie_where_the_pages_lie(scales: torch.Tensor | None) -> None:
    storage = KvStorage(LAYERS, 6, PAGE, HEADS, DIM, E4M3, "meta", scales)
    assert storage.scales is not None
    assert storage.scales.device == storage.pages.device == torch.device("meta")


def test_storage_for_a_model_has_the_scales_given() -> None:
    scales = torch.arange(1.0, 1 + 2 * 2 * TINY.num_kv_heads).view(2, 2, TINY.num_kv_heads)
    storage = KvStorage.of(TINY, 5, PAGE, E4M3, torch.device("cpu"), scales)
    assert storage.pages.dtype == E4M3
    assert storage.scales is not None
    assert torch.equal(storage.scales, scales)


def test_scales_go_with_fp8_alone() -> None:
    with pytest.raises(InvalidArgument, match="scales"):
        KvStorage(LAYERS, 6, PAGE, HEADS, DIM, torch.float32, scales=SCALES)
