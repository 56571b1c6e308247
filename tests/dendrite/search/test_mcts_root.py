"""How the root of a Monte Carlo tree search moves, what several trees share, and how a killed search goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.convergence import merged
from dendrite.search.run import run_search_async
from tests.dendrite.search.mcts_worlds import (
    DEEP,
    RAGGED,
    Noted,
    check_at_rest,
    everything,
    grow,
    prepare,
    watch,
)
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, leaves, uniform


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize("value", ["head", "rollout"])
async def test_a_move_keeps_the_childs_subtree_and_releases_exactly_the_rest(in_flight: int, value: str) -> None:
    backend = TreeBackend(DEEP, {})
    search = await watch(
        Puzzle({}), backend, Budget(expansions=60), value=value, commit=9, in_flight=in_flight, widening_k=2, children=2
    )
    assert len(search.moves) >= 3
    for move in search.moves:
        child = move["to"]
        assert child.parent is None
        assert move["holds"] == move["below"], "exactly the rest is released, at once"
        assert [(node, stats.visits, stats.total) for node, stats, _ in move["stats"]] == move["kept"]
        for node in (move["from"], *(node for other in move["beside"] for node in other.places)):
            assert (node.stats.in_flight, node.pending) == (0, 0), "visits elsewhere are taken back"
    assert isinstance(search.session, Noted)
    assert search.session.moves == [move["to"].thought.id for move in search.moves]
    check_at_rest(search, backend)


async def test_what_is_in_flight_below_the_child_goes_on() -> None:
    backend = TreeBackend(RAGGED, {})
    search = await watch(Puzzle({}), backend, Budget(expansions=120), commit=20, in_flight=8, widening_k=2, children=2)
    went_on = cancelled = 0
    for move in search.moves:
        assert move["still"] == move["inside"]
        went_on += len(move["inside"])
        cancelled += len(move["running"]) - len(move["inside"])
    assert went_on > 0
    assert cancelled > 0
    assert all(count == 0 for count in (backend.running, len(backend.held)))


async def test_the_root_moves_to_the_most_visited_child_after_so_many_expansions() -> None:
    values = {text: 0.9 if text.startswith("b\n") else 0.1 for text in (*DEEP, *leaves(8))}
    backend = TreeBackend(DEEP, values)
    search = await watch(
        Puzzle({}), backend, Budget(expansions=25), commit=10, in_flight=1, widening_k=2, greedy_first=False
    )
    assert [move["at"] for move in search.moves] == [10, 20]
    assert search.moves[0]["to"].thought.text == "b\n"
    assert all(text.startswith("b\n") for text, _, _ in backend.calls[10:])
    for move in search.moves:
        assert move["kept"][0][1] >= max((other.stats.visits for other in move["beside"]), default=0)
    assert search.nodes == 1 + len(backend_texts(backend))


def backend_texts(backend: TreeBackend) -> set[str]:
    """All distinct paths that were drawn."""
    return {place.text for place in backend.places.values() if place.text}


async def test_an_end_that_was_found_beside_still_is_the_answer() -> None:
    table: Table = {"": {"end\n": 0.6, "on\n": 0.4}, "on\n": uniform("x\n", "y\n")}
    backend = TreeBackend(table, {"on\n": 0.9})
    search = await watch(Puzzle({"end\n": 0.7}), backend, Budget(expansions=12), commit=3, in_flight=1, widening_k=3)
    assert [move["to"].thought.text for move in search.moves][:1] == ["on\n"]
    best = search.best()
    assert best is not None
    assert (best.text, best.reward) == ("end\n", 0.7)


async def test_only_an_open_child_of_the_root_may_become_the_root() -> None:
    search = await grow(Puzzle({"a\n": 0.0}), TreeBackend(DEEP, {}), Budget(expansions=12), widening_k=2)
    root = search.root
    assert root is not None
    closed = next(child for child in root.children if child.thought.text == "a\n")
    for wrong in (closed, root, next(node for node in everything(search) if node.thought.depth == 2)):
        with pytest.raises(InvalidArgument, match="child"):
            await search.advance_root(wrong)
    several = await grow(Puzzle({}), TreeBackend(DEEP, {}), Budget(expansions=12), mode="root", trees=2)
    with pytest.raises(InvalidArgument, match="one tree"):
        await several.advance_root(several.trees[0].children[0])


@pytest.mark.parametrize("turns", [9, 15, 21, 33])
async def test_cancelled_at_any_time_a_moving_search_leaves_nothing(turns: int) -> None:
    backend = TreeBackend(DEEP, {})
    search = prepare(Puzzle({}), backend, Budget(expansions=500), commit=2, in_flight=8, widening_k=3)
    await search.session.open()
    running = asyncio.create_task(search.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await search.session.close()
    await asyncio.sleep(0)
    check_at_rest(search, backend)


# ---------------------------------------------------------------- several trees


async def test_trees_have_different_seeds_and_share_the_roots_cache() -> None:
    wide: Table = {"": uniform(*(f"{index}\n" for index in range(50)))}
    backend = TreeBackend(wide, {})
    search = await grow(
        Puzzle({}, depth=2), backend, Budget(expansions=24), mode="root", trees=3, in_flight=6, widening_k=3
    )
    assert len(backend.prefilled) == 1
    assert [tree.path for tree in search.trees] == [(0,), (1,), (2,)]
    drawn = [[child.thought.text for child in tree.children] for tree in search.trees]
    assert all(drawn)
    assert len({tuple(texts) for texts in drawn}) == 3
    seeds = [params.seed for _, _, params in backend.calls]
    assert len(set(seeds)) == len(seeds)
    assert sum(params.temperature == 0.0 for text, _, params in backend.calls if not text) == 1, "greedy in one tree"
    visits = [tree.stats.visits for tree in search.trees]
    assert max(visits) - min(visits) <= 6
    assert search.nodes == 1 + sum(sum(1 for _ in tree.places) - 1 for tree in search.trees)


async def test_of_several_trees_without_reward_the_most_visited_first_thought_has_the_answer() -> None:
    values = {text: 0.8 if text.startswith("b\n") else 0.3 for text in (*DEEP, *leaves(8))}
    values["a\na\n"] = 0.95
    search = await grow(
        Puzzle({}),
        TreeBackend(DEEP, values),
        Budget(expansions=60),
        mode="root",
        trees=2,
        selection="uct",
        c=0.2,
        widening_k=2,
    )
    arms = merged(search.trees)
    assert arms[0].thought.text == "b\n"
    assert arms[0].visits == sum(c.stats.visits for t in search.trees for c in t.children if c.thought.text == "b\n")
    best = search.best()
    assert best is not None
    assert best.text.startswith("b\n")


# ---------------------------------------------------------------- restarts


@pytest.mark.parametrize(
    "options",
    [
        {"commit": 7, "widening_k": 2, "children": 2},
        {"commit": 7, "value": "rollout"},
        {"root": "gumbel", "simulations": 6, "considered": 3, "selection": "epsilon_greedy"},
        {"prune_below": 0.4, "prune_visits": 2, "widening_k": 3, "selection": "uct"},
        {"mode": "root", "trees": 3},
        {"mode": "leaf", "rollouts": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("in_flight", [1, 5])
async def test_a_search_that_was_killed_goes_on(tmp_path: Path, options: dict[str, Any], in_flight: int) -> None:
    """As it would have, with one expansion in flight. Of several, those that begin anew may land in another order."""
    values = {text: Random(text).random() for text in RAGGED}
    whole = tmp_path / "whole.jsonl"

    async def run(trace: Path, resume: bool = False) -> dict[str, Any]:
        backend = TreeBackend(RAGGED, values)
        given = {"trace": trace, "resume": resume, "in_flight": in_flight, **options}
        result = await run_search_async(Puzzle({}), backend, "mcts", Budget(expansions=60), **given)
        assert backend.held == []
        return {**result.to_dict(), "seconds": 0.0}

    expected = await run(whole)
    lines = whole.read_text().splitlines(keepends=True)
    for share in (0.3, 0.7, 0.95):
        cut = tmp_path / f"{share}.jsonl"
        cut.write_text("".join(lines[: int(share * len(lines))]))
        resumed = await run(cut, resume=True)
        assert resumed["stop_reason"] == expected["stop_reason"]
        if in_flight == 1:
            assert resumed == expected
