"""What a leader says is what its followers hear."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.attention.base import ForwardBatch
from dendrite.kv.pages import TailCopy
from dendrite.parallel.commands import (
    Kind,
    Reply,
    on_device,
    pack,
    pack_batch,
    pack_copies,
    pack_reply,
    read_reply,
    unpack,
    unpack_batch,
    unpack_copies,
)

NUMBER = st.integers(0, 2**40)


@st.composite
def batches(draw: st.DrawFn) -> ForwardBatch:
    queries = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count, width = sum(queries), draw(st.integers(1, 4))
    starts = [sum(queries[:at]) for at in range(len(queries) + 1)]

    def numbers(size: int) -> list[int]:
        return draw(st.lists(NUMBER, min_size=size, max_size=size))

    return ForwardBatch(
        tokens=torch.tensor(numbers(count)),
        positions=torch.tensor(numbers(count)),
        slots=torch.tensor(numbers(count)),
        query_start=starts,
        context=numbers(len(queries)),
        page_table=torch.tensor(numbers(len(queries) * width)).view(-1, width),
        shared_pages=draw(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), max_size=3)),
    )


@given(batch=batches())
def test_a_batch_arrives_as_it_was(batch: ForwardBatch) -> None:
    kind, numbers = unpack(pack_batch(batch))
    found = on_device(unpack_batch(numbers), torch.device("cpu"))
    assert kind is Kind.FORWARD
    for name in ("tokens", "positions", "slots", "page_table"):
        assert torch.equal(getattr(found, name), getattr(batch, name))
    assert (found.query_start, found.context) == (batch.query_start, batch.context)
    assert found.shared_pages == batch.shared_pages


@given(copies=st.lists(st.builds(TailCopy, NUMBER, NUMBER, st.integers(0, 31)), max_size=5))
def test_copies_arrive_as_they_were(copies: list[TailCopy]) -> None:
    kind, numbers = unpack(pack_copies(copies))
    assert kind is Kind.COPY
    assert unpack_copies(numbers) == copies


def test_a_number_arrives_with_its_kind() -> None:
    kind, numbers = unpack(pack(Kind.ALLOCATE, [17]))
    assert (kind, numbers.tolist()) == (Kind.ALLOCATE, [17])


def test_replies_arrive_and_silence_is_a_failure() -> None:
    assert read_reply(pack_reply(Reply.READY, 12)) == (Reply.READY, 12)
    assert read_reply(pack_reply(Reply.FAILED, "no memory: ½")) == (Reply.FAILED, "no memory: ½")
    for silence in (None, b""):
        assert read_reply(silence) == (Reply.FAILED, "its process has ended")
