"""Monte Carlo tree search in all its modes with the packaged model: it replays, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dendrite.engine.engine import Engine
from dendrite.search import Budget, SearchResult, run_search
from dendrite.search.tasks.countdown import Countdown, problems

HOPELESS = Countdown((2, 4, 6, 8), target=999)
"""The sum, difference, product and quotient of even numbers that the model writes are far from it."""
FAST: list[dict[str, Any]] = [
    {"mode": "root", "trees": 3, "parallel": "virtual_loss"},
    {"commit": 3, "widening_k": 2},
    {"root": "gumbel", "simulations": 4, "considered": 4, "selection": "improved_policy"},
]
SLOW: list[dict[str, Any]] = [
    {"mode": "leaf", "rollouts": 3, "discount": 0.9},
    {"mode": "leaf", "rollouts": 3, "value": "rollout", "commit": 6},
    {"selection": "epsilon_greedy", "epsilon": 0.3, "parallel": "none"},
    {"selection": "greedy", "parallel": "virtual_loss"},
    {"prune_below": 0.05, "prune_visits": 4},
    {"root": "gumbel", "simulations": 6, "mode": "leaf", "value": "rollout", "rollouts": 2},
    {"early_stop": True, "commit": 8, "widening_k": 2},
]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=16_384) as engine:
        yield engine


def check_left_behind(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    assert (stats.recomputed_tokens, stats.preemptions) == (0, 0)
    engine.check()


def check_replays(engine: Engine, options: dict[str, Any]) -> None:
    runs: list[SearchResult] = []
    for _ in range(2):
        runs.append(run_search(HOPELESS, engine, "mcts", Budget(tokens=160), 3, in_flight=16, **options))
        check_left_behind(engine)
    first, again = ({**run.to_dict(), "seconds": 0.0} for run in runs)
    assert first == again
    assert runs[0].expansions > 3


@pytest.mark.parametrize("options", FAST, ids=str)
def test_a_mode_replays_with_16_in_flight(engine: Engine, options: dict[str, Any]) -> None:
    check_replays(engine, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", SLOW, ids=str)
def test_another_mode_replays_with_16_in_flight(engine: Engine, options: dict[str, Any]) -> None:
    check_replays(engine, options)


def test_a_search_goes_on_in_little_memory(engine: Engine) -> None:
    """Room for one expansion and a few nodes: the least valuable are given up, one after another."""
    page = engine.stats().page_bytes
    budget = Budget(tokens=160, kv_bytes=14 * page)
    result = run_search(HOPELESS, engine, "mcts", budget, 3, in_flight=2, widening_k=2)
    assert (result.stop_reason, result.tokens) == ("tokens", 160)
    check_left_behind(engine)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *FAST, *SLOW], ids=str)
def test_problems_are_solved_in_every_mode(engine: Engine, options: dict[str, Any]) -> None:
    tasks = problems(6, seed=5, split="validation")
    solved = [run_search(task, engine, "mcts", Budget(tokens=800), **options).solved for task in tasks]
    assert sum(solved) >= 3
    check_left_behind(engine)
