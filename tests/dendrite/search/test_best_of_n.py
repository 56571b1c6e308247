from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.budget import Budget
from dendrite.search.run import run_search_async
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, leaves, uniform

WRONG = dict.fromkeys(leaves(3), 0.0)


async def test_it_stops_at_the_first_valid_answer() -> None:
    backend = TreeBackend(binary(3))
    result = await run_search_async(Puzzle(WRONG | {leaves(3)[5]: 1.0}), backend, "best_of_n", seed=1)
    assert (result.text, result.solved, result.stop_reason) == (leaves(3)[5], True, "solved")
    assert (backend.held, backend.running) == ([], 0)


async def test_n_bounds_the_samples() -> None:
    backend = TreeBackend(binary(3))
    result = await run_search_async(Puzzle(WRONG), backend, "best_of_n", n=5, in_flight=2)
    assert (result.stop_reason, result.expansions, result.tokens, result.nodes) == ("exhausted", 15, 30, 16)
    assert sum(text == "" for text, _, _ in backend.calls) == 5
    assert backend.most_running == 2


async def test_the_best_reward_is_the_answer() -> None:
    rewards = {text: index / 10 for index, text in enumerate(leaves(3))}
    result = await run_search_async(Puzzle(rewards), TreeBackend(binary(3)), "best_of_n", n=100)
    assert (result.text, result.reward, result.solved) == (leaves(3)[-1], 0.7, False)


async def test_without_a_rewarded_end_the_highest_value_is_the_answer() -> None:
    backend = TreeBackend(
        {"": uniform("a\n", "b\n"), "a\n": {"c\n": 1.0}, "b\n": {"c\n": 1.0}}, {"a\n": 0.3, "b\n": 0.8}
    )
    result = await run_search_async(Puzzle({}, step_tokens=2), backend, "best_of_n", Budget(tokens=20), in_flight=10)
    assert (result.text, result.reward, result.answer, result.expansions) == ("b\n", 0.0, None, 10)


async def test_samples_are_independent() -> None:
    backend = TreeBackend(binary(3))
    await run_search_async(Puzzle(WRONG), backend, "best_of_n", n=64)
    seeds = [params.seed for _, _, params in backend.calls]
    assert len(set(seeds)) == len(seeds)
    assert {place.text for place in backend.places.values()} >= set(leaves(3))


@pytest.mark.parametrize("tokens", [1, 7, 50])
@pytest.mark.parametrize("in_flight", [1, 3, 16])
async def test_no_token_beyond_the_budget(tokens: int, in_flight: int) -> None:
    backend = TreeBackend(binary(3))
    result = await run_search_async(Puzzle(WRONG), backend, "best_of_n", Budget(tokens=tokens), in_flight=in_flight)
    assert result.tokens == backend.decoded == tokens
    assert (result.stop_reason, backend.held) == ("tokens", [])


@given(seed=st.integers(0, 1000), in_flight=st.integers(1, 9))
async def test_a_search_replays(seed: int, in_flight: int) -> None:
    runs = []
    for _ in range(2):
        backend = TreeBackend(binary(3))
        result = await run_search_async(
            Puzzle(WRONG | {leaves(3)[2]: 1.0}), backend, "best_of_n", seed=seed, in_flight=in_flight
        )
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert all(one == other for one, other in pairwise(runs))
