"""FlashInfer's kernels against the definition of attention, and what is refused where there is no such kernel."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.attention.flashinfer import FlashInferAttention, leading_singles
from dendrite.attention.torch_reference import TorchAttention
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.kv.storage import KvStorage
from tests.dendrite.attention.test_torch_reference import Built, Case, Sequence, build

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn


def storage(dtype: torch.dtype = BF16, *, kv_heads: int = 2, head_dim: int = 64) -> KvStorage:
    return KvStorage(1, 4, 16, kv_heads, head_dim, dtype)


@pytest.mark.parametrize(
    ("kv", "settings", "field", "limit"),
    [
        (storage(head_dim=80), {}, "head_dim", "64 and 128"),
        (storage(torch.float32), {}, "dtype", "bfloat16 and float16"),
        (storage(BF16), {"dtype": FP16}, "storage.dtype", "float16"),
        (storage(FP8), {"dtype": torch.float32}, "dtype", "bfloat16 and float16"),
        (storage(kv_heads=3), {}, "num_heads", "multiple of the 3"),
        (storage(), {"num_heads": 0}, "num_heads", "multiple"),
        (storage(), {"backend": "cudnn"}, "backend", "fa2 or fa3"),
        (storage(FP8), {"backend": "fa3"}, "backend", "fa2 with FP8"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(kv: KvStorage, settings: dict[str, Any], field: str, limit: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        FlashInferAttention(kv, **{"num_heads": 8, **settings})
    assert refused.value.field == field
    assert limit in refused.value.limit


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match=r"CUDA is missing: .* pip install 'dendrite\[gpu\]'") as missing:
        FlashInferAttention(storage(), 8)
    again = pickle.loads(pickle.dumps(missing.value))
    assert (again.package, str(again)) == ("CUDA", str(missing.value))


def test_without_flashinfer_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(MissingDependency, match=r"flashinfer is missing: .* pip install 'dendrite\[gpu\]'"):
        FlashInferAttention(storage(), 8)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_leading_singles_end_where_a_longer_sequence_stands(queries: list[int]) -> None:
    starts = np.cumsum([0, *queries], dtype=np.int32)
    count = leading_singles(starts)
    assert all(number == 1 for number in queries[:count])
    assert count == len(queries) or queries[count] > 1


# ---------------------------------------------------------------- on a GPU

MIXED = [
    *(Sequence(48 + own, shared_pages=3, group=0) for own in (1, 17, 5)),
    Sequence(11),
    Sequence(64, dry=True),
    Sequence(1),
    Sequence(4099),
    Sequence(40, queries=24),
    Sequence(17, queries=1),  # a chunk of one token, behind a longer one
    Sequence(600, queries=600),
    Sequence(1100, queries=3),
    Sequence(6, queries=6),
]
BATCHES = {
    "mixed": MIXED,
    "rows": MIXED[:6],
    "one row": [Sequence(300)],
    "one chunk": [Sequence(700, queries=130)],
    "chunks": [Sequence(33, queries=33), Sequence(32, queries=17)],
}


def on_gpu(batch: ForwardBatch) -> ForwardBatch:
    tokens, positions, slots, table = (
        part.cuda() for part in (batch.tokens, batch.positions, batch.slots, batch.page_table)
    )
    return ForwardBatch(tokens, positions, slots, batch.query_start, batch.context, table, batch.shared_pages)


def gpu_storage(built: Built, dtype: torch.dtype) -> KvStorage:
    """The storage of a case on the GPU, unowned slots still NaN."""
    _, pages, _, size, heads, width = built.storage.pages.shape
    found = KvStorage(1, pages, size, heads, width, dtype, "cuda")
    found.pages.view(torch.uint8).copy_(built.storage.pages.to(dtype).view(torch.uint8))
    return found


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fa2", "fa3"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", BATCHES)
def test_it_matches_the_definition(name: str, head_dim: int, backend: Any) -> None:
    built = build(Case(16, 4, 8, head_dim, 1, BATCHES[name]), BF16)
    attention = FlashInferAttention(gpu_storage(built, BF16), 32, backend=backend)
    attention.begin(on_gpu(built.batch))
    found = attention.forward(0, built.query.cuda(), built.key.cuda(), built.value.cuda())
    assert found.dtype == BF16
    assert error(found, built.expected) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("page_size", "group"), [(8, 1), (32, 4), (16, 7)])
def test_page_sizes_and_group_sizes(page_size: int, group: int) -> None:
    built = build(Case(page_size, 2, group, 64, 2, MIXED[3:]), BF16)
    attention = FlashInferAttention(gpu_storage(built, BF16), 2 * group)
    attention.begin(on_gpu(built.batch))
    found = attention.forward(0, built.query.cuda(), built.key.cuda(), built.value.cuda())
    assert error(found, built.expected) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_fp8_keys_and_values(head_dim: int) -> None:
    built = build(Case(16, 4, 8, head_dim, 3, MIXED), torch.float32)
    attention = FlashInferAttention(gpu_storage(built, FP8), 32)
    attention.begin(on_gpu(built.batch))
    query, key, value = (part.to(BF16).cuda() for part in (built.query, built.key, built.value))
    assert error(attention.forward(0, query, key, value), built.expected) < 0.06
    # Against the same keys and values as FP8 holds them, only bfloat16's rounding is left.
    rounded = build(Case(16, 4, 8, head_dim, 3, MIXED), torch.float32)
    rounded.storage.pages.copy_(built.storage.pages.to(FP8).float())
    reference = TorchAttention(rounded.storage)
    reference.begin(rounded.batch)
    key, value = (part.cpu().to(FP8).float() for part in (key, value))
    assert (
        error(
            attention.forward(0, query, key.to(BF16).cuda(), value.to(BF16).cuda()),
            reference.forward(0, query.cpu().float(), key, value),
        )
        < 1e-2
    )


@pytest.mark.gpu
def test_fp8_holds_values_out_of_its_range_at_its_limit() -> None:
    built = build(Case(16, 1, 1, 64, 4, [Sequence(1)]), torch.float32)
    memory = gpu_storage(built, FP8)
    attention = FlashInferAttention(memory, 1)
    attention.begin(on_gpu(built.batch))
    huge = torch.full((1, 1, 64), 1e4, dtype=BF16, device="cuda")
    found = attention.forward(0, built.query.to(BF16).cuda(), huge, -huge)
    assert torch.equal(found, torch.full_like(found, -448.0))


@pytest.mark.gpu
def test_only_the_batch_s_slots_are_written() -> None:
    built = build(Case(16, 2, 4, 64, 5, MIXED), BF16)
    memory = gpu_storage(built, BF16)
    before = memory.layer_rows[0].clone()
    attention = FlashInferAttention(memory, 8)
    attention.begin(on_gpu(built.batch))
    attention.forward(0, built.query.cuda(), built.key.cuda(), built.value.cuda())
    rows = memory.key_rows(built.batch.slots)
    owned = built.batch.slots >= 16
    assert torch.equal(memory.layer_rows[0].cpu()[rows[owned]], built.key[owned])
    assert torch.equal(memory.layer_rows[0].cpu()[rows[owned] + 16], built.value[owned])
    written = torch.cat((rows, rows + 16)).cuda()
    untouched = torch.ones(len(before), dtype=torch.bool, device="cuda").index_fill_(0, written, False)
    changed = memory.layer_rows[0][untouched].view(torch.int16) != before[untouched].view(torch.int16)
    assert not changed.any()


@pytest.mark.gpu
def test_a_plan_does_not_overwrite_one_that_the_gpu_has_not_read() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    memory = KvStorage(1, 300, 16, 4, 64, BF16, "cuda")
    memory.pages.normal_(generator=generator)
    attention = FlashInferAttention(memory, 32)
    query, key, value = (
        torch.randn((64, heads, 64), generator=generator, device="cuda").to(BF16) for heads in (32, 4, 4)
    )
    table = torch.arange(1, 300, device="cuda").unsqueeze(0)

    def run(context: int, queries: int) -> Tensor:
        at = torch.arange(context - queries, context, device="cuda")
        attention.begin(ForwardBatch(at, at, torch.zeros_like(at), [0, queries], [context], table, []))
        return attention.forward(0, query[:queries], key[:queries], value[:queries])

    work = [(64, 64), (4700, 1), (2000, 30), (100, 1), (4700, 64), (300, 1), (40, 2)]
    expected = []
    for context, queries in work:
        expected.append(run(context, queries))
        torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # some 50 ms in which the host can get ahead
    found = [run(context, queries) for context, queries in work]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_fork_attends_as_a_recomputation_does(head_dim: int) -> None:
    """70 tokens; a fork shares 4 full pages, has a copy of the tail, and decodes a token. Then all 71 afresh."""
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn((71, heads, head_dim), generator=generator, device="cuda").to(BF16) for heads in (32, 4, 4)
    )
    memory = KvStorage(1, 32, 16, 4, head_dim, BF16, "cuda")
    memory.pages.fill_(float("nan"))
    attention = FlashInferAttention(memory, 32)

    def run(pages: list[int], first: int, end: int) -> Tensor:
        at = torch.arange(first, end, device="cuda")
        table = torch.tensor([pages], device="cuda")
        slots = table[0][at // 16] * 16 + at % 16
        attention.begin(ForwardBatch(at, at, slots, [0, end - first], [end], table, []))
        return attention.forward(0, query[first:end], key[first:end], value[first:end])

    run([1, 2, 3, 4, 5], 0, 40)
    run([1, 2, 3, 4, 5], 40, 70)
    memory.pages[:, 6].copy_(memory.pages[:, 5])
    forked = run([1, 2, 3, 4, 6], 70, 71)
    fresh = run([10, 11, 12, 13, 14], 0, 71)
    assert error(forked, fresh[-1:].cpu()) < 1e-2
