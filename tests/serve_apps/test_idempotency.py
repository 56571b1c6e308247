from __future__ import annotations

import pytest

from serve_apps import idempotency
from serve_apps.errors import HttpError
from serve_apps.idempotency import ReplayBook


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
