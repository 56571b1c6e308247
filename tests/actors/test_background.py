from __future__ import annotations

import asyncio
import logging

import pytest

from actors.background import Background
from actors.rpc import ActorLost


async def raising(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_all_that_was_begun_is_waited_for() -> None:
    background, go, ended = Background(), asyncio.Event(), list[int]()

    async def work(number: int) -> None:
        await go.wait()
        ended.append(number)
        if number < 3:
            background.start(work(number + 3))

    for number in range(3):
        background.start(work(number))
    go.set()
    await background.settle()
    assert sorted(ended) == [0, 1, 2, 3, 4, 5]


async def test_an_error_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    background = Background()
    with caplog.at_level(logging.WARNING, logger="dendrite.cluster"):
        background.start(raising(ValueError("odd")))
        background.start(raising(ActorLost("worker 1", permanent=True)))
        await background.settle()
    assert [record.getMessage() for record in caplog.records] == ["event=background_failed kind=ValueError: odd"]
