from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.rebase import allocate
from dendrite.search.run import run_search_async
from tests.dendrite.search.frontier import (
    Distinct,
    World,
    budgets,
    check_the_budget_is_used,
    check_the_rules,
    worlds,
)
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, uniform

PLENTY = Budget(tokens=10**6)
options = st.fixed_dictionaries({"width": st.integers(1, 12), "balance": st.sampled_from([1e-3, 0.2, 100.0])})
MANY = uniform(*(f"{index}\n" for index in range(40)))


@pytest.mark.parametrize(
    ("values", "samples", "shares"),
    [
        # Weights 1, e^-2, e^-2, e^-4, in all 1.289: 16/1.289 = 12.4; 3 x 0.135/0.289 = 1.4; 1 x 0.135/0.154 = 0.9.
        ([0.9, 0.5, 0.5, 0.1], 16, [13, 2, 1, 0]),
        ([0.1, 0.5, 0.9, 0.5], 16, [0, 2, 13, 1]),
        ([0.5] * 4, 16, [4, 4, 4, 4]),
        ([0.5] * 4, 6, [2, 2, 1, 1]),
        ([0.5] * 3, 1, [1, 0, 0]),
        # Weights 1 and e^-0.5: 10 / 1.607 = 6.2.
        ([0.4, 0.5], 10, [3, 7]),
        ([0.3], 5, [5]),
        ([0.3, 0.4], 0, [0, 0]),
        ([], 5, []),
    ],
)
def test_samples_are_shared_out_as_by_hand(values: list[float], samples: int, shares: list[int]) -> None:
    assert allocate(values, samples, 0.2) == shares


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=200),
    samples=st.integers(0, 500),
    balance=st.floats(1e-4, 1e3),
)
def test_shares_sum_to_the_samples_and_follow_the_values(values: list[float], samples: int, balance: float) -> None:
    shares = allocate(values, samples, balance)
    assert sum(shares) == samples
    assert min(shares) >= 0
    ranked = [share for _, share in sorted(zip(values, shares, strict=True), key=lambda pair: -pair[0])]
    assert all(upper >= lower for upper, lower in pairwise(ranked))


def test_the_extremes_of_the_balance() -> None:
    assert allocate([0.2, 0.9, 0.8], 12, 1e-4) == [0, 12, 0]
    assert allocate([0.2, 0.9, 0.8], 12, 1e3) == [3, 5, 4], "the best is served first, rounded up"


async def test_each_depth_has_the_width_shared_out_by_value() -> None:
    values = {"a\n": 0.9, "b\n": 0.5, "c\n": 0.3, "d\n": 0.1}
    backend = Distinct({"": uniform(*values)} | dict.fromkeys(values, MANY), values)
    result = await run_search_async(Puzzle({}, depth=2), backend, "rebase", PLENTY, width=16)
    # Weights 1, e^-2, e^-3, e^-4: 16/1.203 = 13.3; 2 x 0.135/0.203 = 1.3.
    assert backend.asked == {"": 16, "a\n": 14, "b\n": 2}
    assert result.nodes == 1 + 4 + 16, "a node's samples are all different"


async def test_a_path_that_ends_takes_a_sample_away_from_all_depths_below() -> None:
    table: Table = {
        "": uniform("e0\n", "e1\n", "g\n", "h\n"),
        "g\n": uniform("e\n", *(f"{index}\n" for index in range(3))),
        "h\n": uniform("e\n", *(f"{index}\n" for index in range(3))),
    } | {f"{first}\n{index}\n": MANY for first in "gh" for index in range(3)}
    rewards = dict.fromkeys(["e0\n", "e1\n", "g\ne\n", "h\ne\n"], 0.0)
    backend = Distinct(table, {})
    await run_search_async(Puzzle(rewards, depth=3), backend, "rebase", PLENTY, width=10)
    asked = [(text.count("\n"), n) for text, n in backend.asked.items()]
    assert [sum(n for depth, n in asked if depth == level) for level in range(3)] == [10, 8, 6]


async def test_a_depth_is_one_batch_and_an_answer_ends_it_at_once() -> None:
    table: Table = {"": uniform("a\n", "b\n"), "a\n": uniform("win\n"), "b\n": uniform("slow" * 100 + "\n")}
    backend = Distinct(table, {})
    result = await run_search_async(Puzzle({"a\nwin\n": 1.0}, step_tokens=1000), backend, "rebase", PLENTY)
    assert (result.solved, result.text, backend.held, backend.running) == (True, "a\nwin\n", [], 0)
    assert backend.most_running == 16
    assert backend.decoded < 500, "of the 3,200 that the slow ones would have taken"


async def test_a_node_without_a_share_is_released() -> None:
    values = {f"{index}\n": index / 40 for index in range(40)}
    backend = Distinct({"": MANY} | dict.fromkeys(values, MANY), values)
    await run_search_async(Puzzle({}, depth=9), backend, "rebase", PLENTY, width=20, balance=1e-3)
    assert len(backend.asked) > 2
    assert backend.most_held <= 1 + 20 + 20, "a depth and the one above it"


@settings(max_examples=100)
@given(world=worlds(), options=options, budget=budgets, seed=st.integers(0, 99))
async def test_whatever_the_world_the_rules_hold(
    world: World, options: dict[str, Any], budget: Budget, seed: int
) -> None:
    await check_the_rules(world, "rebase", budget, seed, options)


@pytest.mark.parametrize("tokens", [1, 7, 50])
async def test_the_budget_is_used(tokens: int) -> None:
    await check_the_budget_is_used("rebase", tokens)


async def test_it_needs_a_value_head() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=r"algorithm='rebase'.*no value head.*score=\"logprob\""):
        await run_search_async(Puzzle({}), backend, "rebase")
    assert backend.held == []
