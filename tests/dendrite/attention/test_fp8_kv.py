"""Attention over FP8 keys and values, by the scales of the heads: what the widened numbers give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from dendrite.attention.torch_reference import TorchAttention
from dendrite.attention.tree_cost import CostModel
from dendrite.kv.storage import KvStorage
from dendrite.quant.formats import E4M3
from dendrite.quant.weights import quantize_to
from tests.dendrite.attention.forests import Forest, grow
from tests.dendrite.attention.test_torch_reference import Built, Case, Sequence, build, cases

GPU = torch.cuda.is_available()


def head_scales(kv_heads: int, layers: int = 1) -> Tensor:
    """Different for every head, keys and values."""
    return torch.rand(layers, 2, kv_heads, generator=torch.Generator().manual_seed(kv_heads)) * 0.05 + 0.005


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    return quantize_to(values, scale).float() * scale


def in_fp8(built: Built, scales: Tensor, device: str = "cpu") -> KvStorage:
    """The case's storage in FP8."""
    pages = built.storage.pages
    layers, count, _, size, heads, dim = pages.shape
    storage = KvStorage(layers, count, size, heads, dim, E4M3, device, scales)
    storage.pages.view(torch.uint8).copy_(quantize_to(pages, scales.view(1, 1, 2, 1, heads, 1)).view(torch.uint8))
    return storage


def widened(built: Built, scales: Tensor) -> Built:
    """The same case with keys and values as FP8 holds them, in float32."""
    heads = scales.shape[2]
    built.storage.pages.copy_(rounded(built.storage.pages, scales.view(1, 1, 2, 1, heads, 1)))
    built.key, built.value = (
        rounded(part, by.unsqueeze(-1)) for part, by in zip((built.key, built.value), scales[0], strict=True)
    )
    return built


@given(cases())
def test_the_reference_attends_to_the_widened_numbers(case: Case) -> None:
    built = build(case, torch.float32)
    scales = head_scales(case.kv_heads)
    attention = TorchAttention(in_fp8(built, scales))
    attention.begin(built.batch)
    found = attention.forward(0, built.query, built.key, built.value)
    wide = widened(built, scales)
    expected = TorchAttention(wide.storage)
    expected.begin(wide.batch)
    torch.testing.assert_close(found, expected.forward(0, wide.query, wide.key, wide.value), rtol=1e-5, atol=1e-5)


def tree_error(
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    forest: Forest,
    *,
    apart: bool = False,
    **options: object,
) -> float:
    """Largest error of tree attention over FP8 against its definition; its partial results are kept in 16 bits."""
    pytest.importorskip("triton")
    from tests.dendrite.attention.test_tree import build as build_tree
    from tests.dendrite.attention.test_tree import decode, error, make

    setup = build_tree(forest, heads, dtype, device, E4M3)
    scales = head_scales(heads[1], layers=2) * 20
    attention = make(setup, kv_scales=scales.to(device), **options)
    plan = attention.plan(forest.tables, forest.lengths, forest.horizon)
    attention.apart = attention.reads_apart(plan, len(forest.lengths))
    assert attention.apart == apart
    found = decode(attention, setup, forest.lengths)
    by_key, by_value = scales[1].double().unsqueeze(-1)
    setup.keys = [key * by_key for key in setup.keys]
    setup.values = [value * by_value for value in setup.values]
    return error(found, setup.expected(forest.lengths))


@pytest.mark.skipif(GPU, reason="the GPU test covers it")
@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (5, torch.float32), (5, torch.bfloat16)])
def test_the_tree_kernel_attends_to_the_widened_numbers(rows: int, dtype: torch.dtype) -> None:
    from tests.dendrite.attention.test_tree import EAGER, TILE

    forest = grow(np.random.default_rng(3), 8, 0, rows=rows, trees=min(rows, 2), longest=60, depth=3)
    assert tree_error((4, 2, 32), dtype, "cpu", forest, sm_count=8, cost=EAGER, tile=TILE) < 1e-2


@pytest.mark.skipif(GPU, reason="the GPU test covers it")
def test_rows_that_share_nothing_are_read_by_a_launch_of_their_own() -> None:
    forest = grow(np.random.default_rng(4), 16, 0, rows=12, trees=12, longest=80, depth=1)
    flat = CostModel(least_gain_us=math.inf)
    assert tree_error((4, 2, 32), torch.float32, "cpu", forest, apart=True, sm_count=8, cost=flat) < 1e-2
    assert tree_error((4, 2, 32), torch.bfloat16, "cpu", forest, apart=True, sm_count=8, cost=flat) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 4, 64), (32, 8, 128), (32, 32, 64)])
@pytest.mark.parametrize("page", [16, 64])
def test_rows_that_share_nothing_on_a_gpu(heads: tuple[int, int, int], page: int) -> None:
    forest = grow(np.random.default_rng(5), page, 0, rows=64, trees=64, longest=900, depth=1)
    flat = CostModel(least_gain_us=math.inf)
    assert tree_error(heads, torch.bfloat16, "cuda", forest, apart=True, cost=flat) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 4, 64), (32, 8, 128)])
@pytest.mark.parametrize("rows", [1, 40])
def test_the_tree_kernel_on_a_gpu(heads: tuple[int, int, int], rows: int) -> None:
    forest = grow(np.random.default_rng(5), 16, 0, rows=rows, trees=min(rows, 2), longest=300, depth=3)
    assert tree_error(heads, torch.bfloat16, "cuda", forest) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flashinfer_attends_to_the_widened_numbers(head_dim: int) -> None:
    from dendrite.attention.flashinfer import FlashInferAttention
    from tests.dendrite.attention.test_flashinfer import error, on_gpu

    sequences = [Sequence(33), Sequence(70), Sequence(40, queries=24), Sequence(130, queries=130)]
    built = build(Case(16, 4, 8, head_dim, 3, sequences), torch.float32)
    scales = head_scales(4)
    attention = FlashInferAttention(in_fp8(built, scales, "cuda"), 32)
    attention.begin(on_gpu(built.batch))
    query, key, value = (part.bfloat16() for part in (built.query, built.key, built.value))
    found = attention.forward(0, query.cuda(), key.cuda(), value.cuda())
    built.query, built.key, built.value = query.float(), key.float(), value.float()
    wide = widened(built, scales)
    expected = TorchAttention(wide.storage)
    expected.begin(wide.batch)
    assert error(found, expected.forward(0, wide.query, wide.key, wide.value)) < 1e-2
