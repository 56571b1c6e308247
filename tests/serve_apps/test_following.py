from __future__ import annotations

import pytest

from dendrite.errors import LeaseExpired
from serve_apps import following
from serve_apps.events import EventLog, Page
from serve_apps.following import follow
from serve_apps.sse import PING


async def test_events_come_with_their_ids_and_the_end_is_told() -> None:
    log = EventLog()
    for number in range(3):
        log.add({"event": "a", "n": number})
    log.end()
    told = b"".join([chunk async for chunk in follow(log.read, 1)]).decode()
    assert [line for line in told.splitlines() if line.startswith("id")] == ["id: 2", "id: 3"]
    assert told.endswith('event: end\ndata: {"after": 3}\n\n')


async def test_a_log_without_news_is_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_WAIT_S", 0.0)
    stream = follow(EventLog().read, 0)
    assert [await anext(stream), await anext(stream)] == [PING, PING]
    await stream.aclose()


async def test_a_log_that_is_lost_stops_without_an_end() -> None:
    async def read(after: int, wait_s: float) -> Page:
        if after:
            raise LeaseExpired(3)
        return Page([(1, {"event": "a"})])

    assert len([chunk async for chunk in follow(read, 0)]) == 1


async def test_a_log_that_goes_on_after_its_end_has_events_again() -> None:
    log = EventLog()
    log.end()
    log.reopen()
    assert await log.read(0, 0.0) == Page()
    log.add({"event": "a"})
    assert await log.read(0, 0.0) == Page([(1, {"event": "a"})])
