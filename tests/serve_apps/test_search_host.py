from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import DendriteError, OutOfPages
from dendrite.search.backend import Branch, NodeRef
from dendrite.search.task import Task
from dendrite.search.tasks.countdown import Countdown
from serve_apps import search_host
from serve_apps.errors import HttpError
from serve_apps.ledger import KeyLimits, Ledger
from serve_apps.search_host import SearchHost
from serve_apps.search_schemas import BranchRequest, BudgetSpec, SearchPlan, SearchView
from serve_apps.search_service import begin, outcome

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


async def test_a_search_that_is_cancelled_before_it_begins_gives_all_back(engine: Engine) -> None:
    ledger = Ledger({"me": KeyLimits(kv_bytes=10**9)})
    host = SearchHost(AsyncEngine(engine), ledger, 60.0)
    started = await host.start("me", Countdown((1, 2, 3), 6), SHORT)
    assert ledger.held("me") == {"kv_bytes": 10**9, "pinned_bytes": 0, "concurrent_trees": 1}
    with pytest.raises(HttpError, match="kv_bytes: the key holds all it may"):
        await host.start("me", Countdown((1, 2, 3), 6), SHORT)
    assert (await host.cancel("me", started.id)).status == "cancelled"
    assert ledger.held("me") == {"kv_bytes": 0, "pinned_bytes": 0, "concurrent_trees": 0}
    page = await host.read("me", started.id, 0, 30.0)
    assert page.ended
    assert [event["event"] for _, event in page.events] == ["stopped"]


class Failing(AsyncEngine):
    """A backend that breaks at its first expansion, in a way that nobody foresaw, or as a worker that is lost does."""

    error: DendriteError | None = None

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        if self.error is None:
            raise RuntimeError("secret")
        return [replace(each, tokens=(), error=self.error) for each in await super().expand(node, n, params)]


async def test_a_search_that_fails_says_so_and_the_log_says_why(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    host = SearchHost(Failing(engine), Ledger({}), 60.0)
    started = await host.start("me", Countdown((1, 2, 3), 6), SHORT)
    view = await host.wait("me", started.id)
    assert view.status == "failed"
    assert view.error is not None
    assert "secret" not in view.error
    assert started.id in caplog.text
    assert "secret" in caplog.text
    assert engine.stats().pages_held == 0


@pytest.mark.parametrize("error", [None, OutOfPages(3, 1)])
async def test_a_branch_by_hand_that_fails_ends_in_the_log_too(engine: Engine, error: DendriteError | None) -> None:
    backend = Failing(engine)
    host = SearchHost(backend, Ledger({}), 60.0)
    started = await host.start("me", Countdown((1, 2, 3), 6), SHORT)
    await host.wait("me", started.id)
    backend.error = error
    with pytest.raises(RuntimeError if error is None else OutOfPages):
        await host.branch("me", started.id, 0, BranchRequest(n=2))
    page = await host.read("me", started.id, 0, 30.0)
    assert page.ended
    assert [event["event"] for _, event in page.events][-2:] == ["expand", "cancelled"]
    await asyncio.sleep(0)
    assert engine.stats().pages_held == 0


async def test_whoever_waits_and_is_cancelled_takes_the_search_along(engine: Engine) -> None:
    host = SearchHost(AsyncEngine(engine), Ledger({}), 60.0)
    started = await host.start("me", Countdown((1, 1, 1), 999), SearchPlan(budget=BudgetSpec(tokens=1_000_000)))
    waiting = asyncio.create_task(outcome(host, "me", started.id))
    await host.read("me", started.id, 0, 30.0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await host.view("me", started.id)).status == "cancelled"


class Slow(SearchHost):
    """Says late that a search has begun."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(AsyncEngine(engine), Ledger({}), 60.0)
        self.begun: list[str] = []

    async def start(self, owner: str, task: Task, plan: SearchPlan) -> SearchView:
        started = await super().start(owner, task, plan)
        self.begun.append(started.id)
        await asyncio.sleep(0.05)
        return started


async def test_whoever_begins_a_search_and_is_cancelled_meanwhile_takes_it_along(engine: Engine) -> None:
    host = Slow(engine)
    plan = SearchPlan(budget=BudgetSpec(tokens=1_000_000))
    beginning = asyncio.create_task(begin(host, "me", Countdown((1, 1, 1), 999), plan))
    while not host.begun:
        await asyncio.sleep(0)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert (await host.view("me", host.begun[0])).status == "cancelled"


async def test_whoever_begins_a_search_that_is_refused_and_is_cancelled_meanwhile_is_cancelled(engine: Engine) -> None:
    host = SearchHost(AsyncEngine(engine), Ledger({}), 60.0)
    beginning = asyncio.create_task(begin(host, "me", Countdown((1, 2, 3), 6), SearchPlan(algorithm="none")))
    await asyncio.sleep(0)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
