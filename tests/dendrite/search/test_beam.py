from __future__ import annotations

import math
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search.beam import Beam, BeamOptions, length_normalised
from dendrite.search.budget import Budget
from dendrite.search.run import run_search_async
from dendrite.search.session import Session
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
options = st.one_of(
    st.fixed_dictionaries({"width": st.integers(1, 5), "branches": st.integers(1, 5), "score": st.just("value")}),
    st.fixed_dictionaries(
        {
            "width": st.integers(1, 5),
            "branches": st.integers(1, 5),
            "score": st.just("logprob"),
            "alpha": st.sampled_from([None, 0.0, 0.6, 2.0]),
        }
    ),
)


def brute_force(world: World, width: int, score: str, alpha: float) -> tuple[set[str], list[str]]:
    """Beam search over the whole table: what it expands, and what it keeps at the end, best first."""

    def rank(path: tuple[str, float, int]) -> float:
        text, logprob, length = path
        if score == "value":
            return world.rewards.get(text, world.values.get(text, 0.0))
        return logprob / math.pow((5 + length) / 6, alpha)

    kept = [("", 0.0, 0)]
    expanded: set[str] = set()
    while any(text not in world.rewards for text, _, _ in kept):
        candidates = [path for path in kept if path[0] in world.rewards]
        for text, logprob, length in kept:
            if text not in world.rewards:
                expanded.add(text)
                candidates += [
                    (text + step, logprob + math.log(share), length + len(step))
                    for step, share in world.table[text].items()
                ]
        kept = sorted(candidates, key=rank, reverse=True)[:width]
    return expanded, [text for text, _, _ in kept]


@settings(max_examples=100)
@given(
    world=worlds(solvable=False),
    width=st.integers(1, 6),
    score=st.sampled_from(["value", "logprob"]),
    alpha=st.sampled_from([0.0, 0.6, 1.5]),
    seed=st.integers(0, 99),
)
async def test_where_branches_cover_all_children_it_is_exact(
    world: World, width: int, score: Literal["value", "logprob"], alpha: float, seed: int
) -> None:
    backend = world.backend()
    session = Session(Puzzle(world.rewards), backend, PLENTY, seed)
    given = alpha if score == "logprob" else None
    search = Beam(session, BeamOptions(width=width, branches=4, score=score, alpha=given))
    await session.open()
    await search.run()
    await session.flush()
    expanded, kept = brute_force(world, width, score, alpha)
    assert {text for text, _, _ in backend.calls} == expanded
    assert [place.thought.text for place in search._ends] == kept
    assert set(backend.held) == {""}, "before the session is closed, the prompt alone is left"
    await session.close()


@settings(max_examples=50)
@given(world=worlds(solvable=False), score=st.sampled_from(["value", "logprob"]), seed=st.integers(0, 99))
async def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_leaves(world: World, score: str, seed: int) -> None:
    backend = world.backend()
    result = await run_search_async(
        Puzzle(world.rewards), backend, "beam", PLENTY, seed, width=256, branches=4, score=score
    )
    assert result.reward == max(world.rewards.values())
    assert (result.nodes, result.stop_reason) == (1 + len(world.values), "exhausted")


@settings(max_examples=100)
@given(world=worlds(), options=options, budget=budgets, seed=st.integers(0, 99))
async def test_whatever_the_world_the_rules_hold(
    world: World, options: dict[str, Any], budget: Budget, seed: int
) -> None:
    await check_the_rules(world, "beam", budget, seed, options)


@pytest.mark.parametrize("tokens", [1, 7, 50])
async def test_the_budget_is_used(tokens: int) -> None:
    await check_the_budget_is_used("beam", tokens)


def test_the_length_is_normalised_as_by_hand() -> None:
    assert length_normalised(-3.0, 7, 0.6) == pytest.approx(-3.0 / 2**0.6)
    assert length_normalised(-3.0, 19, 0.5) == pytest.approx(-1.5)
    assert length_normalised(-3.0, 1, 0.6) == -3.0
    assert length_normalised(-3.0, 100, 0.0) == -3.0


@pytest.mark.parametrize(
    ("alpha", "winner"),
    [
        (0.0, "a\n"),  # -0.693 over -0.916
        (0.1, "a\n"),  # -0.682 over -0.842
        (None, "bbbbbbbb\n"),  # -0.551 over -0.632: lp is (7/6)^0.6 = 1.097 and (14/6)^0.6 = 1.662
        (1.0, "bbbbbbbb\n"),  # -0.393 over -0.594
    ],
)
async def test_normalisation_decides_between_short_and_long(alpha: float | None, winner: str) -> None:
    backend = Distinct({"": {"a\n": 0.5, "bbbbbbbb\n": 0.4, "c\n": 0.1}})
    puzzle = Puzzle({}, depth=1, step_tokens=16)
    result = await run_search_async(puzzle, backend, "beam", score="logprob", alpha=alpha, width=1)
    assert (result.text, result.nodes) == (winner, 4)


COMPETING: Table = {"": uniform("end\n", "go\n"), "go\n": uniform("x\n", "y\n"), "go\nx\n": uniform("z\n")}


async def test_an_end_holds_its_place_against_what_is_worth_less() -> None:
    backend = Distinct(COMPETING, {"go\n": 0.7, "go\nx\n": 0.5, "go\ny\n": 0.4})
    result = await run_search_async(Puzzle({"end\n": 0.6, "go\nx\nz\n": 0.1}), backend, "beam", width=2)
    assert {text for text, _, _ in backend.calls} == {"", "go\n", "go\nx\n"}
    assert (result.text, result.reward, result.nodes) == ("end\n", 0.6, 6)


async def test_an_end_that_lost_its_place_is_still_the_best_rewarded_answer() -> None:
    backend = Distinct({**COMPETING, "go\ny\n": uniform("z\n")}, {"go\n": 0.7, "go\nx\n": 0.9, "go\ny\n": 0.8})
    puzzle = Puzzle({"end\n": 0.6, "go\nx\nz\n": 0.1, "go\ny\nz\n": 0.2})
    result = await run_search_async(puzzle, backend, "beam", width=2)
    assert "go\ny\n" in {text for text, _, _ in backend.calls}
    assert (result.text, result.reward) == ("end\n", 0.6)


async def test_a_level_is_one_batch_and_an_answer_ends_it_at_once() -> None:
    table: Table = {"": uniform("a\n", "b\n"), "a\n": uniform("win\n"), "b\n": uniform("slow" * 100 + "\n")}
    backend = Distinct(table, {})
    result = await run_search_async(Puzzle({"a\nwin\n": 1.0}, step_tokens=1000), backend, "beam", PLENTY)
    assert (result.solved, result.text, backend.held, backend.running) == (True, "a\nwin\n", [], 0)
    assert backend.most_running == 8
    assert backend.decoded < 100


async def test_losing_nodes_are_released_before_the_next_level_is_drawn() -> None:
    class Watched(Distinct):
        seen: list[set[str]]

        async def _decode(self, kids: list[int], *rest: Any) -> Any:
            branches = await super()._decode(kids, *rest)
            self.seen.append(set(self.held))
            return branches

    values = {path[: 2 * depth]: 1.0 if "b" not in path[: 2 * depth] else 0.0 for path in leaves(3) for depth in (1, 2)}
    backend = Watched(binary(3), values, delay=0.01)
    backend.seen = []
    await run_search_async(Puzzle(dict.fromkeys(leaves(3), 0.0)), backend, "beam", width=1, branches=2)
    last = backend.seen[-1]
    assert "a\na\n" in last
    assert not last & {"b\n", "a\n", "a\nb\n"}


async def test_few_nodes_are_held_however_large_the_tree() -> None:
    backend = Distinct({path: uniform(*map("{}\n".format, range(9))) for path in _paths(5)}, {})
    await run_search_async(Puzzle({}, depth=5), backend, "beam", PLENTY, width=2, branches=6)
    assert len(backend.places) > 50
    assert backend.most_held <= 1 + 2 + 2 * 6


def _paths(depth: int) -> list[str]:
    paths = level = [""]
    for _ in range(depth - 1):
        level = [f"{path}{step}\n" for path in level for step in range(9)]
        paths = paths + level
    return paths


async def test_a_full_context_gives_its_place_up() -> None:
    backend = Distinct(binary(3), {}, failures={0: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle({}), backend, "beam")
    assert (result.stop_reason, result.nodes, result.text, result.expansions) == ("exhausted", 1, "", 1)


async def test_ranking_by_value_needs_a_head_and_by_probability_does_not() -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=r"score='value'.*score=\"logprob\""):
        await run_search_async(Puzzle({}), backend, "beam")
    assert backend.held == []
    result = await run_search_async(Puzzle({}, depth=2), Distinct(binary(3)), "beam", score="logprob")
    assert (result.nodes, result.stop_reason) == (7, "exhausted")


async def test_alpha_is_refused_where_it_has_no_use() -> None:
    with pytest.raises(InvalidArgument, match=r"alpha=0\.6: .*score=\"logprob\""):
        await run_search_async(Puzzle({}), Distinct(binary(3), {}), "beam", alpha=0.6)


async def test_a_prompt_that_is_solved_already_costs_nothing() -> None:
    for algorithm in ("beam", "dvts", "rebase"):
        result = await run_search_async(Puzzle({"": 1.0}), Distinct(binary(3), {}), algorithm)
        assert (result.solved, result.tokens, result.nodes) == (True, 0, 1)
