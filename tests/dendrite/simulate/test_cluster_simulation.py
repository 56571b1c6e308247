"""The simulation against what queueing theory says of small cases."""

from __future__ import annotations

import pytest

pytest.importorskip("simpy")

from dendrite.errors import InvalidArgument
from dendrite.simulate.cluster import Simulation
from dendrite.simulate.costs import Costs, StepTimes
from dendrite.simulate.report import Report
from dendrite.simulate.workload import Workload

STEP_S = 0.01
FREE = Costs(
    step=StepTimes((1, 1_000), (STEP_S, STEP_S)),
    event_s=0.0,
    message_s=0.0,
    call_s=0.0,
    round_trip_s=0.0,
    kv_bytes=1.0,
    transfer_bytes_s=1e9,
)
SMALL = {"children": 1, "tokens": 1, "prompt": 0, "prompts": 1, "cached_prompts": 0}


def run(workload: Workload, costs: Costs = FREE, seconds: float = 10.0, seed: int = 0) -> Report:
    return Simulation(workload, costs, seed).run(seconds, warm_up_s=2.0)


def costs(**others: float) -> Costs:
    values = {name: getattr(FREE, name) for name in Costs.__dataclass_fields__}
    return Costs(**{**values, **others})


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_a_worker_without_batching_is_an_m_d_1_queue(load: float) -> None:
    """Many searches with long pauses come as by Poisson's law: the mean wait is load / (1 - load) * service / 2."""
    places = 1_000
    pause_s = places * STEP_S / load
    workload = Workload(1, 1, places, expansions=1, pause_s=pause_s, max_rows=1, **SMALL)
    report = Simulation(workload, FREE, 1).run(300.0, warm_up_s=3 * pause_s)
    assert report.expansions_s == pytest.approx(load / STEP_S, rel=0.02)
    assert report.worker_load == pytest.approx(load, rel=0.02)
    assert report.wait_mean_s == pytest.approx(load / (1 - load) * STEP_S / 2, rel=0.1)


def test_searches_that_never_pause_keep_a_worker_at_work() -> None:
    report = run(Workload(1, 1, 5, expansions=3, max_rows=1, **SMALL))
    assert report.expansions_s == pytest.approx(1 / STEP_S, rel=0.01)
    assert report.wait_mean_s == pytest.approx(4 * STEP_S, rel=0.01)  # for the four others


def test_a_batch_takes_all_that_there_is_room_for() -> None:
    report = run(Workload(1, 1, 12, expansions=50, max_rows=4, **SMALL))
    assert report.expansions_s == pytest.approx(4 / STEP_S, rel=0.02)
    report = run(Workload(1, 1, 3, expansions=10**6, max_rows=4, **SMALL))
    assert report.expansions_s == pytest.approx(3 / STEP_S, rel=0.02)


def test_one_search_alone_waits_for_messages_only() -> None:
    """The law of a closed system: N / (think + service) while nobody waits."""
    report = run(Workload(2, 1, 1, expansions=40, max_rows=1, **SMALL), costs(round_trip_s=0.02))
    # After each expansion a round trip; the last one's is that of the placement.
    assert report.expansions_s == pytest.approx(1 / (STEP_S + 0.02), rel=0.02)
    assert report.wait_mean_s == 0.0


@pytest.mark.parametrize(("shards", "keeps_up"), [(1, False), (4, True)])
def test_events_are_more_than_a_shard_can_take_until_there_are_enough(shards: int, keeps_up: bool) -> None:
    """10 workers make 10 * 100 expansions a second of 2 events each; a shard takes 1000 events a second."""
    workload = Workload(10, shards, 200, expansions=50, max_rows=1, **SMALL)
    report = run(workload, costs(event_s=0.001))
    assert report.events_s == pytest.approx(2_000, rel=0.02)
    assert report.saturated != keeps_up
    if keeps_up:
        assert sum(report.shard_load) == pytest.approx(2.0, rel=0.05)
        assert report.untold_share < 0.01
    else:
        assert report.shard_load[0] == pytest.approx(1.0, rel=0.1)
        assert report.untold_share == pytest.approx(0.5, abs=0.1)


def test_slow_answers_make_larger_messages() -> None:
    """10 workers make 1000 messages a second if none waits; a shard that takes 300 gets more events in each."""
    report = run(Workload(10, 1, 200, expansions=50, max_rows=1, **SMALL), costs(message_s=1 / 300))
    assert report.events_of_message == pytest.approx(2_000 / 300, rel=0.1)
    assert not report.saturated


def test_a_prompt_is_computed_once_where_it_stays() -> None:
    workload = Workload(1, 1, 4, 5, children=1, tokens=1, prompt=100, prompts=1, cached_prompts=1, max_rows=1)
    report = run(workload)
    assert report.choices == {"prefix": 1.0, "transferred": 0.0, "computed": 0.0}
    forgetful = run(Workload(1, 1, 4, 5, children=1, tokens=1, prompt=100, prompts=1, cached_prompts=0, max_rows=1))
    assert forgetful.choices["computed"] == 1.0
    assert forgetful.prefill_tokens_s == pytest.approx(100 * forgetful.searches_s, rel=0.05)


@pytest.mark.parametrize(("rate", "moves"), [(1e12, True), (1.0, False)])
def test_kv_moves_where_that_is_faster_than_waiting_or_computing(rate: float, moves: bool) -> None:
    workload = Workload(4, 1, 80, 5, children=1, tokens=1, prompt=5_000, prompts=8, cached_prompts=2, max_rows=1)
    report = run(workload, costs(transfer_bytes_s=rate))
    assert (report.choices["transferred"] > 0.05) == moves
    assert (report.moved_bytes_s > 0) == moves
    assert sum(report.choices.values()) == pytest.approx(1.0)


def test_it_repeats_itself() -> None:
    workload = Workload(3, 2, 60, 5, prompt=64, prompts=9, cached_prompts=2, pause_s=0.2)
    assert run(workload, seed=4) == run(workload, seed=4)
    assert run(workload, seed=4) != run(workload, seed=5)


def test_what_was_not_measured_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_rows=2000"):
        Simulation(Workload(1, 1, 1, max_rows=2_000), FREE)
    with pytest.raises(InvalidArgument, match="rows"):
        FREE.step.of(1_001)
    for wrong in ({"workers": 0}, {"trees": 0}, {"shards": 1.5}, {"pause_s": -1.0}, {"children": 300}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            Workload(**{"workers": 1, "shards": 1, "trees": 1, **wrong})  # type: ignore[arg-type]
