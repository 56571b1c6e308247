from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.search import Budget, run_search_async
from dendrite.search.frontier import places
from dendrite.search.session import Session
from dendrite.search.thoughts import TotBfs, TotBfsOptions, TotDfs, TotDfsOptions
from tests.dendrite.search.synthetic import Puzzle, Table, TreeBackend, binary, leaves, uniform

WRONG = dict.fromkeys(leaves(3), 0.0)
BOTH = ["tot_bfs", "tot_dfs"]

TREE: Table = {
    "": uniform("a\n", "b\n", "c\n"),
    "a\n": uniform("a\n", "b\n"),
    "b\n": uniform("a\n", "b\n"),
    "c\n": uniform("a\n", "b\n"),
    "a\na\n": uniform("x\n"),
    "a\nb\n": uniform("x\n"),
    "b\na\n": uniform("x\n"),
    "b\nb\n": uniform("x\n"),
}
VALUES = {"a\n": 0.6, "b\n": 0.8, "c\n": 0.1, "a\na\n": 0.9, "a\nb\n": 0.3, "b\na\n": 0.2, "b\nb\n": 0.4}
ENDS = {text + "x\n": 0.0 for text in TREE if text.count("\n") == 2}


class Watched(TreeBackend):
    """Notes what is held as each expansion starts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.most_held = 0

    async def expand(self, node: Any, n: int, params: Any) -> Any:
        self.most_held = max(self.most_held, len(self.held))
        return await super().expand(node, n, params)


async def grow(
    algorithm: str, puzzle: Puzzle, backend: TreeBackend, budget: Budget | None = None, seed: int = 0, **options: Any
) -> TotBfs | TotDfs:
    """Run a search the way `run_search_async` does, but keep the tree."""
    session = Session(puzzle, backend, budget or Budget(tokens=10_000), seed)
    search: TotBfs | TotDfs
    if algorithm == "tot_bfs":
        search = TotBfs(session, TotBfsOptions(**options))
    else:
        search = TotDfs(session, TotDfsOptions(**options))
    try:
        await session.open()
        await search.run()
    finally:
        await session.close()
    assert (backend.held, backend.running) == ([], 0)
    return search


def expanded(backend: TreeBackend) -> list[str]:
    """Texts of the nodes expanded, in the order of their first expansions."""
    return list(dict.fromkeys(text for text, _, _ in backend.calls))


def levels(backend: TreeBackend) -> list[set[str]]:
    """Texts expanded on each level."""
    found: dict[int, set[str]] = {}
    for text in expanded(backend):
        found.setdefault(text.count("\n"), set()).add(text)
    return [found[level] for level in sorted(found)]


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (1, [{""}, {"b\n"}, {"b\nb\n"}]),
        (2, [{""}, {"a\n", "b\n"}, {"a\na\n", "b\nb\n"}]),
        (3, [{""}, {"a\n", "b\n", "c\n"}, {"a\na\n", "b\nb\n", "a\nb\n"}]),
    ],
)
async def test_the_levels_by_hand(b: int, expected: list[set[str]]) -> None:
    values = VALUES | {"c\na\n": 0.05, "c\nb\n": 0.05}
    for seed in range(5):
        backend = TreeBackend(TREE, values)
        search = await grow("tot_bfs", Puzzle(ENDS), backend, seed=seed, b=b)
        assert levels(backend) == expected
        depths = [text.count("\n") for text, _, _ in backend.calls]
        assert depths == sorted(depths), "a level is a barrier"
        assert search.root is not None


async def test_a_level_is_one_batch() -> None:
    table = binary(4)
    backend = TreeBackend(table, {})
    await grow("tot_bfs", Puzzle({}, depth=4), backend, b=8, k=2)
    assert backend.most_running == 8 * 2


@pytest.mark.parametrize(
    ("threshold", "order"),
    [
        (0.0, ["", "b\n", "b\nb\n", "b\na\n", "a\n", "a\na\n", "a\nb\n", "c\n"]),
        (0.1, ["", "b\n", "b\nb\n", "b\na\n", "a\n", "a\na\n", "a\nb\n"]),
        (0.3, ["", "b\n", "b\nb\n", "a\n", "a\na\n"]),
        (0.7, ["", "b\n"]),
        (1.0, [""]),
    ],
)
async def test_the_depth_first_order_and_pruning_by_hand(threshold: float, order: list[str]) -> None:
    values = VALUES | {"c\na\n": 0.0, "c\nb\n": 0.0}
    for seed in range(5):
        backend = TreeBackend(TREE, values)
        result = await run_search_async(Puzzle(ENDS), backend, "tot_dfs", seed=seed, threshold=threshold)
        assert expanded(backend) == order
        assert (result.stop_reason, backend.held) == ("exhausted", [])


async def test_the_first_in_the_tree_goes_first_among_equals() -> None:
    backend = TreeBackend(binary(3), {})
    search = await grow("tot_dfs", Puzzle(WRONG), backend)
    assert search.root is not None
    order = [place.thought.text for place in places(search.root) if place.children]
    assert expanded(backend) == order


async def test_an_ended_path_takes_no_place_of_the_breadth() -> None:
    table = {"": uniform("end\n", "on\n"), "on\n": uniform("x\n")}
    backend = TreeBackend(table, {"end\n": 1.0, "on\n": 0.1})
    search = await grow("tot_bfs", Puzzle({"end\n": 0.5, "on\nx\n": 0.2}), backend, b=1)
    assert levels(backend) == [{""}, {"on\n"}]
    best = search.best()
    assert best is not None
    assert best.text == "end\n"


@pytest.mark.parametrize("algorithm", BOTH)
async def test_proposals_are_all_different(algorithm: str) -> None:
    """One thought has 90 %: what repeats it is drawn again, until there are k."""
    table = {"": {"a\n": 0.9, "b\n": 0.04, "c\n": 0.03, "d\n": 0.03}}
    for seed in range(5):
        backend = Distinct(table, {})
        search = await grow(algorithm, Puzzle({}, depth=1), backend, seed=seed, k=3)
        assert search.root is not None
        texts = [child.thought.text for child in search.root.children]
        assert len(texts) == len(set(texts)) == 3
        assert sum(n for _, n, _ in backend.calls) <= 6


class Distinct(TreeBackend):
    """Keeps to `without`, as the engine does."""

    def _sample(self, kid: int, index: int, params: Any) -> Any:
        place, table = self.places[kid], self.table
        known = {"".join(map(chr, each.tokens)) for each in params.without}
        left = {step: share for step, share in table.get(place.text, {"": 1.0}).items() if step not in known}
        try:
            self.table = {place.text: left}
            return super()._sample(kid, index, params)
        finally:
            self.table = table


@pytest.mark.parametrize("algorithm", BOTH)
async def test_there_are_fewer_proposals_where_there_is_no_more_to_say(algorithm: str) -> None:
    backend = TreeBackend({"": {"a\n": 0.995, "b\n": 0.005}}, {})
    search = await grow(algorithm, Puzzle({"a\n": 0.0}), backend)
    assert (search.nodes, len(backend.calls)) == (2, 1)

    class Stubborn(TreeBackend):
        def _sample(self, kid: int, index: int, params: Any) -> Any:
            return super()._sample(kid, index, params.model_copy(update={"temperature": 0.0}))

    stubborn = Stubborn({"": {"a\n": 0.6, "b\n": 0.4}}, {})
    await grow(algorithm, Puzzle({"a\n": 0.0}), stubborn, patience=6)
    assert [n for _, n, _ in stubborn.calls] == [5, 4]


@pytest.mark.parametrize("algorithm", BOTH)
async def test_the_answer_ends_the_search(algorithm: str) -> None:
    backend = TreeBackend(binary(3), {})
    result = await run_search_async(Puzzle(WRONG | {leaves(3)[5]: 1.0}), backend, algorithm)
    assert (result.text, result.solved, result.stop_reason) == (leaves(3)[5], True, "solved")
    assert (backend.held, backend.running) == ([], 0)


@pytest.mark.parametrize("algorithm", BOTH)
async def test_values_lead_to_the_one_right_leaf_of_many(algorithm: str) -> None:
    target = leaves(8)[137]
    values = {text: 0.9 if target.startswith(text) else 0.1 for text in binary(8)}
    puzzle = Puzzle({text: float(text == target) for text in leaves(8)})
    result = await run_search_async(puzzle, TreeBackend(binary(8), values), algorithm)
    assert result.solved
    assert result.nodes <= 1 + 8 * 5 * 2


async def test_depth_first_comes_back_from_a_wrong_turn() -> None:
    target = "a\nb\nx\n"
    result = await run_search_async(Puzzle(ENDS | {target: 1.0}), TreeBackend(TREE, VALUES), "tot_dfs")
    assert (result.text, result.solved) == (target, True)


async def test_what_falls_out_of_the_breadth_is_released_at_once() -> None:
    table = {path: uniform(*(f"{index}\n" for index in range(20))) for path in ("", *(f"{i}\n" for i in range(20)))}
    backend = Watched(table, {})
    await grow("tot_bfs", Puzzle({}, depth=2), backend, b=3, k=20)
    assert backend.most_held <= 1 + 3 + 3 * 20, "the root, a level, and what is drawn below it"


async def test_depth_first_holds_one_path_and_what_is_left_beside_it() -> None:
    class Both(Watched, Distinct):
        pass

    backend = Both(binary(8), {})
    await grow("tot_dfs", Puzzle(dict.fromkeys(leaves(8), 0.0), depth=8), backend, k=2, threshold=0.0)
    assert backend.most_held <= 1 + 2 * 8 + 2
    assert len(expanded(backend)) == 255


async def test_pruned_thoughts_are_released() -> None:
    steps = [f"{index}\n" for index in range(20)]
    table = {"": uniform(*steps), "3\n": uniform("x\n")}

    class Both(Watched, Distinct):
        pass

    backend = Both(table, dict.fromkeys(steps, 0.01) | {"3\n": 0.9})
    await grow("tot_dfs", Puzzle({}, depth=2), backend, k=20)
    assert expanded(backend) == ["", "3\n"]
    held = Both(table, dict.fromkeys(steps, 0.01) | {"3\n": 0.9})
    await grow("tot_dfs", Puzzle({}, depth=2), held, k=20, threshold=0.0)
    assert backend.most_held <= 1 + 20
    assert held.most_held >= 1 + 15


@pytest.mark.parametrize("algorithm", BOTH)
async def test_values_are_needed(algorithm: str) -> None:
    backend = TreeBackend(binary(3))
    with pytest.raises(InvalidArgument, match=rf"algorithm='{algorithm}': .* no value head"):
        await run_search_async(Puzzle(WRONG), backend, algorithm)
    assert backend.held == []


@pytest.mark.parametrize("algorithm", BOTH)
@pytest.mark.parametrize("tokens", [1, 7, 33, 60])
async def test_no_token_beyond_the_budget(algorithm: str, tokens: int) -> None:
    backend = TreeBackend(binary(9), {})
    puzzle = Puzzle(dict.fromkeys(leaves(9), 0.0), depth=9)
    result = await run_search_async(puzzle, backend, algorithm, Budget(tokens=tokens))
    assert backend.decoded == result.tokens == tokens
    assert (result.stop_reason, backend.held, backend.running) == ("tokens", [], 0)


@pytest.mark.parametrize("algorithm", BOTH)
async def test_expansions_bound_the_search(algorithm: str) -> None:
    backend = TreeBackend(binary(9), {})
    result = await run_search_async(Puzzle({}, depth=9), backend, algorithm, Budget(expansions=4))
    assert (result.stop_reason, result.expansions, len(backend.calls)) == ("expansions", 4, 4)


@pytest.mark.parametrize("algorithm", BOTH)
async def test_a_full_context_is_the_end_of_a_path(algorithm: str) -> None:
    backend = TreeBackend(binary(3), {}, failures={0: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle(WRONG), backend, algorithm)
    assert (result.stop_reason, result.nodes, result.expansions) == ("exhausted", 1, 1)
    backend = TreeBackend(binary(3), {}, failures={1: ContextOverflow(100, 90)})
    result = await run_search_async(Puzzle(WRONG), backend, algorithm)
    assert (result.stop_reason, result.nodes, backend.held) == ("exhausted", 9, [])


@pytest.mark.parametrize("algorithm", BOTH)
async def test_a_prompt_that_is_its_own_answer_costs_nothing(algorithm: str) -> None:
    backend = TreeBackend({"": uniform("a\n")}, {})
    result = await run_search_async(Puzzle({"": 1.0}), backend, algorithm)
    assert (result.solved, result.tokens, backend.calls) == (True, 0, [])


@pytest.mark.parametrize("algorithm", BOTH)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6), tokens=st.integers(1, 200))
async def test_a_search_replays(algorithm: str, seed: int, k: int, tokens: int) -> None:
    runs = []
    for _ in range(2):
        backend = TreeBackend(binary(5), {"a\n": 0.7, "b\na\n": 0.9})
        puzzle = Puzzle(dict.fromkeys(leaves(5), 0.0))
        result = await run_search_async(puzzle, backend, algorithm, Budget(tokens=tokens), seed, k=k)
        runs.append(({**result.to_dict(), "seconds": 0.0}, backend.calls))
    assert runs[0] == runs[1]
    seeds = Counter(params.seed for _, _, params in runs[0][1])
    assert max(seeds.values()) == 1


@pytest.mark.parametrize("algorithm", BOTH)
async def test_cancelled_midway_it_tells_what_it_had(algorithm: str) -> None:
    backend = TreeBackend(binary(6), {"a\n": 0.8, "a\nb\n": 0.9})
    session = Session(Puzzle({}, depth=6), backend, Budget(tokens=1000), 3)
    search = TotBfs(session, TotBfsOptions()) if algorithm == "tot_bfs" else TotDfs(session, TotDfsOptions())
    assert (search.best(), search.nodes) == (None, 1)
    await session.open()
    running = asyncio.create_task(search.run())
    for _ in range(14):
        await asyncio.sleep(0)
        best = search.best()
    assert best is not None
    assert best.depth > 0
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.close()
    assert (backend.held, backend.running) == ([], 0)
