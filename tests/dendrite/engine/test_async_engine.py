"""Concurrent callers on one engine: the same answers as alone, one batch, and nothing left behind by the cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.engine.stepper import StepResult
from dendrite.errors import Cancelled, ContextOverflow, InvalidArgument, NodeReleased

PROMPT = list(range(20))
SHORT = SamplingParams(max_tokens=6, seed=3)


@pytest.fixture(params=[False, True], ids=["inline", "threaded"])
def threaded(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_expand_is_fork_and_decode(engine: Engine, threaded: bool) -> None:
    expected = engine.prefill(PROMPT).fork(3)
    engine.decode(expected, SHORT)
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    branches = await backend.expand(root, 3, SHORT)
    assert [list(branch.tokens) for branch in branches] == [kid.tokens for kid in expected]
    assert all(branch.finish_reason == "length" and len(branch.logprobs) == 6 for branch in branches)
    assert await backend.value(root) is None
    assert await backend.score(root, [1, 2, 3]) == pytest.approx(engine.score(root, [1, 2, 3]))
    assert (await backend.stats()).forks == engine.stats().forks
    await backend.aclose()


async def test_append_writes_what_is_given(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    long = list(range(30, 60))
    branches = await backend.append(root, [[7, 8, 9], [7], long])
    assert [branch.tokens for branch in branches] == [(7, 8, 9), (7,), tuple(long)]
    for branch in branches:
        assert branch.finish_reason == "given"
        assert list(branch.logprobs) == pytest.approx(engine.score(root, branch.tokens), rel=1e-4)
    [grown] = await backend.expand(branches[2].node, 1, SHORT)
    again = await backend.prefill([*PROMPT, *long])
    [fresh] = await backend.expand(again, 1, SHORT)
    assert grown.tokens == fresh.tokens
    page = (await backend.stats()).page_tokens
    assert branches[2].pages == -(-(len(PROMPT) + len(long)) // page) - len(PROMPT) // page
    for node in (root, again):
        await backend.release(node, subtree=True)
    engine.check()
    assert engine.stats().pages_held == 0
    await backend.aclose()


async def test_what_cannot_be_appended_leaves_nothing(engine: Engine) -> None:
    backend = AsyncEngine(engine)
    root = await backend.prefill(PROMPT)
    forks = engine.stats().forks
    for wrong in ([[1], []], [[1], [10**6]]):
        with pytest.raises(InvalidArgument, match="continuations"):
            await backend.append(root, wrong)
    assert engine.stats().forks == forks
    with pytest.raises(ContextOverflow):
        await backend.append(root, [[1], [1] * 100_000])
    task = asyncio.create_task(backend.append(root, [[1] * 30, [2] * 30]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await backend.release(root)
    engine.check()
    assert engine.stats().pages_held == 0
    await backend.aclose()


async def test_concurrent_expansions_share_steps(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    before = engine.stats().steps
    await asyncio.gather(*(backend.expand(root, 2, SamplingParams(max_tokens=20, seed=i)) for i in range(10)))
    assert engine.stats().steps - before < 30
    await backend.aclose()


async def test_results_do_not_depend_on_company(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    alone = [await backend.expand(root, 2, SamplingParams(max_tokens=9, seed=i)) for i in range(5)]
    together = await asyncio.gather(
        *(backend.expand(root, 2, SamplingParams(max_tokens=9, seed=i)) for i in range(5)), backend.prefill([5] * 40)
    )
    assert [[b.tokens for b in branches] for branches in alone] == [
        [b.tokens for b in branches] for branches in together[:5]
    ]
    await backend.aclose()


async def test_cancelling_an_expansion_releases_its_children(
    make_engine: Callable[..., Engine], threaded: bool
) -> None:
    engine = make_engine(prefix_cache=False)
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    held = engine.stats().pages_held
    task = asyncio.create_task(backend.expand(root, 4, SamplingParams(max_tokens=400)))
    while engine.stats().decode_tokens < 8:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len((await backend.expand(root, 1, SHORT))[0].tokens) == 6
    children = root.child_count
    await backend.release(root, subtree=True)
    assert (children, held > 0) == (1, True)
    assert engine.stats().pages_held == 0
    await backend.aclose()


async def test_releasing_a_running_child_ends_its_expansion(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    task = asyncio.create_task(backend.expand(root, 2, SamplingParams(max_tokens=400)))
    while engine.stats().decode_tokens < 8:
        await asyncio.sleep(0)
    await backend.release(root, subtree=True)
    with pytest.raises(Cancelled):
        await task
    await backend.aclose()


async def test_errors_reach_the_caller_alone(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    good = asyncio.create_task(backend.expand(root, 2, SHORT))
    with pytest.raises(InvalidArgument):
        await backend.expand(root, 0, SHORT)
    with pytest.raises(InvalidArgument):
        await backend.expand("not a node", 1, SHORT)
    with pytest.raises(InvalidArgument):
        await backend.prefill([])
    assert len(await good) == 2
    await backend.release(root)
    await backend.release(root)
    with pytest.raises(NodeReleased):
        await backend.expand(root, 1, SHORT)
    await backend.aclose()


async def test_closing_fails_what_waits(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    task = asyncio.create_task(backend.expand(root, 2, SamplingParams(max_tokens=400)))
    while engine.stats().decode_tokens < 8:
        await asyncio.sleep(0)
    await backend.aclose()
    with pytest.raises(Cancelled):
        await task
    assert not engine.has_work


async def test_what_a_cancelled_caller_never_heard_of_is_released(engine: Engine) -> None:
    """Calls that arrive while a step runs take effect after it, when their callers may have gone."""
    backend = AsyncEngine(engine, threaded=True)
    root = await backend.prefill([1, 2, 3])
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    busy = asyncio.create_task(backend.expand(root, 1, params))
    for turn in range(60):
        calls = [
            asyncio.create_task(backend.prefill([4, 5, turn])),
            asyncio.create_task(backend.expand(root, 2, params)),
            asyncio.create_task(backend.score(root, [6, 7])),
        ]
        for _ in range(turn % 3):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.001)
    await backend.release(root, subtree=True)
    with pytest.raises(Cancelled):
        await busy
    await backend.aclose()
    assert engine.stats().pages_held == 0


async def test_scores_refuse_what_the_engine_refuses_and_harm_nobody(engine: Engine, threaded: bool) -> None:
    backend = AsyncEngine(engine, threaded=threaded)
    root = await backend.prefill(PROMPT)
    good = asyncio.create_task(backend.expand(root, 2, SHORT))
    for tokens in ([], [97], [1, -1]):
        with pytest.raises(InvalidArgument, match="tokens"):
            await backend.score(root, tokens)
    with pytest.raises(ContextOverflow) as overflow:
        await backend.score(root, [1] * 494)
    assert (overflow.value.tokens, overflow.value.limit) == (514, 512)
    assert len(await backend.score(root, [1] * 492)) == 492
    assert len(await good) == 2
    assert root.child_count == 2
    await backend.aclose()


async def test_stats_and_closing_wait_for_the_step_that_runs(engine: Engine) -> None:
    backend = AsyncEngine(engine, threaded=True)
    root = await backend.prefill(PROMPT)
    inside = threading.Event()
    stepping = engine.step

    def slow_step() -> StepResult:
        inside.set()
        time.sleep(0.2)
        result = stepping()
        inside.clear()
        return result

    engine.step = slow_step  # type: ignore[method-assign]
    task = asyncio.create_task(backend.expand(root, 2, SamplingParams(max_tokens=400)))
    for wait in (backend.stats, backend.aclose):
        while not inside.is_set():
            await asyncio.sleep(0.01)
        await wait()
        assert not inside.is_set()
    with pytest.raises(Cancelled):
        await task
