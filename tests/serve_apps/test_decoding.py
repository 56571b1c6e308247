"""Generations in spans: the tokens of one expansion, whatever the pace, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from serve_apps.decoding import Pace, Releases, choice_seed, spans, write
from serve_apps.merging import merged
from serve_apps.text import TextCodec
from serve_apps.writer import TextWriter
from tests.serve_apps.serving import PROMPT


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("countdown", device="cpu", kv_tokens=8_192)


@pytest.fixture
async def backend(engine: Engine) -> AsyncIterator[AsyncEngine]:
    backend = AsyncEngine(engine)
    yield backend
    await asyncio.sleep(0)
    assert engine.stats().pages_held == 0
    await backend.aclose()


@given(st.integers(1, 500), st.floats(1e-6, 10.0))
def test_spans_grow_at_most_twofold_and_within_bounds(tokens: int, took_s: float) -> None:
    pace = Pace(seconds=0.1, most=64)
    following = pace.next(tokens, took_s)
    assert 1 <= following <= min(2 * tokens, 64)
    if following > 8:
        assert following * took_s / tokens <= 0.1 * (1 + 1e-9)


@given(st.integers(0, 2**63 - 1))
def test_choices_have_seeds_of_their_own(seed: int) -> None:
    seeds = [choice_seed(seed, index) for index in range(128)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 128
    assert all(0 <= each < 2**63 for each in seeds)


@pytest.mark.parametrize("settings", [{}, {"frequency_penalty": 1.0}, {"top_logprobs": 2}, {"temperature": 0.0}])
async def test_spans_hold_what_one_expansion_would(backend: AsyncEngine, settings: dict[str, float]) -> None:
    params = SamplingParams(max_tokens=50, seed=7, **settings)
    root = await backend.prefill(PROMPT)
    [whole] = await backend.expand(root, 1, params)
    parts = [branch async for branch in spans(backend, root, params, Pace(seconds=1.0, most=8))]
    assert len(parts) > 3
    assert tuple(token for part in parts for token in part.tokens) == whole.tokens
    assert [logprob for part in parts for logprob in part.logprobs] == pytest.approx(whole.logprobs, abs=1e-4)
    assert parts[-1].finish_reason == whole.finish_reason
    await backend.release(root, subtree=True)


async def test_a_full_context_ends_a_generation(backend: AsyncEngine, engine: Engine) -> None:
    room = 10
    root = await backend.prefill([49] * (engine.longest_context - room))
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    parts = [branch async for branch in spans(backend, root, params, Pace(seconds=1.0, most=4))]
    assert sum(len(part.tokens) for part in parts) == room
    await backend.release(root, subtree=True)


async def test_closing_a_choice_at_any_item_leaves_nothing(backend: AsyncEngine) -> None:
    codec, releases = TextCodec.load("countdown"), Releases(backend)
    root = await backend.prefill(PROMPT)
    held = (await backend.stats()).pages_held
    for items in range(5):
        writer = TextWriter(codec, ("zzz",), by_token=True)
        params = SamplingParams(max_tokens=60, seed=1, ignore_eos=True)
        async with aclosing(write(backend, root, params, writer, Pace(), releases)) as choice:
            for _ in range(items):
                await anext(choice)
        await releases.settle()
        assert (await backend.stats()).pages_held == held
    await backend.release(root)


async def test_an_error_in_one_source_ends_the_others() -> None:
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def failing() -> AsyncIterator[int]:
        yield 2
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        async for _ in merged([endless(), failing()]):  # type: ignore[list-item]
            pass
    assert closed == [True]


async def test_sources_end_one_by_one() -> None:
    async def some(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    seen = [each async for each in merged([some(2), some(0)])]  # type: ignore[list-item]
    assert sorted(seen, key=str) == sorted([(0, 0), (0, 1), (0, None), (1, None)], key=str)
