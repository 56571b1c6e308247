"""KV outside of an engine: types that NumPy lacks, and formats that do not go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dendrite.errors import InvalidArgument, KvFormatMismatch
from dendrite.kv.path_kv import KvFormat, PathKv, to_numpy, to_torch

FORMAT = KvFormat("a", "bfloat16", "bfloat16", "", layers=2, kv_heads=3, head_dim=4, width=5)


def part(tokens: int = 6, tip: bool = True) -> PathKv:
    return PathKv(
        format=FORMAT,
        start=10,
        tokens=np.arange(tokens, dtype=np.int32),
        logprobs=np.zeros(2),
        kv=np.zeros((2, 2, tokens, 3, 4), np.uint16),
        tip=np.zeros(5, np.uint16) if tip else None,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_tensor_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    array = to_numpy(tensor).copy()
    array.setflags(write=False)
    found = to_torch(array, dtype, torch.device("cpu"))
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
    found.zero_()
    assert array.any(), "what is read from others is not written"


def test_a_tensor_goes_to_the_device_asked_for() -> None:
    found = to_torch(np.zeros((3, 4), np.uint16), torch.bfloat16, torch.device("meta"))
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.bfloat16, (3, 4))


def test_sizes_are_in_bytes() -> None:
    assert FORMAT.token_bytes == 2 * 2 * 3 * 4 * 2
    assert replace(FORMAT, kv_dtype="float32").token_bytes == 2 * FORMAT.token_bytes
    assert 2 * replace(FORMAT, kv_dtype="float8_e4m3fn").token_bytes == FORMAT.token_bytes
    assert part().nbytes == 6 * 4 + 2 * 8 + 6 * FORMAT.token_bytes + 5 * 2
    assert part().end == 16


@pytest.mark.parametrize(
    "field", ["model", "dtype", "kv_dtype", "kv_scales", "layers", "kv_heads", "head_dim", "width"]
)
def test_the_field_that_differs_is_named(field: str) -> None:
    other = replace(FORMAT, **{field: "float32" if "dtype" in field else 99})
    with pytest.raises(KvFormatMismatch) as caught:
        FORMAT.accept(other)
    assert caught.value.field == field
    FORMAT.accept(replace(FORMAT))


def test_arrays_must_be_what_the_format_says() -> None:
    part().check()
    part(tip=False).check()
    for field, value in (
        ("kv", np.zeros((2, 2, 5, 3, 4), np.uint16)),
        ("kv", np.zeros((2, 2, 6, 3, 4), np.float16)),
        ("tip", np.zeros(4, np.uint16)),
        ("logprobs", np.zeros(7)),
    ):
        with pytest.raises(InvalidArgument, match=field):
            replace(part(), **{field: value}).check()


@pytest.mark.parametrize("count", [0, 6])
def test_from_none_to_all_of_the_tokens_may_be_generated(count: int) -> None:
    replace(part(), logprobs=np.zeros(count)).check()


def test_keys_and_values_in_fp8_go_with_wider_hidden_states() -> None:
    small = replace(part(), format=replace(FORMAT, kv_dtype="float8_e4m3fn"))
    with pytest.raises(InvalidArgument, match="kv"):
        small.check()
    replace(small, kv=np.zeros((2, 2, 6, 3, 4), np.uint8)).check()
