"""What a device can't run is refused with the reason and what to use instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.quant.capability import check_kv, check_weights
from dendrite.quant.scheme import QuantizeMode, StoredScheme
from tests.tiny_config import TINY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
BF16 = torch.bfloat16
SHAPE = replace(TINY, head_dim=16)


@pytest.mark.parametrize("mode", ["fp8", "fp8_weight_only", "mxfp8", "mxfp8_weight_only", None])
def test_the_cpu_runs_every_mode(mode: QuantizeMode | None) -> None:
    check_weights(mode, SHAPE, torch.float32, CPU)
    check_kv("fp8", replace(SHAPE, head_dim=80), 16, CPU)


@pytest.mark.parametrize("mode", ["fp8", "fp8_weight_only", "mxfp8_weight_only"])
def test_hopper_runs_all_but_mxfp8_products(mode: QuantizeMode) -> None:
    check_weights(mode, SHAPE, BF16, CUDA, HOPPER)
    with pytest.raises(InvalidArgument, match=r"9\.0 has no MXFP8.*mxfp8_weight_only"):
        check_weights("mxfp8", SHAPE, BF16, CUDA, HOPPER)


def test_ampere_runs_none() -> None:
    with pytest.raises(InvalidArgument, match=r"8\.0 has no FP8.*use None"):
        check_weights("fp8_weight_only", SHAPE, BF16, CUDA, AMPERE)
    with pytest.raises(InvalidArgument, match="use auto"):
        check_kv("fp8", SHAPE, 16, CUDA, AMPERE)
    check_kv("auto", SHAPE, 16, CUDA, AMPERE)


def test_fp8_products_give_bfloat16_and_need_sizes_by_16() -> None:
    with pytest.raises(InvalidArgument, match="fp8_weight_only"):
        check_weights("fp8", SHAPE, torch.float16, CUDA, HOPPER)
    with pytest.raises(InvalidArgument, match=r"intermediate_size=100.*fp8_weight_only"):
        check_weights("fp8", replace(SHAPE, intermediate_size=100), BF16, CUDA, HOPPER)
    check_weights("fp8_weight_only", replace(SHAPE, intermediate_size=100), torch.float16, CUDA, HOPPER)


def test_mxfp8_products_give_16_bits_and_need_sizes_by_32() -> None:
    with pytest.raises(InvalidArgument, match=r"float32.*mxfp8_weight_only"):
        check_weights("mxfp8", SHAPE, torch.float32, CUDA, BLACKWELL)
    with pytest.raises(InvalidArgument, match=r"intermediate_size=48.*mxfp8_weight_only"):
        check_weights("mxfp8", replace(SHAPE, intermediate_size=48), BF16, CUDA, BLACKWELL)


def test_mxfp8_products_need_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flashinfer", None)
    with pytest.raises(MissingDependency, match="mxfp8_weight_only"):
        check_weights("mxfp8", SHAPE, BF16, CUDA, BLACKWELL)


def test_a_quantised_checkpoint_is_checked_by_its_own_mode() -> None:
    stored = replace(SHAPE, stored=StoredScheme("dynamic"), intermediate_size=100)
    with pytest.raises(InvalidArgument, match="intermediate_size"):
        check_weights(None, stored, BF16, CUDA, HOPPER)
    check_weights(None, replace(SHAPE, stored=StoredScheme("dynamic", is_mx=True)), BF16, CUDA, HOPPER)


def test_a_head_size_without_a_kernel_for_fp8_is_refused() -> None:
    pytest.importorskip("triton")
    check_kv("fp8", SHAPE, 16, CUDA, HOPPER)
    with pytest.raises(InvalidArgument, match=r"kv_dtype.*head_dim=80.*use auto"):
        check_kv("fp8", replace(SHAPE, head_dim=80), 16, CUDA, HOPPER)
