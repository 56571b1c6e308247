"""Accounts: what is held never passes a limit, and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.errors import HttpError
from serve_apps.ledger import Bucket, KeyLimits, Ledger


@given(st.lists(st.tuples(st.sampled_from(["hold", "free"]), st.integers(1, 60)), max_size=40))
def test_what_is_held_stays_within_the_limit(steps: list[tuple[str, int]]) -> None:
    ledger, held = Ledger({"a": KeyLimits(kv_bytes=100)}), []
    for what, amount in steps:
        if what == "free":
            if held:
                ledger.free("a", kv_bytes=held.pop())
            continue
        if sum(held) + amount <= 100:
            ledger.hold("a", kv_bytes=amount)
            held.append(amount)
        else:
            with pytest.raises(HttpError, match="kv_bytes"):
                ledger.hold("a", kv_bytes=amount)
        assert ledger.held("a")["kv_bytes"] == sum(held)
        assert ledger.room("a", "kv_bytes") == 100 - sum(held)
    assert ledger.room("b", "kv_bytes") is None


def test_nothing_is_taken_where_one_of_two_does_not_fit() -> None:
    ledger = Ledger({"a": KeyLimits(kv_bytes=100, concurrent_trees=1)})
    with pytest.raises(HttpError, match="kv_bytes"):
        ledger.hold("a", concurrent_trees=1, kv_bytes=101)
    assert ledger.held("a")["concurrent_trees"] == 0


@given(st.integers(1, 1_000), st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 50)), max_size=60))
def test_a_bucket_gives_no_more_than_its_rate(per_minute: int, asked: list[tuple[float, int]]) -> None:
    bucket, now, given_out = Bucket(per_minute, 0.0), 0.0, 0
    for pause, amount in asked:
        now += pause
        wait = bucket.wait(now, amount)
        if wait == 0.0:
            bucket.spend(amount)
            given_out += amount
        elif amount <= per_minute:
            assert bucket.wait(now + wait + 1e-6, amount) == 0.0
            now += wait + 1e-6
        assert given_out <= per_minute + now * per_minute / 60.0 + 1e-6


async def test_tokens_may_be_overdrawn_once_and_are_paid_back_by_waiting() -> None:
    time = [0.0]
    ledger = Ledger({"a": KeyLimits(tokens_per_minute=60)}, clock=lambda: time[0])
    await ledger.admit("a")
    await ledger.settle("a", 0, 100)
    with pytest.raises(HttpError) as caught:
        await ledger.admit("a")
    assert caught.value.retry_after_s == pytest.approx(41.0)
    time[0] = 41.0
    await ledger.admit("a")
