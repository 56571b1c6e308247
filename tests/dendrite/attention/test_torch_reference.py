"""Paged attention against a dense computation in float64, over random batches with poisoned memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.kv.storage import KvStorage


@dataclass
class Sequence:
    """One sequence of a batch: `queries` of its `context` tokens run now; `dry` writes go to scratch."""

    context: int
    queries: int = 1
    shared_pages: int = 0
    group: int = -1
    dry: bool = False
    pages: list[int] = field(default_factory=list)


@dataclass
class Case:
    page_size: int
    kv_heads: int
    group_size: int
    head_dim: int
    seed: int
    sequences: list[Sequence]
    hints: bool = True


@st.composite
def cases(draw: st.DrawFn) -> Case:
    page_size = draw(st.sampled_from([8, 16, 32]))
    # Lengths cluster around page boundaries, where mistakes are made.
    length = st.one_of(
        st.integers(1, 3 * page_size + 3), st.sampled_from([page_size - 1, page_size, page_size + 1, 2 * page_size])
    )
    sequences: list[Sequence] = []
    for group in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["single", "group", "chunk"]))
        if kind == "single":
            sequences.append(Sequence(draw(length), dry=draw(st.booleans())))
        elif kind == "chunk":
            context = draw(length)
            sequences.append(Sequence(context, queries=draw(st.integers(1, context))))
        else:
            pages = draw(st.integers(1, 3))
            for own in draw(st.lists(st.one_of(st.just(0), length), min_size=2, max_size=5)):
                # A dry run may end right at the end of the shared pages.
                context = pages * page_size + own
                sequences.append(Sequence(context, 1, pages, group, dry=own == 0 or draw(st.booleans())))
    return Case(
        page_size,
        kv_heads=draw(st.integers(1, 3)),
        group_size=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([8, 16])),
        seed=draw(st.integers(0, 2**31)),
        sequences=sequences,
        hints=draw(st.booleans()),
    )


@dataclass
class Built:
    storage: KvStorage
    batch: ForwardBatch
    query: Tensor
    key: Tensor
    value: Tensor
    expected: Tensor


def build(case: Case, dtype: torch.dtype) -> Built:
    """Fill a storage whose unowned slots are NaN, and attend by the definition."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    size = case.page_size
    needed = [-(-sequence.context // size) for sequence in case.sequences]
    num_pages = sum(needed) + 5
    storage = KvStorage(1, num_pages, size, case.kv_heads, case.head_dim, dtype)
    storage.pages.fill_(float("nan"))
    free = torch.randperm(num_pages - 1, generator=generator).add(1).tolist()
    prefixes: dict[int, tuple[list[int], Tensor]] = {}
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    slots: list[int] = []
    positions: list[int] = []
    expected = []
    for sequence, count in zip(case.sequences, needed, strict=True):
        heads = case.kv_heads
        kv = normal(2, sequence.context, heads, case.head_dim)
        shared_tokens = sequence.shared_pages * size
        if sequence.group in prefixes:
            shared, shared_kv = prefixes[sequence.group]
            kv[:, :shared_tokens] = shared_kv
        elif sequence.group >= 0:
            shared = [free.pop() for _ in range(sequence.shared_pages)]
            prefixes[sequence.group] = shared, kv[:, :shared_tokens].clone()
        else:
            shared = []
        sequence.pages = shared + [free.pop() for _ in range(count - len(shared))]
        places = [sequence.pages[at // size] * size + at % size for at in range(sequence.context)]
        stored = sequence.context if sequence.dry else sequence.context - sequence.queries
        if stored:
            storage.write(0, torch.tensor(places[:stored]), kv[0, :stored], kv[1, :stored])
        query = normal(sequence.queries, heads * case.group_size, case.head_dim)
        new = kv[:, sequence.context - sequence.queries :]
        rows.append((query, new[0], new[1]))
        slots += [0] * sequence.queries if sequence.dry else places[sequence.context - sequence.queries :]
        positions += range(sequence.context - sequence.queries, sequence.context)
        expected.append(dense_attention(query, kv[0], kv[1]))
    starts = [0]
    for sequence in case.sequences:
        starts.append(starts[-1] + sequence.queries)
    width = max(needed)
    batch = ForwardBatch(
        tokens=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        query_start=starts,
        context=[sequence.context for sequence in case.sequences],
        page_table=torch.tensor([s.pages + [0] * (width - len(s.pages)) for s in case.sequences]),
        shared_pages=shared_runs(case.sequences) if case.hints else [],
    )
    query, key, value = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Built(storage, batch, query, key, value, torch.cat(expected))


def shared_runs(sequences: list[Sequence]) -> list[tuple[int, int, int]]:
    runs = []
    for group in sorted({sequence.group for sequence in sequences if sequence.group >= 0}):
        members = [index for index, sequence in enumerate(sequences) if sequence.group == group]
        runs.append((members[0], members[-1] + 1, sequences[members[0]].shared_pages))
    return runs


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last q positions, in float64: [q, Hq, D] from keys and values [c, Hkv, D]."""
    queries, context, group = query.shape[0], key.shape[0], query.shape[1] // key.shape[1]
    keys, values = (part.double().repeat_interleave(group, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,chd->hqc", query.double(), keys) * query.shape[-1] ** -0.5
    future = torch.ones(queries, context, dtype=torch.bool).triu(context - queries + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hqc,chd->qhd", weights, values)


def attend(built: Built) -> Tensor:
    attention = TorchAttention(built.storage)
    attention.begin(built.batch)
    return attention.forward(0, built.query, built.key, built.value)


def assert_matches(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    built = build(case, dtype)
    found = attend(built)
    assert found.dtype == dtype
    assert found.shape == built.query.shape
    torch.testing.assert_close(found.double(), built.expected, rtol=tolerance, atol=tolerance)


@given(cases())
def test_float32_matches_the_dense_computation(case: Case) -> None:
    assert_matches(case, torch.float32, 1e-5)


@given(cases())
def test_bfloat16_matches_up_to_the_rounding_of_the_result(case: Case) -> None:
    assert_matches(case, torch.bfloat16, 2**-7)


def test_float64_is_kept() -> None:
    case = Case(8, 2, 2, 8, 0, [Sequence(20), Sequence(9, queries=4), Sequence(33)])
    assert_matches(case, torch.float64, 1e-12)


def test_lengths_far_apart_are_split_and_still_match() -> None:
    sequences = [Sequence(context) for context in (3, 900, 5, 2, 850, 7, 4, 600)]
    assert_matches(Case(16, 1, 2, 8, 1, sequences), torch.float32, 1e-5)


def test_groups_of_different_prefixes_run_beside_ungrouped_rows_and_chunks() -> None:
    sequences = [
        *(Sequence(48 + own, shared_pages=3, group=0) for own in (1, 17, 5)),
        Sequence(40, queries=24),
        *(Sequence(16 + own, shared_pages=1, group=1) for own in (2, 2)),
        Sequence(11),
        Sequence(6, queries=6),
    ]
    assert_matches(Case(16, 2, 2, 8, 2, sequences), torch.float32, 1e-5)


@pytest.mark.parametrize("pages", [1, 2, 3, 9])
def test_a_hint_may_name_fewer_pages_than_are_shared_or_more_than_a_context_fills(pages: int) -> None:
    sequences = [Sequence(48 + own, shared_pages=3, group=0, dry=own == 0) for own in (0, 7, 20)]
    built = build(Case(16, 2, 2, 8, 3, sequences), torch.float32)
    built.batch.shared_pages[:] = [(0, 3, pages)]
    if pages > 3:
        built.batch.shared_pages[:] = [(0, 2, pages)]
    torch.testing.assert_close(attend(built).double(), built.expected, rtol=1e-5, atol=1e-5)


def test_the_keys_of_a_step_are_stored() -> None:
    built = build(Case(8, 2, 1, 8, 4, [Sequence(13, queries=5), Sequence(4)]), torch.float32)
    attend(built)
    rows = built.storage.key_rows(built.batch.slots)
    assert torch.equal(built.storage.layer_rows[0][rows], built.key)
    assert torch.equal(built.storage.layer_rows[0][rows + 8], built.value)


def test_one_instance_serves_steps_of_different_shapes() -> None:
    first = build(Case(8, 2, 2, 8, 5, [Sequence(13, queries=13), Sequence(4)]), torch.float32)
    attention = TorchAttention(first.storage)
    attention.begin(first.batch)
    mixed = attention.forward(0, first.query, first.key, first.value)
    torch.testing.assert_close(mixed.double(), first.expected, rtol=1e-5, atol=1e-5)
    again = ForwardBatch(
        tokens=first.batch.tokens[:1],
        positions=first.batch.positions[-1:],
        slots=torch.zeros(1, dtype=torch.int64),
        query_start=[0, 1],
        context=[4],
        page_table=first.batch.page_table[1:],
        shared_pages=[],
    )
    attention.begin(again)
    last = attention.forward(0, first.query[-1:], first.key[-1:], first.value[-1:])
    torch.testing.assert_close(last.double(), first.expected[-1:], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_matches_the_dense_computation(dtype: torch.dtype) -> None:
    sequences = [
        *(Sequence(48 + own, shared_pages=3, group=0) for own in (1, 17, 5)),
        Sequence(40, queries=24),
        Sequence(11),
        Sequence(6, queries=6),
    ]
    built = build(Case(16, 2, 2, 16, 6, sequences), dtype)
    storage = KvStorage(1, built.storage.num_pages, 16, 2, 16, dtype, "cuda")
    storage.pages.copy_(built.storage.pages)
    batch = built.batch
    moved = [part.cuda() for part in (batch.tokens, batch.positions, batch.slots, batch.page_table)]
    attention = TorchAttention(storage)
    attention.begin(ForwardBatch(*moved[:3], batch.query_start, batch.context, moved[3], batch.shared_pages))
    found = attention.forward(0, built.query.cuda(), built.key.cuda(), built.value.cuda())
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.cpu().double(), built.expected, rtol=tolerance, atol=tolerance)
