"""What a search decides at its root: the moves of a Gumbel root, and when a search ends early."""

from __future__ import annotations

from typing import Any

import pytest

from dendrite.search.budget import Budget
from dendrite.search.mcts import Mcts
from dendrite.search.run import run_search_async
from tests.dendrite.search.mcts_worlds import DEEP, check_at_rest, grow, watch
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

# ---------------------------------------------------------------- a Gumbel root


async def test_a_gumbel_root_spreads_its_expansions_and_moves_to_a_child_of_high_value() -> None:
    steps = [f"{index}\n" for index in range(4)]
    paths, table = [""], {}
    for _ in range(6):
        table |= {path: uniform(*steps) for path in paths if len(path) < 4 or path.startswith(("0\n", "2\n"))}
        paths = [path + step for path in paths for step in steps][:2000]
    table |= {step: uniform(*steps) for step in steps}
    values = {step: 0.9 if step == "2\n" else 0.1 for step in steps}
    values |= {a + b: values[a] for a in steps for b in steps}
    backend = TreeBackend(table, values)
    search = await watch(
        Puzzle({}), backend, Budget(expansions=30), root="gumbel", simulations=8, considered=4, in_flight=1, patience=99
    )
    assert search.moves[0]["to"].thought.text == "2\n"
    first = search.moves[0]
    below = [text for text, _, _ in backend.calls if text][:8]
    assert {text[:2] for text in below[:4]} == set(steps), "once each, then the better two"
    assert [text[:2] for text in below[4:]].count("2\n") == 2
    assert len({text[:2] for text in below[4:]}) == 2
    assert first["from"].thought.depth == 0
    assert all(params.temperature > 0 for text, _, params in backend.calls if not text), "a greedy draw is no sample"
    check_at_rest(search, backend)


async def test_a_single_child_is_not_deliberated_upon() -> None:
    table: Table = {"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}, "a\nb\n": {"c\n": 1.0}}
    result = await run_search_async(
        Puzzle({"a\nb\nc\n": 1.0}), TreeBackend(table, {}), root="gumbel", simulations=50, in_flight=1
    )
    assert (result.solved, result.expansions) == (True, 3)


# ---------------------------------------------------------------- early stops


async def test_a_reward_that_cannot_be_beaten_ends_the_search() -> None:
    table: Table = {"": {"a\n": 0.6, "b\n": 0.4}, "b\n": uniform(*"xyz")}
    puzzle = Puzzle({"a\n": 0.7})
    plain = await run_search_async(puzzle, TreeBackend(table, {}), budget=Budget(expansions=30), widening_k=2)
    early = await run_search_async(
        puzzle, TreeBackend(table, {}), budget=Budget(expansions=30), widening_k=2, early_stop=True, max_reward=0.7
    )
    assert (early.reward, early.stop_reason) == (0.7, "decided")
    assert early.expansions < plain.expansions


async def test_everything_closed_is_decided() -> None:
    puzzle = Puzzle(dict.fromkeys(leaves(3), 0.5))
    result = await run_search_async(puzzle, TreeBackend(binary(3), {}), early_stop=True)
    assert (result.stop_reason, result.reward) == ("decided", 0.5)


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_a_lead_that_lasts_ends_the_search(in_flight: int) -> None:
    values = {text: 0.9 if text.startswith("b\n") else 0.0 for text in (*DEEP, *leaves(8))}
    given: dict[str, Any] = {"selection": "uct", "c": 0.1, "children": 1, "widening_k": 2, "in_flight": in_flight}
    full = await grow(Puzzle({}), TreeBackend(DEEP, values), Budget(expansions=60), **given)
    early = await grow(Puzzle({}), TreeBackend(DEEP, values), Budget(expansions=60), **given, early_stop=True)
    assert early.stopped == "converged"
    assert full.stopped is None
    assert early.session.meter.expansions < full.session.meter.expansions == 60

    def leader(search: Mcts) -> str:
        assert search.root is not None
        return max(search.root.children, key=lambda child: child.stats.visits).thought.text

    assert leader(early) == leader(full) == "b\n"


async def test_with_commit_a_lasting_lead_moves_the_root_early() -> None:
    values = {text: 0.9 if text.startswith("b\n") else 0.0 for text in (*DEEP, *leaves(8))}
    given: dict[str, Any] = {"selection": "uct", "c": 0.1, "children": 1, "widening_k": 2, "in_flight": 1, "commit": 20}
    moves = []
    for early in (False, True):
        search = await watch(Puzzle({}), TreeBackend(DEEP, values), Budget(expansions=60), **given, early_stop=early)
        moves.append(search.moves)
    assert moves[1][0]["at"] < moves[0][0]["at"] == 20
    assert moves[0][0]["to"].thought.text == moves[1][0]["to"].thought.text == "b\n"
