from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument
from dendrite.search import Budget, run_search
from dendrite.search.level import grow, leaves, places, value_of
from dendrite.search.session import Flights, Landing, Session, Thought
from dendrite.search.tasks.countdown import Countdown
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary

SMALL: dict[str, dict[str, int]] = {
    "self_consistency": {"n": 8},
    "particle_filter": {"n": 8},
    "tot_bfs": {"b": 3, "k": 3},
    "tot_dfs": {},
}
"""Options with which three lines fit 400 tokens."""


@dataclass(eq=False)
class Spot:
    thought: Thought
    path: tuple[int, ...] = ()
    children: list[Spot] = field(default_factory=list)
    expansions: int = 0


def take(landing: Landing[Spot]) -> bool:
    spot = landing.owner
    for thought in landing.thoughts:
        spot.children.append(Spot(thought, (*spot.path, len(spot.children))))
    return any(thought.solved for thought in landing.thoughts)


def wanted(spot: Spot) -> int:
    return 4 - len(spot.children)


async def level(backend: TreeBackend, budget: Budget, rewards: dict[str, float] | None = None) -> tuple[Spot, bool]:
    """Grow the root's four children, then four below each; tells whether that was done."""
    session = Session(Puzzle(rewards or {}), backend, budget, 0)
    await session.open()
    root = Spot(session.root)
    try:
        async with Flights[Spot](session, 1.0) as flights:
            whole = await grow(session, [root], flights, wanted, take)
            return root, whole and await grow(session, root.children, flights, wanted, take)
    finally:
        await session.close()


async def test_a_level_is_one_batch() -> None:
    backend = TreeBackend(binary(2), {})
    root, whole = await level(backend, Budget(tokens=1000))
    assert whole
    assert [(n, params.seed is not None) for _, n, params in backend.calls] == [(4, True)] * 5
    assert backend.most_running == 16
    assert [place.path for place in places(root)][:3] == [(), (0,), (0, 0)]
    assert [thought.depth for thought in leaves(root)] == [2] * 16


@pytest.mark.parametrize("tokens", [1, 8, 17, 31, 37])
async def test_a_level_cut_short_by_the_budget_says_so(tokens: int) -> None:
    backend = TreeBackend(binary(2), {})
    root, whole = await level(backend, Budget(tokens=tokens))
    assert not whole
    assert backend.decoded == tokens
    assert sum(1 for _ in places(root)) > 1


async def test_what_did_not_fit_at_first_is_drawn_when_there_is_room() -> None:
    """A thought may take 8 tokens, so that 40 admit 5 at a time, but takes 2: all 20 are drawn in the end."""
    backend = TreeBackend(binary(2), {})
    root, whole = await level(backend, Budget(tokens=48))
    assert whole
    assert [len(child.children) for child in root.children] == [4] * 4
    assert len(backend.calls) > 5
    seeds = [params.seed for _, _, params in backend.calls]
    assert len(set(seeds)) == len(seeds)


async def test_a_solution_ends_the_level() -> None:
    backend = TreeBackend(binary(2), {})
    _, whole = await level(backend, Budget(tokens=1000), {"a\n": 1.0})
    assert not whole
    assert (len(backend.calls), backend.held, backend.running) == (1, [], 0)


def test_a_value_that_is_not_there_is_asked_for_by_name() -> None:
    assert value_of(Thought("", value=0.0), "tot_bfs") == 0.0
    with pytest.raises(InvalidArgument, match="algorithm='tot_bfs': goes by values"):
        value_of(Thought(""), "tot_bfs")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384, debug_checks=True) as engine:
        yield engine


def untimed(result: Any) -> dict[str, Any]:
    return {**result.to_dict(), "seconds": 0.0}


@pytest.mark.parametrize("algorithm", list(SMALL))
def test_a_search_on_the_engine_solves_replays_and_leaves_nothing(engine: Engine, algorithm: str) -> None:
    task = Countdown((9, 40, 71, 72), target=174)
    result = run_search(task, engine, algorithm, Budget(tokens=400), 1, **SMALL[algorithm])
    assert (result.solved, task.reward(result.text)) == (True, 1.0)
    assert result.tokens <= 400
    hopeless = Countdown((2, 4, 6, 8), target=999)
    runs = [run_search(hopeless, engine, algorithm, Budget(tokens=80), seed) for seed in (3, 3, 4)]
    assert untimed(runs[0]) == untimed(runs[1])
    assert untimed(runs[0]) != untimed(runs[2])
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    assert (stats.recomputed_tokens, stats.retips, stats.preemptions) == (0, 0, 0)
    engine.check()
