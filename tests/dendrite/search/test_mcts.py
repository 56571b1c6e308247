from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.mcts import Mcts, MctsOptions
from dendrite.search.run import run_search_async
from dendrite.search.session import Session
from dendrite.search.stats import child_limit
from tests.dendrite.search.mcts_worlds import check_at_rest, everything, grow, worlds
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

WRONG = dict.fromkeys(leaves(3), 0.0)
SAMPLED: dict[str, Any] = {"greedy_first": False, "temperature": 1.0}
"""Every child drawn from the table's own probabilities."""


options = st.fixed_dictionaries(
    {
        "selection": st.sampled_from(["uct", "puct"]),
        "value": st.sampled_from(["head", "rollout"]),
        "in_flight": st.integers(1, 8),
        "children": st.integers(1, 6),
        "widening_k": st.sampled_from([0.5, 1.0, 2.0, 4.0]),
        "widening_alpha": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "greedy_first": st.booleans(),
        "temperature": st.just(1.0),
    }
)
budgets = st.builds(Budget, tokens=st.integers(1, 400), expansions=st.none() | st.integers(1, 40))


@settings(max_examples=150)
@given(world=worlds(), options=options, budget=budgets, seed=st.integers(0, 99))
async def test_whatever_the_world_the_rules_hold(
    world: tuple[Table, dict[str, float], dict[str, float]], options: dict[str, Any], budget: Budget, seed: int
) -> None:
    table, values, rewards = world
    backend, puzzle = TreeBackend(table, values), Puzzle(rewards)
    search = await grow(puzzle, backend, budget, seed, **options)
    check_at_rest(search, backend)
    assert budget.tokens is not None
    assert backend.decoded <= budget.tokens, "counting what was cancelled"
    assert budget.expansions is None or len(backend.calls) <= budget.expansions
    assert backend.most_running <= options["in_flight"] * options["children"]
    for text, _, _ in backend.calls:
        assert text not in rewards, "a terminal is never expanded"
    for node in everything(search):
        limit = child_limit(node.stats.visits, options["widening_k"], options["widening_alpha"])
        drawn_before = node.children[: -options["in_flight"]]
        assert len(node.children) <= limit or all(child.closed for child in drawn_before)
        assert len({child.thought.text for child in node.children}) == len(node.children)
        assert 0 <= node.stats.mean <= 1
        assert node.stats.visits >= sum(child.stats.visits for child in node.children)
        if node.children:
            assert sum(node.priors()) == pytest.approx(1.0)
    best, meter = search.best(), search.session.meter
    assert best is not None
    assert (best.reward or 0.0) == max(
        [node.thought.reward or 0.0 for node in everything(search) if not node.children] + [best.reward or 0.0]
    )
    if not best.solved and meter.spent is None:
        assert search.root is not None
        assert search.root.closed


@settings(max_examples=30)
@given(world=worlds(), options=options, seed=st.integers(0, 99))
async def test_a_search_replays(
    world: tuple[Table, dict[str, float], dict[str, float]], options: dict[str, Any], seed: int
) -> None:
    table, values, rewards = world
    runs = []
    for _ in range(2):
        backend = TreeBackend(table, values)
        result = await run_search_async(Puzzle(rewards), backend, "mcts", Budget(tokens=300), seed, **options)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("selection", ["uct", "puct"])
@pytest.mark.parametrize("in_flight", [1, 4])
async def test_values_lead_to_the_best_leaf(selection: str, in_flight: int) -> None:
    """Of 4^4 leaves one is right, and the value is high along its path alone: blind search needs 128 ends."""
    target = "2\n0\n3\n1\n"
    table: dict[str, dict[str, float]] = {}
    paths = [""]
    for _ in range(4):
        table |= {path: uniform("0\n", "1\n", "2\n", "3\n") for path in paths}
        paths = [path + step for path in paths for step in table[path]]
    values = {text: 0.9 if target.startswith(text) else 0.1 for text in (*table, *paths)}
    backend = TreeBackend(table, values)
    puzzle = Puzzle({path: float(path == target) for path in paths})
    result = await run_search_async(
        puzzle, backend, "mcts", Budget(expansions=40), selection=selection, in_flight=in_flight, c=0.2, widening_k=2
    )
    assert result.solved
    assert result.text == target


async def test_the_better_arm_gets_the_visits() -> None:
    """Both arms have many leaves of no full reward; rollouts tell the arms apart."""
    rng = Random(0)
    arms = {"good\n": 0.8, "bad\n": 0.2}
    table: dict[str, dict[str, float]] = {"": uniform(*arms)}
    rewards: dict[str, float] = {}
    for arm, mean in arms.items():
        table[arm] = uniform(*(f"{index}\n" for index in range(200)))
        for step in table[arm]:
            table[arm + step] = uniform("end\n")
            rewards[f"{arm}{step}end\n"] = 0.9 if rng.random() < mean else 0.0
    search = await grow(
        Puzzle(rewards), TreeBackend(table), Budget(expansions=300), value="rollout", selection="uct", children=1, c=0.5
    )
    assert search.root is not None
    visits = {child.thought.text: child.stats.visits for child in search.root.children}
    means = {child.thought.text: child.stats.mean for child in search.root.children}
    assert visits["good\n"] > 2 * visits["bad\n"]
    assert means["good\n"] == pytest.approx(0.72, abs=0.15)


@pytest.mark.parametrize("value", ["head", "rollout"])
async def test_a_small_tree_is_searched_to_the_end_and_no_further(value: str) -> None:
    backend = TreeBackend(binary(3), {})
    search = await grow(Puzzle(WRONG), backend, Budget(tokens=100_000), value=value)
    assert sorted(node.thought.text for node in everything(search) if not node.children) == leaves(3)
    assert all(node.closed for node in everything(search))
    assert backend.decoded < 1000, "closed subtrees cost nothing"
    result = await run_search_async(Puzzle(WRONG), TreeBackend(binary(3), {}), value=value)
    assert (result.stop_reason, result.nodes, result.reward) == ("exhausted", 15, 0.0)


async def test_a_closed_node_is_not_expanded_again() -> None:
    backend = TreeBackend({"": {"dead\n": 0.9, "live\n": 0.1}, "dead\n": {"end\n": 1.0}, "live\n": uniform("x\n")}, {})
    puzzle = Puzzle({"dead\nend\n": 0.0}, depth=20)
    await grow(puzzle, backend, Budget(expansions=60), in_flight=1, children=2)
    counts = Counter(text for text, _, _ in backend.calls)
    assert counts["dead\n"] == 1


async def test_repeated_children_are_merged_and_released() -> None:
    backend = TreeBackend({"": {"a\n": 0.9, "b\n": 0.1}, "a\n": {"c\n": 1.0}, "b\n": {"c\n": 1.0}}, {"a\n": 0.8})
    search = await grow(Puzzle({}), backend, Budget(expansions=1), children=20, widening_k=20, **SAMPLED)
    assert search.root is not None
    root = search.root
    assert sorted(child.thought.text for child in root.children) == ["a\n", "b\n"]
    assert {child.thought.step: prior for child, prior in zip(root.children, root.priors(), strict=True)} == {
        "a\n": pytest.approx(0.9),
        "b\n": pytest.approx(0.1),
    }
    assert all(child.stats.visits == 1 for child in root.children)
    assert root.stats.visits == 20, "a repetition counts above the child"


async def test_a_node_that_repeats_itself_stops_drawing() -> None:
    """More than 5 % is unseen for ever, for the sampler never draws it: patience ends what `unseen` cannot."""

    class Stubborn(TreeBackend):
        def _sample(self, kid: int, index: int, params: Any) -> Any:
            return super()._sample(kid, index, params.model_copy(update={"temperature": 0.0}))

    backend = Stubborn({"": {"a\n": 0.6, "b\n": 0.4}}, {})
    result = await run_search_async(Puzzle({"a\n": 0.0}), backend, budget=Budget(tokens=10_000), patience=5, children=2)
    assert (result.stop_reason, result.nodes) == ("exhausted", 2)
    assert result.tokens <= 2 * (1 + 5 + 4 * 2), "and what was in flight"


async def test_the_first_path_is_the_greedy_one() -> None:
    """Each node's first child is its likeliest; those after it are sampled, in calls of more than one."""
    table: Table = {path: {"a\n": 0.4, "b\n": 0.3, "c\n": 0.3} for path in ("", "a\n", "a\na\n")}
    backend = TreeBackend(table, {})
    await grow(Puzzle({"a\na\na\n": 0.0}), backend, Budget(expansions=30), in_flight=1, children=3)
    first: dict[str, float] = {}
    for text, n, params in backend.calls:
        assert params.temperature == (0.0 if text not in first else 0.8)
        assert n == 1 or text in first
        first.setdefault(text, params.temperature)
    assert [text for text, _, _ in backend.calls[:3]] == ["", "a\n", "a\na\n"]
    assert any(temperature for _, _, params in backend.calls if (temperature := params.temperature))


async def test_in_flight_leaves_spread_over_the_tree() -> None:
    """Of four children of equal value and prior, each is expanded once before any is again."""
    steps = [f"{index}\n" for index in range(4)]
    table: Table = {"": uniform(*steps)} | {step: uniform(*(f"{index}\n" for index in range(50))) for step in steps}
    backend = TreeBackend(table, {})
    await grow(
        Puzzle({}), backend, Budget(expansions=60), in_flight=4, children=20, widening_k=20, widening_alpha=0, c=0.5
    )
    deeper = [text for text, _, _ in backend.calls if text]
    assert sorted(deeper[:4]) == steps


async def test_selection_waits_rather_than_draw_beyond_the_limit() -> None:
    backend = TreeBackend({"": uniform(*(f"{index}\n" for index in range(99)))}, {})
    search = await grow(
        Puzzle({}, depth=2),
        backend,
        Budget(expansions=5),
        in_flight=16,
        children=2,
        widening_k=3,
        widening_alpha=0,
        **SAMPLED,
    )
    assert [(text, n) for text, n, _ in backend.calls[:2]] == [("", 2), ("", 1)]
    assert all(text for text, _, _ in backend.calls[2:])
    assert search.root is not None
    assert len(search.root.children) == 3


@pytest.mark.parametrize("value", ["head", "rollout"])
async def test_counts_are_taken_back_when_an_expansion_fails(value: str) -> None:
    backend = TreeBackend(binary(8), {}, failures={6: RuntimeError("broken")})
    session = Session(Puzzle({}), backend, Budget(expansions=100), 0)
    search = Mcts(session, MctsOptions(value=value, widening_k=2))
    await session.open()
    with pytest.raises(RuntimeError, match="broken"):
        await search.run()
    assert search.root is not None
    assert search.root.stats.visits > 0 or value == "rollout"
    await session.close()
    check_at_rest(search, backend)


@pytest.mark.parametrize("value", ["head", "rollout"])
@pytest.mark.parametrize("turns", [5, 12, 30])
async def test_counts_are_taken_back_when_the_search_is_cancelled(value: str, turns: int) -> None:
    backend = TreeBackend(binary(8), {})
    session = Session(Puzzle({}), backend, Budget(expansions=1000), 0)
    search = Mcts(session, MctsOptions(value=value, widening_k=2))
    await session.open()
    running = asyncio.create_task(search.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    assert search.root is not None
    assert search.root.stats.in_flight > 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.close()
    check_at_rest(search, backend)


async def test_an_answer_cancels_what_is_in_flight() -> None:
    table: Table = {"": uniform("a\n", "b\n"), "a\n": uniform("win\n"), "b\n": uniform("slow" * 1000 + "\n")}
    backend = TreeBackend(table, {})
    puzzle = Puzzle({"a\nwin\n": 1.0}, step_tokens=10_000)
    result = await run_search_async(puzzle, backend, budget=Budget(tokens=10**6), in_flight=4)
    assert (result.solved, result.stop_reason) == (True, "solved")
    assert backend.decoded < 100
    assert (backend.running, backend.held) == (0, [])


async def test_a_full_context_closes_the_node() -> None:
    backend = TreeBackend(binary(3), {}, failures={0: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle(WRONG), backend)
    assert (result.stop_reason, result.nodes, result.expansions) == ("exhausted", 1, 1)


async def test_a_rollout_may_find_the_answer() -> None:
    backend = TreeBackend({"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}, "a\nb\n": {"c\n": 1.0}})
    result = await run_search_async(Puzzle({"a\nb\nc\n": 1.0}), backend, value="rollout", children=1, in_flight=1)
    assert (result.solved, result.text, result.expansions, result.nodes) == (True, "a\nb\nc\n", 3, 2)
    assert backend.held == []


async def test_the_head_as_value_needs_a_head() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=r'value=.*"rollout"'):
        await run_search_async(Puzzle(WRONG), backend)
    assert backend.held == []


async def test_without_a_rewarded_end_the_leaf_of_the_highest_value_is_the_answer() -> None:
    values = {"a\n": 0.9, "b\n": 0.2, "a\na\n": 0.1, "a\nb\n": 0.3}
    backend = TreeBackend(binary(8), values)
    search = await grow(Puzzle({}), backend, Budget(expansions=2), in_flight=1, children=12, widening_k=12, **SAMPLED)
    best = search.best()
    assert best is not None
    assert best.text == "a\nb\n", "an inner node is no answer, however high its value was"


async def test_nodes_are_released_as_they_close() -> None:
    class Watched(TreeBackend):
        most_held = 0

        async def expand(self, node: Any, n: int, params: Any) -> Any:
            self.most_held = max(self.most_held, len(self.held))
            return await super().expand(node, n, params)

    table = {"": uniform(*(f"{index}\n" for index in range(100)))}
    backend = Watched(table, {})
    await grow(Puzzle(dict.fromkeys((f"{index}\n" for index in range(100)), 0.0)), backend, Budget(tokens=2000))
    assert backend.most_held <= 1 + 2 * 4, "the root, and what is in flight or just back"
