from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pool_policy import Grow, Observation, PoolOptions, PoolPolicy, Shrink
from dendrite.errors import InvalidArgument

OPTIONS = PoolOptions(1, 3, delay_s=1.0, grow_after_s=5.0, shrink_after_s=20.0, cooldown_s=10.0)


def seen(workers: int, delay_s: float = 0.0, idle: tuple[int, ...] = ()) -> Observation:
    return Observation(range(workers), idle, delay_s)


def test_it_grows_where_calls_have_waited_for_long() -> None:
    policy = PoolPolicy(OPTIONS)
    assert [policy.decide(now, seen(1, 2.0)) for now in (0, 3, 4.9)] == [None] * 3
    assert policy.decide(5.0, seen(1, 2.0)) == Grow()


def test_a_moment_without_waiting_begins_the_time_anew() -> None:
    policy = PoolPolicy(OPTIONS)
    assert policy.decide(0.0, seen(1, 2.0)) is None
    assert policy.decide(4.0, seen(1, 1.0)) is None  # as long as is allowed
    assert policy.decide(5.0, seen(1, 2.0)) is None
    assert policy.decide(9.9, seen(1, 2.0)) is None
    assert policy.decide(10.0, seen(1, 2.0)) == Grow()


def test_it_waits_for_the_effect_of_a_change() -> None:
    policy = PoolPolicy(OPTIONS)
    policy.decide(0.0, seen(1, 2.0))
    assert policy.decide(5.0, seen(1, 2.0)) == Grow()
    assert [policy.decide(now, seen(2, 2.0)) for now in (6.0, 10.0, 14.9)] == [None] * 3
    assert policy.decide(15.0, seen(2, 2.0)) == Grow()
    assert [policy.decide(float(now), seen(3, 9.0)) for now in range(16, 99)] == [None] * 83


def test_it_takes_away_the_worker_that_has_been_idle_longest() -> None:
    policy = PoolPolicy(OPTIONS)
    assert policy.decide(0.0, seen(3, idle=(1,))) is None
    assert policy.decide(1.0, seen(3, idle=(1, 2))) is None
    assert policy.decide(20.0, seen(3, idle=(1, 2))) == Shrink(1)
    assert policy.decide(29.0, Observation({0, 2}, {2}, 0.0)) is None
    assert policy.decide(30.0, Observation({0, 2}, {2}, 0.0)) == Shrink(2)
    assert policy.decide(99.0, Observation({0}, {0}, 0.0)) is None


def test_a_call_in_between_keeps_a_worker() -> None:
    policy = PoolPolicy(OPTIONS)
    policy.decide(0.0, seen(2, idle=(1,)))
    policy.decide(10.0, seen(2))
    assert policy.decide(25.0, seen(2, idle=(1,))) is None
    assert policy.decide(45.0, seen(2, idle=(1,))) == Shrink(1)


def test_it_does_not_shrink_while_calls_wait() -> None:
    policy = PoolPolicy(PoolOptions(1, 3, delay_s=1.0, grow_after_s=100.0, shrink_after_s=5.0, cooldown_s=0.0))
    assert [policy.decide(float(now), seen(3, 2.0, idle=(2,))) for now in range(50)] == [None] * 50


def test_a_lost_worker_is_replaced_at_once() -> None:
    policy = PoolPolicy(PoolOptions(2, 3))
    assert policy.decide(0.0, seen(1)) == Grow()
    assert policy.decide(0.1, seen(1)) == Grow()


@given(
    bounds=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    times=st.lists(
        st.tuples(
            st.floats(0.1, 4.0), st.sampled_from([0.0, 0.9, 1.1, 5.0]), st.sets(st.integers(0, 9)), st.booleans()
        ),
        max_size=80,
    ),
)
def test_the_pool_stays_within_its_bounds(
    bounds: tuple[int, int], times: list[tuple[float, float, set[int], bool]]
) -> None:
    least, most = bounds[0], sum(bounds)
    options = PoolOptions(least, most, delay_s=1.0, grow_after_s=3.0, shrink_after_s=6.0, cooldown_s=5.0)
    policy, workers, unused = PoolPolicy(options), set(range(least)), least
    now, changed = 0.0, -options.cooldown_s
    history: list[tuple[float, float, set[int]]] = []
    for pause, delay_s, idle, dies in times:
        now += pause
        if dies and len(workers) > 1:
            workers.remove(max(workers))
        history.append((now, delay_s, idle & workers))
        lacking = len(workers) < least
        decision = policy.decide(now, Observation(frozenset(workers), idle, delay_s))
        if decision is None:
            assert not lacking
            continue
        if not lacking:
            assert now - changed >= options.cooldown_s
        if isinstance(decision, Grow):
            assert lacking or all(d > 1.0 for at, d, _ in history if at >= now - options.grow_after_s)
            workers.add(unused)
            unused += 1
        else:
            assert not delay_s > options.delay_s
            assert all(decision.worker in free for at, _, free in history if at >= now - options.shrink_after_s)
            workers.remove(decision.worker)
        changed = now
        assert 1 <= len(workers) <= most
        if not lacking:
            assert len(workers) >= least


def test_bad_options_are_refused() -> None:
    wrong: dict[str, Any]
    for wrong in (
        {"min_workers": 0},
        {"max_workers": 10**6},
        {"min_workers": 1.5},
        {"delay_s": 0},
        {"cooldown_s": -1},
        {"period_s": float("nan")},
        {"place_timeout_s": 0},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            PoolOptions(**{"min_workers": 1, "max_workers": 2, **wrong})
    with pytest.raises(InvalidArgument, match="at least min_workers=3"):
        PoolOptions(3, 2)
