"""Limits that hold for every algorithm: the KV that a tree owns, and what a search may see of rewards."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from dendrite.config import SamplingParams
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.search import ALGORITHMS, Budget, run_search, run_search_async
from dendrite.search.backend import BackendStats, Branch, NodeRef
from dendrite.search.tasks import Countdown
from tests.dendrite.search.frontier import Distinct
from tests.dendrite.search.synthetic import Puzzle, binary, leaves

DEPTH = 5
PAGE = 100
"""Bytes of a page, which holds two tokens: a thought of the world fills one."""
VALUES = {"".join(f"{step}\n" for step in path): Random(path).random() for d in range(1, 6) for path in leaves(d)}


class Paged(Distinct):
    """Every node owns a page, from the moment its call arrives, until neither it nor anything below it is held."""

    most_pages = 0

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        self.most_pages = max(self.most_pages, len(self.owned()) + n)
        branches = await super().expand(node, n, params)
        return [Branch(b.node, b.tokens, b.text, b.logprobs, b.value, b.finish_reason, pages=1) for b in branches]

    def owned(self) -> set[int]:
        owned: set[int] = set()
        for id, place in self.places.items():
            if not place.released and self.places[id] is place:
                at: int | None = id
                while at is not None and at not in owned:
                    owned.add(at)
                    parent = self.places[at].parent
                    at = parent if isinstance(parent, int) else None
        return owned

    async def stats(self) -> BackendStats:
        return BackendStats(1, 0, self.decoded, 0, len(self.places) - 1, len(self.owned()), 0.0, 2, PAGE)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("pages", [3, 8, 20])
async def test_the_kv_limit_is_never_passed(algorithm: str, pages: int) -> None:
    puzzle = Puzzle(dict.fromkeys(leaves(DEPTH), 0.5), depth=DEPTH, step_tokens=2)
    backend = Paged(binary(DEPTH), VALUES)
    budget = Budget(tokens=400, kv_bytes=pages * PAGE)
    result = await run_search_async(puzzle, backend, algorithm, budget)
    assert 1 < backend.most_pages <= pages
    assert backend.held == []
    assert result.expansions > 0
    assert result.stop_reason in ("kv_bytes", "tokens", "exhausted")


async def test_what_has_no_pages_cannot_keep_a_kv_limit() -> None:
    with pytest.raises(InvalidArgument, match="kv_bytes"):
        await run_search_async(Puzzle({}), Distinct(binary(1), {}), budget=Budget(tokens=9, kv_bytes=1_000))


def test_the_kv_of_a_real_engine_stays_under_the_limit() -> None:
    with Engine.from_pretrained("countdown", device="cpu") as engine:
        page = engine.stats().page_bytes
        task, most = Countdown((3, 7, 8, 25), 99), [0]

        def watch(_: Any) -> None:
            most.append(engine.stats().pages_held)

        for algorithm in ("mcts", "best_of_n"):
            budget = Budget(tokens=600, kv_bytes=20 * page)
            result = run_search(task, engine, algorithm, budget, on_event=watch)
            assert result.tokens > 0
        assert 3 < max(most) <= 20
        assert engine.stats().pages_held == 0


class Secret(Puzzle):
    """Its rewards are the known answers'."""

    @property
    def oracle(self) -> bool:
        return True


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
async def test_an_oracle_is_shown_only_when_asked_for(algorithm: str) -> None:
    ends = leaves(2)
    values = {"a\n": 0.9, "b\n": 0.1, "a\na\n": 0.9, "a\nb\n": 0.2, "b\na\n": 0.1, "b\nb\n": 0.1}
    secret = Secret(dict.fromkeys(ends, 0.0) | {"a\nb\n": 1.0}, depth=2)
    seen: list[Any] = []

    async def run(**settings: Any) -> Any:
        backend = Distinct(binary(2), values)
        return await run_search_async(secret, backend, algorithm, Budget(tokens=300), on_event=seen.append, **settings)

    blind = await run()
    rewards = {event.reward for event in seen if hasattr(event, "reward")}
    assert rewards == {None}, "it is told of no reward"
    assert not blind.oracle
    assert blind.solved == (blind.text == "a\nb\n"), "its answer is graded all the same"
    assert blind.stop_reason != "solved"
    seen.clear()
    told = await run(oracle=True)
    assert told.oracle
    if algorithm not in ("greedy", "self_consistency"):
        assert {event.reward for event in seen if hasattr(event, "reward")} <= {0.0, 1.0}
    if algorithm in ("mcts", "best_of_n", "tot_dfs", "beam"):
        assert (told.solved, told.stop_reason) == (True, "solved")
        assert blind.text == "a\na\n" or algorithm == "best_of_n", "the values lead astray"


async def test_a_task_without_an_oracle_is_not_labelled() -> None:
    result = await run_search_async(Puzzle({}), Distinct(binary(1), {}), budget=Budget(tokens=50), oracle=True)
    assert not result.oracle
