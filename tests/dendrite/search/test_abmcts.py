from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.config import checked
from dendrite.engine.engine import Engine
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.abmcts import AbMcts, AbMctsOptions
from dendrite.search.budget import Budget
from dendrite.search.run import run_search, run_search_async
from dendrite.search.seeds import derive_seed
from dendrite.search.session import Session
from dendrite.search.tasks.countdown import problems
from dendrite.search.thompson import Beta, Gaussian
from tests.dendrite.search.frontier import (
    Distinct,
    World,
    budgets,
    check_the_budget_is_used,
    check_the_rules,
    worlds,
)
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

PLENTY = Budget(tokens=10**6)
MANY = uniform(*(f"{index}\n" for index in range(100)))
options = st.fixed_dictionaries(
    {
        "dist": st.sampled_from(["gaussian", "beta"]),
        "in_flight": st.integers(1, 6),
        "patience": st.integers(1, 8),
        "temperature": st.just(1.0),
    }
)


async def grow(puzzle: Puzzle, backend: TreeBackend, budget: Budget, seed: int = 0, **options: Any) -> AbMcts:
    """Run a search the way `run_search_async` does, but keep the tree."""
    session = Session(puzzle, backend, budget, seed)
    search = AbMcts(session, AbMctsOptions(**options))
    try:
        await session.open()
        await search.run()
    finally:
        await session.close()
    return search


def calls(backend: TreeBackend) -> Counter[int]:
    """Calls by the depth of the node that was expanded."""
    return Counter(text.count("\n") for text, _, _ in backend.calls)


@settings(max_examples=60)
@given(world=worlds(), options=options, budget=budgets, seed=st.integers(0, 99))
async def test_whatever_the_world_the_rules_hold(
    world: World, options: dict[str, Any], budget: Budget, seed: int
) -> None:
    await check_the_rules(world, "abmcts_a", budget, seed, options)


@settings(max_examples=40)
@given(world=worlds(solvable=False), options=options, seed=st.integers(0, 99), tokens=st.integers(1, 400))
async def test_at_rest_nothing_is_waited_for(world: World, options: dict[str, Any], seed: int, tokens: int) -> None:
    backend = Distinct(world.table, world.values)
    search = await grow(Puzzle(world.rewards), backend, Budget(tokens=tokens), seed, **options)
    tree = search.tree
    assert tree is not None
    assert tree.waiting == []
    assert backend.most_running <= options["in_flight"]
    assert all(n == 1 for _, n, _ in backend.calls)
    for node in tree.nodes:
        thought = node.state
        assert thought is not None
        assert (node.in_flight, node.waiting) == (0, 0)
        assert node.value == (thought.worth if node.id else None)
        assert node.finished or not thought.terminal
        texts = [tree.node(child).state for child in node.children]
        assert len({text.text for text in texts if text is not None}) == len(texts)
    if search.session.meter.spent is None:
        assert tree.ask() == [], "there is nothing left to draw anywhere"


async def test_wide_where_the_next_thought_may_be_better() -> None:
    """The children of the root differ much, and what follows them is worth nothing."""
    values = {f"{index}\n": (37 * index % 100) / 100 for index in range(100)}
    table: Table = {"": MANY} | dict.fromkeys(values, MANY)
    values |= {path + step: 0.02 for path in table if path for step in MANY}
    for dist in ("gaussian", "beta"):
        backend = Distinct(table, values)
        await grow(Puzzle({}), backend, Budget(expansions=60), dist=dist)
        assert calls(backend)[0] > 40


async def test_deep_where_going_on_pays() -> None:
    """Each thought is worth more than the one before it, whichever it is."""
    table: dict[str, dict[str, float]] = {}
    values: dict[str, float] = {}
    level = [""]
    for depth in range(5):
        table |= dict.fromkeys(level, uniform(*(f"{index}\n" for index in range(6))))
        level = [path + step for path in level for step in table[path]]
        values |= dict.fromkeys(level, 0.1 + 0.15 * (depth + 1))
    for dist in ("gaussian", "beta"):
        backend = Distinct(table, values)
        await grow(Puzzle({}), backend, Budget(expansions=120), dist=dist)
        assert calls(backend)[0] < 20
        assert max(calls(backend)) >= 4


@pytest.mark.parametrize("dist", ["gaussian", "beta"])
async def test_values_lead_to_the_best_leaf(dist: str) -> None:
    """Of 4^4 leaves one is right, and the value is high along its path alone: blind search needs 128 ends."""
    target = "2\n0\n3\n1\n"
    table: dict[str, dict[str, float]] = {}
    paths = [""]
    for _ in range(4):
        table |= {path: uniform("0\n", "1\n", "2\n", "3\n") for path in paths}
        paths = [path + step for path in paths for step in table[path]]
    values = {text: 0.9 if target.startswith(text) else 0.1 for text in (*table, *paths)}
    puzzle = Puzzle({path: float(path == target) for path in paths})
    spent = []
    for seed in range(5):
        result = await run_search_async(puzzle, Distinct(table, values), "abmcts_a", PLENTY, seed, dist=dist)
        assert (result.solved, result.text) == (True, target)
        spent.append(result.expansions)
    assert sorted(spent)[2] < 100


async def test_a_small_tree_is_searched_to_the_end_and_no_further() -> None:
    backend = Distinct(binary(3), {})
    result = await run_search_async(Puzzle(dict.fromkeys(leaves(3), 0.0)), backend, "abmcts_a", PLENTY)
    assert (result.stop_reason, result.nodes, result.reward) == ("exhausted", 15, 0.0)
    assert backend.decoded < 500


async def test_draws_that_repeat_one_another_are_taken_back_and_released() -> None:
    backend = TreeBackend({"": {"a\n": 0.9, "b\n": 0.1}}, {})
    search = await grow(Puzzle({}, depth=1), backend, PLENTY, in_flight=8, patience=3)
    tree = search.tree
    assert tree is not None
    assert tree.node(0).visits == len(tree.node(0).children) <= 2
    assert tree.node(0).finished
    assert backend.held == []


async def test_a_node_that_draws_no_more_is_released_and_its_children_searched() -> None:
    """Each has two children: a path keeps its leaf alone."""
    backend = Distinct(binary(8), {})
    await grow(Puzzle({}), backend, Budget(tokens=900), in_flight=1)
    held = backend.most_held
    assert len({text for text, _, _ in backend.calls}) > 20
    assert held < len(backend.places) - 20


async def test_the_first_child_is_the_greedy_one() -> None:
    backend = Distinct(dict.fromkeys(["", *MANY], MANY), {})
    await grow(Puzzle({}, depth=3), backend, Budget(expansions=30))
    seen: set[str] = set()
    for text, _, params in backend.calls:
        assert params.temperature == (0.8 if text in seen else 0.0)
        seen.add(text)
    backend = Distinct({"": MANY}, {})
    await grow(Puzzle({}), backend, Budget(expansions=3), greedy_first=False)
    assert {params.temperature for _, _, params in backend.calls} == {0.8}


async def test_seeds_are_keyed_by_place() -> None:
    """No two calls share a seed, and a call's is that of its node's place and of how many were asked for there."""
    backend = Distinct(dict.fromkeys(["", *MANY], MANY), {})
    search = await grow(Puzzle({}, depth=3), backend, Budget(expansions=30), seed=7, in_flight=1)
    assert search.tree is not None
    paths = sorted(derive_seed(7, node.path[:-1], node.path[-1]) for node in search.tree.nodes if node.id)
    assert paths == sorted(params.seed or 0 for _, _, params in backend.calls)
    assert len(set(paths)) == 30


async def test_the_whole_budget_is_used() -> None:
    for tokens in (1, 37, 500):
        await check_the_budget_is_used("abmcts_a", tokens)


async def test_an_answer_cancels_what_is_in_flight() -> None:
    table: Table = {"": uniform("a\n", "b\n"), "a\n": uniform("win\n"), "b\n": uniform("slow" * 1000 + "\n")}
    backend = Distinct(table, {})
    puzzle = Puzzle({"a\nwin\n": 1.0}, step_tokens=10_000)
    result = await run_search_async(puzzle, backend, "abmcts_a", PLENTY, in_flight=4)
    assert (result.solved, result.stop_reason) == (True, "solved")
    assert backend.decoded < 200
    assert (backend.running, backend.held) == (0, [])


async def test_asks_are_given_up_when_an_expansion_fails_and_when_cancelled() -> None:
    backend = TreeBackend(binary(8), {}, failures={6: RuntimeError("broken")})
    with pytest.raises(RuntimeError, match="broken"):
        await grow(Puzzle({}), backend, PLENTY)
    assert (backend.held, backend.running) == ([], 0)
    backend = TreeBackend(binary(8), {})
    session = Session(Puzzle({}), backend, PLENTY, 0)
    search = AbMcts(session, AbMctsOptions())
    await session.open()
    running = asyncio.create_task(search.run())
    for _ in range(12):
        await asyncio.sleep(0)
    assert search.tree is not None
    assert len(search.tree.waiting) == 4
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.close()
    assert search.tree.waiting == []
    assert (backend.held, backend.running) == ([], 0)


async def test_a_full_context_ends_the_path() -> None:
    backend = TreeBackend(binary(3), {}, failures={0: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle({}), backend, "abmcts_a", PLENTY, in_flight=1)
    assert (result.stop_reason, result.nodes, result.expansions) == ("exhausted", 1, 1)


async def test_a_prompt_that_is_an_end_is_not_expanded() -> None:
    backend = TreeBackend(binary(3), {})
    result = await run_search_async(Puzzle({"": 0.5}), backend, "abmcts_a", PLENTY)
    assert (result.stop_reason, result.reward, backend.calls) == ("exhausted", 0.5, [])


async def test_a_model_without_values_is_refused() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match="algorithm='abmcts_a'"):
        await run_search_async(Puzzle({}), backend, "abmcts_a", PLENTY)
    assert backend.held == []


async def test_rewards_alone_will_do_where_every_thought_ends() -> None:
    table: Table = {"": uniform("0\n", "1\n", "2\n")}
    rewards = {"0\n": 0.2, "1\n": 0.4, "2\n": 1.0}
    result = await run_search_async(Puzzle(rewards), Distinct(table), "abmcts_a", PLENTY)
    assert result.text == "2\n"


def test_settings_are_checked_and_make_a_policy() -> None:
    assert AbMctsOptions().policy.prior == Gaussian(0.8, 0.2, 1.0, 0.01)
    assert AbMctsOptions(dist="beta").policy.prior == Beta(1.0, 0.25)
    given: dict[str, Any] = {"dist": "beta", "prior": {"a": 2, "b": 3}}
    assert checked(AbMctsOptions, given).policy.prior == Beta(2, 3)
    assert checked(AbMctsOptions, {"prior": {"mean": 0.5}}).policy.prior == Gaussian(0.5)
    for refused in (
        {"dist": "cauchy"},
        {"dist": "beta", "prior": {"kappa": 1.0}},
        {"prior": {"a": 1.0}},
        {"prior": {"kappa": 0.0}},
        {"prior": {"kappa": 1.0, "b": 1.0}},
        {"in_flight": 0},
        {"patience": 0},
        {"temperature": 0.0},
        {"min_unseen": 2.0},
        {"branching": 3},
    ):
        with pytest.raises(InvalidArgument):
            checked(AbMctsOptions, refused)


def test_a_problem_is_solved_with_the_packaged_model() -> None:
    [task] = problems(1, seed=5, split="validation")
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as engine:
        first, second = (run_search(task, engine, "abmcts_a", Budget(tokens=300), 0) for _ in range(2))
        assert {**first.to_dict(), "seconds": 0} == {**second.to_dict(), "seconds": 0}
        assert first.solved
        assert task.reward(first.text) == 1.0
        assert first.tokens <= 300
        stats = engine.stats()
        assert (stats.pages_held, stats.running, stats.waiting, stats.recomputed_tokens) == (0, 0, 0, 0)
        engine.check()
