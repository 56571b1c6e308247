from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.budget import Budget, Grant, Meter, Rates


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"tokens": 0},
        {"tokens": -5},
        {"tokens": 1.5},
        {"tokens": True},
        {"expansions": 0},
        {"reward_calls": 0},
        {"tokens": 5, "kv_bytes": 0},
        {"kv_bytes": 1000},
        {"seconds": 0},
        {"seconds": math.inf},
        {"seconds": math.nan},
        {"seconds": "3"},
    ],
)
def test_a_budget_needs_a_positive_limit(limits: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="budget"):
        Budget(**limits)  # type: ignore[arg-type]


def test_tokens_in_flight_count_in_full_until_they_return() -> None:
    meter = Meter(Budget(tokens=100))
    first = meter.grant(4, 20)
    assert first == Grant(4, 20)
    assert meter.grant(1, 21) is None, "20 are left, but what is in flight may give room back"
    assert meter.grant(3, 20) == Grant(1, 20)
    meter.settle(first, 30)
    assert (meter.tokens, meter.expansions) == (30, 1)
    assert meter.grant(9, 20) == Grant(2, 20)


def test_the_last_tokens_go_to_one_short_child() -> None:
    meter = Meter(Budget(tokens=7))
    grant = meter.grant(4, 20)
    assert grant == Grant(1, 7)
    meter.settle(grant, 7)
    assert meter.spent == "tokens"
    assert meter.grant(1, 1) is None


def test_expansions_in_flight_count() -> None:
    meter = Meter(Budget(expansions=2))
    grants = [meter.grant(4, 20), meter.grant(4, 20), meter.grant(4, 20)]
    assert grants == [Grant(4, 20), Grant(4, 20), None]
    assert meter.spent is None
    meter.cancel(Grant(4, 20))
    meter.settle(Grant(4, 20), 1)
    assert meter.grant(1, 1) is not None
    meter.settle(Grant(1, 1), 1)
    assert meter.spent == "expansions"


def test_seconds_are_read_from_the_clock() -> None:
    now = [5.0]
    meter = Meter(Budget(seconds=2.0), clock=lambda: now[0])
    assert meter.grant(1, 1) is not None
    now[0] = 7.0
    assert (meter.seconds, meter.spent) == (2.0, "seconds")
    assert meter.grant(1, 1) is None


@given(
    limit=st.integers(1, 300),
    asks=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.booleans()), max_size=60),
)
def test_no_order_of_grants_and_returns_passes_the_limit(limit: int, asks: list[tuple[int, int, float, bool]]) -> None:
    meter = Meter(Budget(tokens=limit))
    flying: list[Grant] = []
    for children, tokens, share, land in asks:
        grant = meter.grant(children, tokens)
        if grant is not None:
            assert grant.children <= children
            assert grant.tokens <= tokens
            flying.append(grant)
        assert meter.tokens + sum(g.children * g.tokens for g in flying) <= limit
        if flying and land:
            done = flying.pop(0)
            meter.settle(done, int(done.children * done.tokens * share))
    for grant in flying:
        meter.cancel(grant)
    left = limit - meter.tokens
    last = meter.grant(1, limit)
    assert last == (Grant(1, left) if left else None), "all reservations have been given back"


def test_reward_calls_in_flight_count() -> None:
    meter = Meter(Budget(reward_calls=10))
    meter.judged = True
    first = meter.grant(8, 20)
    assert first == Grant(8, 20, reward_calls=8)
    assert meter.grant(8, 20) == Grant(2, 20, reward_calls=2)
    assert meter.grant(1, 20) is None
    meter.settle(first, 100, reward_calls=3)
    assert meter.grant(8, 20) == Grant(5, 20, reward_calls=5)
    assert meter.spent is None
    meter.settle(Grant(2, 20, reward_calls=2), 10, reward_calls=2)
    meter.settle(Grant(5, 20, reward_calls=5), 10, reward_calls=5)
    assert meter.spent == "reward_calls"


def test_kv_is_reserved_by_the_page_and_comes_back() -> None:
    meter = Meter(Budget(tokens=10_000, kv_bytes=1_000))
    meter.rates = Rates(page_tokens=16, page_bytes=100)
    meter.kv_bytes = 200
    assert meter.grant(8, 17) == Grant(2, 17, kv_bytes=600), "two pages, and perhaps a copy of the tail"
    assert meter.over_memory(17)
    assert not meter.over_memory(16)
    assert meter.grant(1, 17) is None
    meter.settle(Grant(2, 17, kv_bytes=600), 20)
    meter.kv_bytes = 500
    assert meter.spent is None
    assert meter.grant(8, 17) == Grant(1, 17, kv_bytes=300)


def test_what_is_cancelled_while_the_search_goes_on_is_spent_in_full() -> None:
    meter = Meter(Budget(tokens=100, expansions=3))
    first, second = meter.grant(2, 20), meter.grant(2, 20)
    assert first is not None
    assert second is not None
    meter.forfeit(first)
    meter.settle(second, 10)
    assert (meter.tokens, meter.expansions, meter.spent) == (10, 1, None)
    assert meter.grant(9, 20) == Grant(2, 20)
    assert meter.grant(1, 1) is None
    meter.forfeit(Grant(2, 20))
    assert meter.spent == "expansions"
