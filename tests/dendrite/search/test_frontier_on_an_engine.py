"""The searches that keep a frontier, with the packaged model: what they find and what they leave behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.search import Budget, run_search_async
from dendrite.search.tasks.countdown import problems

TASKS = problems(10, seed=1, split="validation")
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"width": 3},
    "dvts": {"branches": 3},
    "rebase": {"width": 12},
}


@pytest.mark.slow
async def test_they_solve_more_of_countdown_than_greedy_decoding_and_leave_nothing_behind() -> None:
    """All searches of all problems are one batch."""
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=32_768) as engine:
        backend = AsyncEngine(engine)
        results = await asyncio.gather(
            *(
                run_search_async(task, backend, algorithm, Budget(tokens=800), 0, **options)
                for algorithm, options in SEARCHES.items()
                for task in TASKS
            )
        )
        await backend.aclose()
        stats = engine.stats()
        engine.check()
    solved = dict.fromkeys(SEARCHES, 0)
    for result, task in zip(results, TASKS * len(SEARCHES), strict=True):
        assert result.solved == (task.reward(result.text) == 1.0), "by the task's rule"
        assert result.tokens <= 800
        solved[result.algorithm] += result.solved
    assert all(solved[name] > solved["greedy"] for name in ("beam", "dvts", "rebase")), solved
    assert (stats.pages_held, stats.running, stats.waiting) == (0, 0, 0)
    assert (stats.recomputed_tokens, stats.retips, stats.preemptions) == (0, 0, 0)
