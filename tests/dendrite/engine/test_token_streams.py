"""Generations that are read while they run: the tokens of one expansion, in pieces, and nothing left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.engine.runner import ModelRunner
from dendrite.errors import Cancelled, InvalidArgument, NodeReleased
from dendrite.search.backend import Branch, StreamingBackend

PROMPT = list(range(20))
LONG = SamplingParams(max_tokens=40, seed=3)


@pytest.fixture(params=[False, True], ids=["inline", "threaded"])
def backend(engine: Engine, request: pytest.FixtureRequest) -> AsyncEngine:
    return AsyncEngine(engine, threaded=request.param)


async def read(backend: AsyncEngine, root: object, params: SamplingParams, every_s: float) -> list[Branch]:
    return [branch async for branch in backend.stream(root, params, every_s)]


@pytest.mark.parametrize("extra", [{}, {"top_logprobs": 2}, {"temperature": 0.0}])
@pytest.mark.parametrize("every_s", [0.0, 1e9])
async def test_pieces_add_up_to_an_expansion(backend: AsyncEngine, extra: dict[str, float], every_s: float) -> None:
    assert isinstance(backend, StreamingBackend)
    params = LONG.model_copy(update=extra)
    root = await backend.prefill(PROMPT)
    [whole] = await backend.expand(root, 1, params)
    pieces = await read(backend, root, params, every_s)
    assert len({piece.node for piece in pieces}) == 1
    assert len(pieces[0].tokens) == 1
    assert len(pieces) == 2 if every_s else len(pieces) > 2
    assert tuple(token for piece in pieces for token in piece.tokens) == whole.tokens
    assert [logprob for piece in pieces for logprob in piece.logprobs] == pytest.approx(whole.logprobs, abs=1e-4)
    tops = [top for piece in pieces for top in piece.top_logprobs]
    assert [[token for token, _ in top] for top in tops] == [[token for token, _ in top] for top in whole.top_logprobs]
    assert {piece.finish_reason for piece in pieces} == {"length"}
    await backend.release(root, subtree=True)
    assert (await backend.stats()).pages_held == 0
    await backend.aclose()


async def test_many_streams_share_one_batch(backend: AsyncEngine, engine: Engine) -> None:
    root = await backend.prefill(PROMPT)
    steps = engine.stats().steps
    found = await asyncio.gather(*(read(backend, root, LONG.model_copy(update={"seed": at}), 0.0) for at in range(8)))
    assert engine.stats().steps - steps < 8 * 40 / 2
    assert all(sum(len(piece.tokens) for piece in pieces) == 40 for pieces in found)
    await backend.release(root, subtree=True)
    await backend.aclose()


async def test_closing_ends_the_generation(backend: AsyncEngine, engine: Engine) -> None:
    root = await backend.prefill(PROMPT)
    held = (await backend.stats()).pages_held
    for pieces in range(3):
        async with aclosing(backend.stream(root, LONG, 0.0)) as stream:
            nodes = [(await anext(stream)).node for _ in range(pieces)]
        for node in nodes[:1]:
            await backend.release(node)
        while engine.has_work:  # a step under way comes to its end
            await asyncio.sleep(0)
        assert (await backend.stats()).pages_held == held
    await backend.release(root)
    await backend.aclose()


async def test_a_reader_that_is_cancelled_leaves_only_what_it_was_given(backend: AsyncEngine, engine: Engine) -> None:
    for turns in range(6):
        root = await backend.prefill(PROMPT)
        given: list[Branch] = []

        async def listen(root: object, given: list[Branch]) -> None:
            async for branch in backend.stream(root, LONG, 1e9):
                given.append(branch)  # noqa: PERF401  # what came before it was cancelled counts too

        reading = asyncio.create_task(listen(root, given))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while engine.has_work:
            await asyncio.sleep(0)
        for branch in given:
            await backend.release(branch.node)
        await backend.release(root)
        assert (await backend.stats()).pages_held == 0
    await backend.aclose()


async def test_a_reader_that_was_busy_is_told_of_a_failed_step_too(
    backend: AsyncEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    root = await backend.prefill(PROMPT)
    async with aclosing(backend.stream(root, LONG, 0.0)) as stream:
        await anext(stream)
        monkeypatch.setattr(ModelRunner, "run", fail)
        while engine.has_work:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="memory"):
            await asyncio.wait_for(anext(stream), 30)
    await backend.aclose()


async def test_errors_reach_the_reader(backend: AsyncEngine) -> None:
    root = await backend.prefill(PROMPT)
    with pytest.raises(InvalidArgument, match="logit_bias"):
        await read(backend, root, SamplingParams(max_tokens=2, logit_bias={10**6: 1.0}), 0.0)
    reading = asyncio.create_task(read(backend, root, SamplingParams(max_tokens=400, ignore_eos=True), 1e9))
    await asyncio.sleep(0.01)
    await backend.aclose()
    with pytest.raises(Cancelled):
        await reading
    root.release(subtree=True)
    with pytest.raises(NodeReleased):
        await read(AsyncEngine(backend.engine), root, LONG, 0.0)
