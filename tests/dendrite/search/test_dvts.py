from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.budget import Budget
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
options = st.fixed_dictionaries({"subtrees": st.integers(1, 5), "branches": st.integers(1, 5)})


def deep(breadth: int, depth: int) -> dict[str, dict[str, float]]:
    """The table of the full tree of `breadth` children a node."""
    table: dict[str, dict[str, float]] = {}
    level = [""]
    for _ in range(depth):
        table |= {path: uniform(*(f"{index}\n" for index in range(breadth))) for path in level}
        level = [path + step for path in level for step in table[path]]
    return table


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
async def test_subtrees_are_greedy_chains_that_share_no_thought(seed: int) -> None:
    table, rng = deep(6, 4), Random(seed)
    values = {path + step: rng.random() for path in table for step in table[path]}
    backend = Distinct(table, values)
    await run_search_async(Puzzle({}, depth=4), backend, "dvts", PLENTY, seed, subtrees=3, branches=2)
    chains: dict[str, list[str]] = {}
    for text in sorted({text for text, _, _ in backend.calls if text}, key=len):
        chains.setdefault(text[:2], []).append(text)
    assert len(chains) == 3
    drawn = {place.text for place in backend.places.values()}
    for chain in chains.values():
        assert len(chain) == 3, "depths 1, 2 and 3 are expanded"
        for upper, lower in pairwise(chain):
            children = [upper + step for step in table[upper] if upper + step in drawn]
            assert len(children) == 2
            assert lower == max(children, key=lambda text: values[text])


async def test_first_thoughts_are_dealt_in_turn_and_the_best_of_each_hand_goes_on() -> None:
    table = deep(4, 2)
    values = {f"{index}\n": index / 10 for index in range(4)}
    backend = Distinct(table, values)
    await run_search_async(Puzzle({}, depth=2), backend, "dvts", PLENTY, subtrees=2, branches=2)
    order = list(dict.fromkeys(place.text for place in backend.places.values() if place.text.count("\n") == 1))
    expected = {max(order[0::2], key=values.__getitem__), max(order[1::2], key=values.__getitem__)}
    assert {text for text, _, _ in backend.calls if text} == expected
    assert backend.asked == {"": 4, **dict.fromkeys(expected, 2)}


async def test_subtrees_do_not_wait_for_one_another() -> None:
    """While one decodes its long second thought, the other goes down four levels to the answer."""
    table: Table = {"": uniform("s\n", "f\n"), "s\n": uniform("slow" * 100 + "\n")} | {
        "f\n" * depth: uniform("f\n") for depth in range(1, 5)
    }
    backend = Distinct(table, {})
    puzzle = Puzzle({"f\n" * 5: 1.0}, step_tokens=1000)
    result = await run_search_async(puzzle, backend, "dvts", PLENTY, subtrees=2, branches=1)
    assert (result.solved, result.text, backend.running, backend.held) == (True, "f\n" * 5, 0, [])
    assert backend.decoded < 50


async def test_fewer_first_thoughts_make_fewer_subtrees() -> None:
    backend = Distinct(binary(2), {})
    result = await run_search_async(Puzzle({}, depth=2), backend, "dvts", PLENTY, subtrees=8, branches=2)
    assert {text for text, _, _ in backend.calls} == {"", "a\n", "b\n"}
    assert (result.nodes, result.stop_reason) == (7, "exhausted")


async def test_an_end_counts_with_its_reward_and_is_remembered() -> None:
    """0.6 loses to a value of 0.7, which leads to 0.1: the answer is the end passed by."""
    backend = Distinct({"": uniform("end\n", "go\n"), "go\n": uniform("z\n")}, {"go\n": 0.7})
    result = await run_search_async(Puzzle({"end\n": 0.6, "go\nz\n": 0.1}), backend, "dvts", subtrees=1, branches=2)
    assert (result.text, result.reward, result.nodes) == ("end\n", 0.6, 4)
    backend = Distinct({"": uniform("end\n", "go\n"), "go\n": uniform("z\n")}, {"go\n": 0.5})
    result = await run_search_async(Puzzle({"end\n": 0.6, "go\nz\n": 0.1}), backend, "dvts", subtrees=1, branches=2)
    assert "go\n" not in {text for text, _, _ in backend.calls}


@settings(max_examples=100)
@given(world=worlds(), options=options, budget=budgets, seed=st.integers(0, 99))
async def test_whatever_the_world_the_rules_hold(
    world: World, options: dict[str, Any], budget: Budget, seed: int
) -> None:
    await check_the_rules(world, "dvts", budget, seed, options)


@pytest.mark.parametrize("tokens", [1, 7, 50])
async def test_the_budget_is_used(tokens: int) -> None:
    await check_the_budget_is_used("dvts", tokens)


async def test_few_nodes_are_held_however_long_the_descent() -> None:
    backend = Distinct({"f\n" * depth: uniform("f\n", "g\n") for depth in range(40)}, {})
    await run_search_async(Puzzle({}, depth=40), backend, "dvts", PLENTY, subtrees=2, branches=2)
    assert backend.most_held <= 1 + 2 * (1 + 2)


async def test_it_needs_a_value_head() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=r"algorithm='dvts'.*no value head.*score=\"logprob\""):
        await run_search_async(Puzzle({}), backend, "dvts")
    assert backend.held == []
