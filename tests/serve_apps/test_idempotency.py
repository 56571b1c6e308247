from __future__ import annotations

import asyncio

import pytest

from serve_apps import idempotency
from serve_apps.errors import HttpError
from serve_apps.idempotency import ReplayBook, once
from serve_apps.schemas import Deleted


async def test_an_answer_is_kept_for_a_time() -> None:
    now = [0.0]
    book = ReplayBook(60.0, clock=lambda: now[0])
    assert await book.begin("me", "key", "print") is None
    await book.end("me", "key", "answer")
    now[0] = 59.0
    assert await book.begin("me", "key", "print") == "answer"
    assert await book.begin("you", "key", "print") is None
    with pytest.raises(HttpError, match="another request"):
        await book.begin("me", "key", "other")
    now[0] = 60.0
    assert await book.begin("me", "key", "print") is None


async def test_the_oldest_answers_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MOST", 5)
    book = ReplayBook(60.0)
    for number in range(20):
        await book.begin("me", str(number), "print")
        await book.end("me", str(number), "answer")
    assert len(book._kept) == 5
    assert await book.begin("me", "19", "print") == "answer"


async def test_an_answer_is_given_again_where_no_more_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MOST", 1)
    book = ReplayBook(60.0)
    await book.begin("me", "key", "print")
    await book.end("me", "key", "answer")
    assert await book.begin("me", "key", "print") == "answer"


class Distant(ReplayBook):
    """A book that a message has to reach, and its answer to come back from."""

    async def begin(self, owner: str, key: str, fingerprint: str) -> str | None:
        await asyncio.sleep(0)
        known = await super().begin(owner, key, fingerprint)
        await asyncio.sleep(0)
        return known

    async def end(self, owner: str, key: str, answer: str) -> None:
        await asyncio.sleep(0)
        await super().end(owner, key, answer)
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(12))
async def test_a_key_is_free_or_answered_whenever_the_first_caller_was_cancelled(turns: int) -> None:
    book, done = Distant(60.0), 0

    async def do() -> Deleted:
        nonlocal done
        await asyncio.sleep(0)
        done += 1
        return Deleted(id=str(done), object="x")

    async def ask() -> Deleted:
        return await once(book, "me", "key", "what", Deleted(id="a", object="b"), Deleted, do)

    first = asyncio.create_task(ask())
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    async with asyncio.timeout(30.0):
        while (await asyncio.gather(ask(), return_exceptions=True))[0].__class__ is HttpError:
            await asyncio.sleep(0)  # what was begun with is going on
    assert (await ask()).id == str(done) == "1"


async def test_a_request_that_fails_may_be_tried_again() -> None:
    book = ReplayBook(60.0)

    async def fail() -> Deleted:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await once(book, "me", "key", "what", Deleted(id="a", object="b"), Deleted, fail)
    await book.begin("me", "key", "print")
    with pytest.raises(HttpError, match="another"):
        await once(book, "me", "key", "what", Deleted(id="a", object="b"), Deleted, fail)
    with pytest.raises(HttpError, match="under way"):
        await book.begin("me", "key", "print")
