from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dendrite.attention.tree_cost import CostModel
from dendrite.errors import InvalidArgument
from tests.dendrite.attention.forests import Forest, forests, grow

pytest.importorskip("triton")
from dendrite.attention.tree import TreeAttention, plan_limits
from dendrite.kernels.attention import TileConfig

EAGER = CostModel(item_us=0.01, partial_us=0.001, merge_us=0.0)
# A device of few programs: the interpreter is slow, and small inputs should still be cut.
TILE = TileConfig(block_m=32, block_n=32, small_n=32, warps=4, stages=2, small_stages=2)
# Without a GPU the kernels run on the CPU, in Triton's interpreter.
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU tests cover it")


@dataclass
class Setup:
    """A forest's KV in one layer of two, every slot that is no row's token NaN, and float64 copies of each row's."""

    forest: Forest
    storage: Tensor
    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def expected(self, lengths: np.ndarray) -> Tensor:
        """Attention by its definition, in float64: [rows, Hq, D]."""
        query = self.query.double().cpu()
        group = query.shape[1] // self.storage.shape[4]
        out = torch.zeros_like(query)
        for row, length in enumerate(lengths.tolist()):
            if length:
                key, value = (part[row][:length].repeat_interleave(group, 1) for part in (self.keys, self.values))
                scores = torch.einsum("hd,nhd->hn", query[row], key) * query.shape[2] ** -0.5
                out[row] = torch.einsum("hn,nhd->hd", scores.softmax(-1), value)
        return out


def build(
    forest: Forest, heads: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu", kv: torch.dtype | None = None
) -> Setup:
    """Random KV for every token that is or will be within the horizon."""
    query_heads, kv_heads, dim = heads
    size, rows = forest.page_size, len(forest.tables)
    generator = torch.Generator().manual_seed(int(forest.lengths.sum()))
    stored = torch.randn(forest.pages, 2, size, kv_heads, dim, generator=generator).to(kv or dtype).float()
    used = torch.zeros(forest.pages, size, dtype=torch.bool)
    keys, values = [], []
    for table, length in zip(forest.tables, forest.lengths.tolist(), strict=True):
        position = torch.arange(length + forest.horizon if length else 0)
        page, slot = torch.from_numpy(table.astype(np.int64))[position // size], position % size
        used[page, slot] = True
        keys.append(stored[page, 0, slot].double())
        values.append(stored[page, 1, slot].double())
    storage = torch.full((2, *stored.shape), float("nan"), dtype=torch.float32)
    storage[1] = torch.where(used[:, None, :, None, None], stored, float("nan"))
    query = torch.randn(rows, query_heads, dim, generator=generator).to(dtype)
    return Setup(forest, storage.to(kv or dtype).to(device), query.to(device), keys, values)


def make(setup: Setup, rows: int | None = None, **options: Any) -> TreeAttention:
    entries = sum(len(table) for table in setup.forest.tables)
    return TreeAttention(setup.storage, setup.query.shape[1], rows or len(setup.query), entries, **options)


def decode(attention: TreeAttention, setup: Setup, lengths: np.ndarray, rows: int | None = None) -> Tensor:
    """Attend at the given lengths by the current plan; the output starts as NaN."""
    rows = rows or len(lengths)
    attention.lengths[: len(lengths)] = torch.from_numpy(lengths)
    query = torch.full((rows, *setup.query.shape[1:]), float("nan"), dtype=setup.query.dtype)
    query = query.to(setup.query.device)
    query[: len(lengths)] = setup.query
    out = torch.full_like(query, float("nan"))
    attention.decode(1, query, out, rows)
    return out


def error(found: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest value of the row."""
    scale = expected.abs().amax((1, 2), keepdim=True).clamp(min=1e-3)
    return float(((found.double().cpu() - expected) / scale).abs().max())


@interpreted
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(
    forests(max_rows=6, max_segment=40, max_depth=4),
    st.sampled_from([(4, 4, 16), (4, 2, 32), (8, 1, 16)]),
    st.sampled_from([torch.float32, torch.float16]),
    st.booleans(),
)
def test_random_trees_match_the_dense_computation(
    forest: Forest, heads: tuple[int, int, int], dtype: torch.dtype, idle: bool
) -> None:
    if idle:
        forest.lengths[::3] = 0
    setup = build(forest, heads, dtype)
    attention = make(setup, sm_count=8, cost=EAGER, tile=TILE)
    attention.plan(forest.tables, forest.lengths, forest.horizon)
    found = decode(attention, setup, forest.lengths)
    assert found.dtype == dtype
    assert error(found, setup.expected(forest.lengths)) < (1e-5 if dtype == torch.float32 else 5e-3)


def small_forest(horizon: int = 24) -> Forest:
    """Five rows of two trees, three levels deep."""
    return grow(np.random.default_rng(3), 8, horizon, rows=5, trees=2, longest=60, depth=3)


@interpreted
def test_rows_grow_without_a_new_plan() -> None:
    forest = small_forest()
    setup = build(forest, (4, 2, 16), torch.float32)
    attention = make(setup, sm_count=8, cost=EAGER, tile=TILE)
    assert attention.plan(forest.tables, forest.lengths, forest.horizon).kind == "tree"
    for grown in (1, 8, 24):
        found = decode(attention, setup, forest.lengths + grown)
        assert error(found, setup.expected(forest.lengths + grown)) < 1e-5


@interpreted
def test_a_launch_may_have_more_rows_than_the_batch() -> None:
    forest = small_forest()
    setup = build(forest, (4, 2, 16), torch.float32)
    attention = make(setup, rows=8, sm_count=8, cost=EAGER, tile=TILE)
    more = grow(np.random.default_rng(4), 8, 0, rows=8, trees=1, longest=20, depth=2)
    crowd = make(build(more, (4, 2, 16), torch.float32), sm_count=8)
    assert crowd.plan(more.tables, more.lengths).splits.all()
    attention.plan(forest.tables, forest.lengths, forest.horizon, rows=8)
    found = decode(attention, setup, forest.lengths, rows=8)
    assert error(found[:5], setup.expected(forest.lengths)) < 1e-5
    assert (found[5:] == 0).all()


@interpreted
def test_a_plan_replaces_the_one_before() -> None:
    forest = small_forest()
    setup = build(forest, (4, 2, 16), torch.float32)
    attention = make(setup, sm_count=8, cost=EAGER, tile=TILE)
    attention.plan(forest.tables, forest.lengths, forest.horizon)
    fewer = forest.lengths.copy()
    fewer[:3] = 0
    attention.plan(forest.tables, fewer, forest.horizon)
    assert error(decode(attention, setup, fewer), setup.expected(fewer)) < 1e-5


@interpreted
def test_reserved_pages_are_uploaded_under_the_same_plan() -> None:
    forest = small_forest()
    setup = build(forest, (4, 2, 16), torch.float32)
    attention = make(setup, sm_count=8, cost=EAGER, tile=TILE)
    held = [table[: -(-length // 8)] for table, length in zip(forest.tables, forest.lengths.tolist(), strict=True)]
    plan = attention.plan(held, forest.lengths, forest.horizon)
    assert error(decode(attention, setup, forest.lengths), setup.expected(forest.lengths)) < 1e-5
    attention.upload_tables(plan, forest.tables)
    grown = forest.lengths + forest.horizon
    assert error(decode(attention, setup, grown), setup.expected(grown)) < 1e-5


@interpreted
def test_scores_far_apart_do_not_overflow() -> None:
    forest = small_forest(0)
    setup = build(forest, (4, 2, 16), torch.float32)
    setup.query *= 300
    attention = make(setup, sm_count=8, cost=EAGER, tile=TILE)
    attention.plan(forest.tables, forest.lengths)
    assert error(decode(attention, setup, forest.lengths), setup.expected(forest.lengths)) < 1e-3


def test_counters_add_up_what_was_read_and_spared() -> None:
    storage = torch.zeros(3, 100, 2, 8, 2, 16, dtype=torch.bfloat16)
    attention = TreeAttention(storage, 4, 4, 400, cost=EAGER)
    tables = [np.r_[1:33, 33 + row : 34 + row] for row in range(4)]
    plan = attention.plan(tables, [256 + 3] * 4, horizon=4)
    attention.count(plan, 4)
    counters = attention.counters
    assert (counters.tree_batches, counters.flat_batches, counters.steps) == (1, 0, 4)
    assert counters.tokens_saved == 4 * (3 * 256)
    assert counters.tokens_read + counters.tokens_saved == sum(4 * (259 + step) for step in range(4))
    assert attention.kv_bytes_saved == counters.tokens_saved * 3 * 2 * 2 * 16 * 2
    attention.count(attention.plan(tables[:1], [259]), 1)
    assert (counters.tree_batches, counters.flat_batches) == (1, 1)


@pytest.mark.parametrize(
    ("heads", "shape", "field"),
    [
        (5, (1, 4, 2, 16, 2, 64), "num_heads"),
        (130, (1, 4, 2, 16, 1, 64), "num_heads"),
        (4, (1, 4, 2, 16, 2, 80), "head_dim"),
        (4, (1, 4, 2, 12, 2, 64), "page_size"),
        (4, (1, 4, 2, 128, 2, 64), "page_size"),
    ],
)
def test_shapes_that_the_kernels_do_not_take_are_refused(heads: int, shape: tuple[int, ...], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        TreeAttention(torch.zeros(shape), heads, 2, 8)
    assert caught.value.field == field


def test_batches_over_the_capacity_are_refused() -> None:
    attention = TreeAttention(torch.zeros(1, 9, 2, 8, 2, 16), 4, 2, 4)
    with pytest.raises(InvalidArgument, match="tables"):
        attention.plan([np.arange(1, 6)], [33])
    with pytest.raises(InvalidArgument, match="rows"):
        attention.plan([np.array([1])] * 3, [1] * 3)
    with pytest.raises(InvalidArgument, match="rows"):
        plan_limits(5000)


@pytest.mark.gpu
@settings(max_examples=30)
@given(
    forests(),
    st.sampled_from([(32, 4, 64), (32, 8, 128), (14, 2, 64), (16, 16, 64)]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.sampled_from([EAGER, CostModel()]),
)
def test_cuda_matches_the_dense_computation_while_rows_grow(
    forest: Forest, heads: tuple[int, int, int], dtype: torch.dtype, cost: CostModel
) -> None:
    setup = build(forest, heads, dtype, "cuda")
    attention = make(setup, cost=cost)
    attention.plan(forest.tables, forest.lengths, forest.horizon)
    for grown in {0, forest.horizon}:
        lengths = forest.lengths + grown
        assert error(decode(attention, setup, lengths), setup.expected(lengths)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 4, 64), (32, 8, 128)])
def test_cuda_converts_float8_after_the_load(heads: tuple[int, int, int]) -> None:
    forest = grow(np.random.default_rng(5), 16, 0, rows=40, trees=2, longest=300, depth=3)
    setup = build(forest, heads, torch.bfloat16, "cuda", torch.float8_e4m3fn)
    attention = make(setup, cost=EAGER)
    attention.plan(forest.tables, forest.lengths)
    assert error(decode(attention, setup, forest.lengths), setup.expected(forest.lengths)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("most", [64, 100])
def test_a_captured_graph_follows_new_plans_and_lengths(most: int, pdl: bool) -> None:
    shapes = [(40, 2, 3), (64, 8, 2), (1, 1, 1)]
    drawn = [grow(np.random.default_rng(6), 16, 16, rows, trees, 300, depth) for rows, trees, depth in shapes]
    # One storage for all: a forest's page ids are its own, so the largest holds each in turn.
    pages = max(forest.pages for forest in drawn)
    setups = [build(Forest(16, 16, f.tables, f.lengths, pages), (32, 4, 64), torch.bfloat16, "cuda") for f in drawn]
    storage = setups[0].storage.clone()
    attention = TreeAttention(storage, 32, most, 1 << 16, pdl=pdl)
    query = torch.zeros(most, 32, 64, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(query)
    attention.decode(1, query, out, most)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.decode(1, query, out, most)
    for setup in setups:
        storage.copy_(setup.storage)
        rows = len(setup.query)
        query[:rows] = setup.query
        attention.plan(setup.forest.tables, setup.forest.lengths, 16, rows=most)
        for grown in (0, 1, 16):
            lengths = setup.forest.lengths + grown
            attention.lengths[:rows] = torch.from_numpy(lengths)
            graph.replay()
            replayed = out.clone()
            attention.decode(1, query, out, most)
            assert torch.equal(replayed, out)
            assert error(replayed[:rows], setup.expected(lengths)) < 1e-2
            assert (replayed[rows:] == 0).all()
