from __future__ import annotations

from dendrite.search.budget import Budget
from dendrite.search.run import run_search_async
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary

TABLE = {"": {"a\n": 0.4, "b\n": 0.6}, "b\n": {"a\n": 0.1, "c\n": 0.9}, "b\nc\n": {"d\n": 1.0}}


async def test_greedy_follows_the_most_likely_path_to_its_end() -> None:
    backend = TreeBackend(TABLE)
    result = await run_search_async(Puzzle({"b\nc\n": 1.0, "a\n": 0.5}), backend, "greedy")
    assert (result.text, result.reward, result.solved, result.stop_reason) == ("b\nc\n", 1.0, True, "solved")
    assert (result.tokens, result.expansions, result.nodes, result.answer) == (4, 2, 3, "b\nc")
    assert backend.held == []


async def test_a_wrong_path_exhausts_it() -> None:
    result = await run_search_async(Puzzle({"b\nc\n": 0.25}), TreeBackend(TABLE), "greedy")
    assert (result.solved, result.reward, result.stop_reason) == (False, 0.25, "exhausted")


async def test_the_greatest_depth_ends_it() -> None:
    result = await run_search_async(Puzzle({}, depth=1), TreeBackend(TABLE), "greedy")
    assert (result.text, result.reward, result.answer) == ("b\n", 0.0, None)


async def test_the_budget_ends_it_within_a_thought() -> None:
    backend = TreeBackend(binary(8))
    result = await run_search_async(Puzzle({}), backend, "greedy", Budget(tokens=5))
    assert (result.text, result.tokens, result.stop_reason) == ("a\na\na", 5, "tokens")
    assert (backend.decoded, backend.held) == (5, [])
