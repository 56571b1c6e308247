"""The engine's totals: of now where it answers, of before where it does not, and its errors."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from actors import engine_gauge
from actors.engine_gauge import EngineGauge
from dendrite.engine.engine import Engine
from dendrite.engine.stats import EngineStats


@pytest.fixture
def first(tiny_model: Path) -> EngineStats:
    with Engine.from_pretrained(tiny_model, device="cpu") as engine:
        return engine.stats()


async def test_what_is_not_answered_in_time_is_answered_later(
    first: EngineStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_gauge, "PATIENCE_S", 0.05)
    free, forks = asyncio.Event(), 0

    async def ask() -> EngineStats:
        await free.wait()
        return dataclasses.replace(first, forks=forks)

    gauge = EngineGauge(ask, first)
    old = await gauge.read()
    assert old.stats == first
    assert old.age_s >= 0.05
    assert gauge.silent_s >= 0.05
    forks = 3
    free.set()
    assert (await gauge.read()) == (dataclasses.replace(first, forks=3), 0.0)
    assert gauge.silent_s == 0.0


async def test_the_engine_s_error_is_raised(first: EngineStats) -> None:
    async def ask() -> EngineStats:
        raise RuntimeError("out of memory")

    gauge = EngineGauge(ask, first)
    with pytest.raises(RuntimeError, match="out of memory"):
        await gauge.read()
    assert gauge.silent_s == 0.0
