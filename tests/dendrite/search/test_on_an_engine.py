"""Whole searches with the packaged model: what they find, what they cost, and what they leave behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.search import ALGORITHMS, Budget, SearchEvent, SearchResult, run_search, run_search_async
from dendrite.search.tasks.countdown import Countdown, problems

TASKS = problems(4, seed=5, split="validation")
HOPELESS = Countdown((2, 4, 6, 8), target=999)
"""The sum, difference, product and quotient of even numbers that the model writes are far from it."""
FITTING: dict[str, dict[str, int]] = {
    "beam": {"width": 3, "branches": 3},
    "dvts": {"subtrees": 3, "branches": 2},
    "rebase": {"width": 8},
    "particle_filter": {"n": 8},
    "tot_bfs": {"b": 3, "k": 3},
}
"""Options with which the levels of a search come to their ends within the tokens that it has here."""
EVERY = [("mcts", 1), ("mcts", 4), ("best_of_n", 1), ("best_of_n", 4)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


def check_left_behind(engine: Engine, prompts: int, *, reflects: bool = False) -> None:
    """Nothing is held, and no token but the prompts' was run that was not generated."""
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    if reflects:  # on its failures, with questions, and prompts that hold the answers
        assert stats.prefill_tokens + stats.cached_tokens >= prompts
    else:
        assert stats.prefill_tokens + stats.cached_tokens == prompts
    assert (stats.recomputed_tokens, stats.retips, stats.preemptions) == (0, 0, 0)
    engine.check()


def length(engine: Engine, *tasks: Countdown) -> int:
    assert engine.tokenizer is not None
    return sum(len(engine.tokenizer.encode(task.prompt)) for task in tasks)


async def solve_all(engine: Engine, algorithm: str, seed: int = 0, **options: Any) -> list[SearchResult]:
    """Solve `TASKS` side by side in one batch."""
    backend = AsyncEngine(engine)
    budget = Budget(tokens=400)
    searches = (run_search_async(task, backend, algorithm, budget, seed, **options) for task in TASKS)
    results = await asyncio.gather(*searches)
    await backend.aclose()
    return results


def untimed(result: SearchResult) -> dict[str, Any]:
    return {**result.to_dict(), "seconds": 0.0}


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
async def test_problems_are_solved_and_only_prompts_are_prefilled(engine: Engine, algorithm: str) -> None:
    results = await solve_all(engine, algorithm, **FITTING.get(algorithm, {}))
    for task, result in zip(TASKS, results, strict=True):
        assert result.solved == (task.reward(result.text) == 1.0)
        assert result.tokens <= 400
    assert any(result.solved for result in results)
    assert sum(result.tokens for result in results) <= engine.stats().decode_tokens <= 400 * len(TASKS)
    check_left_behind(engine, length(engine, *TASKS), reflects=algorithm == "lats")


async def test_a_search_solves_what_greedy_decoding_does(engine: Engine) -> None:
    """The first path of a tree is the greedy one, so that a search is never the worse choice."""
    greedy = await solve_all(engine, "greedy")
    searched = await solve_all(engine, "mcts")
    for first, then in zip(greedy, searched, strict=True):
        assert then.solved or not first.solved
    assert sum(result.solved for result in searched) >= sum(result.solved for result in greedy)


@pytest.mark.parametrize(("algorithm", "in_flight"), EVERY)
def test_the_same_seed_gives_the_same_search(engine: Engine, algorithm: str, in_flight: int) -> None:
    """The second run finds its prompt in the prefix cache, yet replays."""
    budget = Budget(tokens=150)
    runs = [run_search(HOPELESS, engine, algorithm, budget, 3, in_flight=in_flight) for _ in range(2)]
    other = run_search(HOPELESS, engine, algorithm, budget, 4, in_flight=in_flight)
    assert untimed(runs[0]) == untimed(runs[1])
    assert untimed(other) != untimed(runs[0])
    check_left_behind(engine, 3 * length(engine, HOPELESS))


async def test_a_search_finds_the_same_in_company(engine: Engine) -> None:
    """Draws depend on seed and place, not on what else is in the batch. One in flight: none overtakes another."""
    together = await solve_all(engine, "mcts", in_flight=1)
    alone = await run_search_async(TASKS[-1], engine, "mcts", Budget(tokens=400), 0, in_flight=1)
    assert untimed(together[-1]) == untimed(alone)


@pytest.mark.parametrize("tokens", [1, 40, 130])
@pytest.mark.parametrize(("algorithm", "in_flight"), EVERY)
def test_the_engine_decodes_all_of_the_budget_and_no_more(
    engine: Engine, algorithm: str, in_flight: int, tokens: int
) -> None:
    result = run_search(HOPELESS, engine, algorithm, Budget(tokens=tokens), in_flight=in_flight)
    assert (result.solved, result.stop_reason) == (False, "tokens")
    assert result.tokens == engine.stats().decode_tokens == tokens


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n"])
def test_tokens_in_flight_when_an_answer_comes_stay_within_the_budget(engine: Engine, algorithm: str) -> None:
    for seed in range(3):
        before = engine.stats().decode_tokens
        result = run_search(TASKS[0], engine, algorithm, Budget(tokens=250), seed, in_flight=8)
        assert result.tokens <= engine.stats().decode_tokens - before <= 250
    check_left_behind(engine, 3 * length(engine, TASKS[0]))


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_ctrl_c_leaves_nothing_held(engine: Engine, algorithm: str) -> None:
    seen = []

    def interrupt(event: SearchEvent) -> None:
        seen.append(event)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_search(HOPELESS, engine, algorithm, Budget(tokens=10_000), on_event=interrupt)
    check_left_behind(engine, length(engine, HOPELESS))


@pytest.mark.parametrize("turns", [1, 25, 120])
@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n"])
async def test_cancelling_leaves_nothing_held_and_others_go_on(engine: Engine, algorithm: str, turns: int) -> None:
    backend = AsyncEngine(engine)
    doomed = asyncio.create_task(run_search_async(HOPELESS, backend, algorithm, Budget(tokens=10_000)))
    other = asyncio.create_task(run_search_async(TASKS[0], backend, "greedy", Budget(tokens=400)))
    for _ in range(turns):
        await asyncio.sleep(0)
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert (await other).text
    await backend.aclose()
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    engine.check()


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n"])
def test_a_deadline_leaves_nothing_held(engine: Engine, algorithm: str) -> None:
    result = run_search(HOPELESS, engine, algorithm, Budget(seconds=0.2), in_flight=4)
    assert (result.solved, result.stop_reason) == (False, "seconds")
    check_left_behind(engine, length(engine, HOPELESS))
