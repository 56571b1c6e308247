from __future__ import annotations

from collections.abc import Iterator

import pytest

from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.search.tasks.countdown import Countdown
from serve_apps import search_host
from serve_apps.errors import HttpError
from serve_apps.ledger import Ledger
from serve_apps.search_host import SearchHost
from serve_apps.search_schemas import BudgetSpec, SearchPlan

SHORT = SearchPlan(algorithm="best_of_n", budget=BudgetSpec(tokens=40))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=4_096) as engine:
        yield engine


async def search(host: SearchHost) -> str:
    started = await host.start("me", Countdown((1, 2, 3), 6), SHORT)
    assert (await host.wait("me", started.id)).status == "finished"
    return started.id


async def test_a_search_can_be_looked_at_for_a_time(engine: Engine) -> None:
    now = [0.0]
    host = SearchHost(AsyncEngine(engine), Ledger({}), 60.0, clock=lambda: now[0])
    id = await search(host)
    now[0] = 60.0
    assert (await host.view("me", id)).status == "finished"
    now[0] = 61.0
    with pytest.raises(HttpError, match="no search"):
        await host.view("me", id)
    assert host._searches == {}


async def test_only_so_many_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_host, "MOST_ENDED", 2)
    host = SearchHost(AsyncEngine(engine), Ledger({}), 60.0)
    ids = [await search(host) for _ in range(4)]
    for id in ids[2:]:
        assert (await host.view("me", id)).status == "finished"
    for id in ids[:2]:
        with pytest.raises(HttpError, match="no search"):
            await host.view("me", id)
