from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.simulate.shards import Couriers, Shards
from dendrite.simulate.tally import Tally

ALL = np.array([0], np.intp)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_messages_that_come_at_random_wait_as_in_an_m_d_1_queue(load: float) -> None:
    service_s, messages = 0.001, 40_000
    shards = Shards(1, service_s, 0.0)
    for now in np.cumsum(np.random.default_rng(3).exponential(service_s / load, messages)).tolist():
        shards.take(now, ALL, np.array([1]))
    assert shards.waits.count == messages
    assert shards.waits.mean_s == pytest.approx(load / (1 - load) * service_s / 2, rel=0.1)


def test_a_question_waits_behind_messages_and_they_behind_it() -> None:
    shards = Shards(2, 1.0, 0.5)
    assert shards.take(0.0, np.array([0, 1]), np.array([2, 4])).tolist() == [2.0, 3.0]
    assert shards.ask(1.0, 0) == 3.0
    assert shards.take(1.0, np.array([0]), np.array([0])).tolist() == [4.0]
    assert shards.busy_s(4.0).tolist() == [4.0, 3.0]
    assert shards.busy_s(2.0).tolist() == [2.0, 2.0]
    shards.forget(2.0)
    assert shards.busy_s(4.0).tolist() == [2.0, 1.0]


def test_a_courier_gathers_while_its_shard_is_slow() -> None:
    lags = Tally()
    shards = Shards(1, 10.0, 0.0)
    courier = Couriers(shards, 0.0, lags, Tally())
    for now in range(10):
        courier.put(float(now), np.array([3]))
    assert (shards.messages.tolist(), shards.events.tolist(), courier.waiting.tolist()) == ([1], [3], [27])
    courier.put(10.0, np.array([0]))
    assert (shards.messages.tolist(), shards.events.tolist(), courier.waiting.tolist()) == ([2], [30], [0])
    assert [courier.untold(now).tolist() for now in (10.0, 19.9, 20.0)] == [[27], [27], [0]]
    assert lags.most_s == 19.0  # from the event at 1 to the end of the second message at 20


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.lists(st.integers(0, 9), min_size=3, max_size=3)), max_size=40))
def test_no_event_is_lost_or_told_twice(puts: list[tuple[float, list[int]]]) -> None:
    shards = Shards(3, 0.3, 0.1)
    lead_lags, lags = Tally(), Tally()
    courier = Couriers(shards, 0.2, lead_lags, lags)
    now, happened = 0.0, np.zeros(3, np.int64)
    for pause, events in puts:
        now += pause
        happened += np.array(events)
        courier.put(now, np.array(events))
        assert ((shards.events + courier.waiting) == happened).all()
        assert (courier.waiting >= 0).all()
    assert (courier.untold(now + 1e6) == courier.waiting).all()
    assert (lead_lags.count, lags.count) == (shards.messages[0], shards.messages[1:].sum())


@given(st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_quantiles_are_close(values: list[float], share: float) -> None:
    tally = Tally()
    tally.add_all(np.array(values[1:] or values[:1]))
    if len(values) > 1:
        tally.add(values[0])
    exact = sorted(values)[int(np.ceil(share * len(values))) - 1]
    assert exact * 0.999 <= tally.quantile_s(share) <= max(exact, 1e-7) * 1.06
    assert tally.mean_s == pytest.approx(sum(values) / len(values))
