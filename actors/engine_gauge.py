"""The engine's totals for whoever asks, without a wait for the engine that may be long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from dendrite.engine.stats import EngineStats

PATIENCE_S = 0.5
"""The longest wait for an answer, which comes between two steps. After that the last answer has to do."""


class Reading(NamedTuple):
    """What the engine has told, and how many seconds ago."""

    stats: EngineStats
    age_s: float


class EngineGauge:
    """Asks the engine, and remembers its last answer."""

    def __init__(self, ask: Callable[[], Awaitable[EngineStats]], first: EngineStats) -> None:
        """Begin with what the engine says of itself before its first step."""
        self._ask = ask
        self._last, self._told = first, time.monotonic()
        self._open: dict[asyncio.Task[None], float] = {}  # questions and when they were asked, oldest first

    @property
    def silent_s(self) -> float:
        """How long the oldest question has gone unanswered."""
        return time.monotonic() - next(iter(self._open.values())) if self._open else 0.0

    async def read(self) -> Reading:
        """The engine's totals now, or if it is in the middle of a long step, those of before.

        Raises whatever the engine does.
        """
        question = asyncio.get_running_loop().create_task(self._question())
        self._open[question] = time.monotonic()
        question.add_done_callback(self._open.pop)
        done, _ = await asyncio.wait([question], timeout=PATIENCE_S)
        if done:
            question.result()
        return Reading(self._last, 0.0 if done else time.monotonic() - self._told)

    async def _question(self) -> None:
        stats = await self._ask()
        self._last, self._told = stats, time.monotonic()
