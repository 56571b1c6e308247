"""Whether to copy a node, and how: by given rates."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fleet import Fleet
from actors.kv_transfer import Arrival, TransferFailed
from actors.lineage import Copy, Lineage, Segment
from actors.refs import ClusterNode
from actors.replication import Estimate, Policy, Replicator, check_policy, decide, delay, missing_tokens
from dendrite.errors import InvalidArgument, OutOfPages

BUSY = Estimate(owner_delay_s=1.0, target_delay_s=0.0, missing=1_000, transfer_s=0.1, recompute_s=0.2)
TIMES = st.none() | st.floats(0.001, 10)
MEGABYTE = Arrival(ClusterNode(1, 2, 3), 1_000, 1_000_000)


def on_zero(_: Segment, worker: int) -> bool:
    return worker == 0


def leaf() -> Segment:
    lineage = Lineage()
    root = lineage.add(Copy(ClusterNode(0, 1, 0), 0), tuple(range(900)))
    return lineage.add(Copy(ClusterNode(0, 1, 1), 0), tuple(range(100)), root)


def waiting(workers: int = 2, policy: Policy = "auto") -> Replicator:
    """Worker 0 has a queue of a second; a prefill of 1,000 tokens takes 0.2 s."""
    fleet = Fleet([None] * workers)
    fleet.rates(0).waited_s = 1.0
    fleet._workers[0].in_flight = 1
    fleet.rates(1).prefilled(1.0, 5_000)
    return Replicator(fleet, policy)


# ---------------------------------------------------------------- the estimate


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "transfer"),
        ({"transfer_s": 0.3}, "recompute"),
        ({"recompute_s": 0.05}, "recompute"),
        ({"transfer_s": 0.2}, "transfer"),
        ({"transfer_s": None}, "transfer"),
        ({"transfer_s": None, "recompute_s": None}, "stay"),
        ({"recompute_s": None}, "transfer"),
        ({"transfer_s": inf}, "recompute"),
        ({"transfer_s": 0.6, "recompute_s": 0.7}, "stay"),
        ({"owner_delay_s": 0.0}, "stay"),
        ({"owner_delay_s": 0.19}, "stay"),
        ({"owner_delay_s": 0.21}, "transfer"),
        ({"target_delay_s": 0.39}, "transfer"),
        ({"target_delay_s": 0.41}, "stay"),
        ({"owner_delay_s": 0.19, "calls": 2}, "transfer"),
        ({"owner_delay_s": 0.12, "calls": 4}, "stay"),
        ({"owner_delay_s": 0.12, "calls": 16}, "transfer"),
        ({"owner_delay_s": 0.09, "calls": 1_000}, "stay"),
        ({"room": 999}, "stay"),
        ({"room": 1_000}, "transfer"),
    ],
)
def test_the_faster_way_is_taken_if_it_beats_the_queue(changes: dict[str, float | None], expected: str) -> None:
    assert decide(replace(BUSY, **changes)) == expected


@pytest.mark.parametrize(
    ("policy", "expected"), [("never", "stay"), ("recompute", "recompute"), ("transfer", "transfer")]
)
def test_a_policy_leaves_one_way_only(policy: Policy, expected: str) -> None:
    assert decide(replace(BUSY, recompute_s=0.1, transfer_s=0.1), policy) == expected
    assert decide(replace(BUSY, recompute_s=0.6, transfer_s=0.6), policy) == "stay"


@given(
    owner=st.floats(0, 10),
    target=st.floats(0, 10),
    transfer=TIMES,
    recompute=TIMES,
    calls=st.integers(1, 99),
    room=st.none() | st.integers(0, 9),
)
def test_a_copy_is_never_later_than_the_queue(
    owner: float, target: float, transfer: float | None, recompute: float | None, calls: int, room: int | None
) -> None:
    estimate = Estimate(owner, target, 5, transfer, recompute, calls, room)
    how = decide(estimate)
    ready = estimate.ready_s(how)
    assert ready is not None
    if how == "stay":
        assert ready == owner
    else:
        assert ready * (1 + 1 / calls) < owner
        assert room is None or room >= 5
        other = estimate.ready_s("recompute" if how == "transfer" else "transfer")
        assert other is None or ready <= other


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="replication='both': must be one of auto, never, transfer, recompute"):
        check_policy("both")  # type: ignore[arg-type]


# ---------------------------------------------------------------- what it is made from


def test_tokens_are_missing_from_the_nearest_ancestor_on() -> None:
    segment = leaf()
    assert missing_tokens(segment, 1, on_zero) == 1_000
    assert missing_tokens(segment, 0, on_zero) == 0
    assert missing_tokens(segment, 1, lambda each, _: each is segment.parent) == 100


def test_the_measured_rates_decide(caplog: pytest.LogCaptureFixture) -> None:
    replicator = waiting()
    with caplog.at_level(logging.DEBUG, "dendrite.cluster"):
        assert replicator.propose(leaf(), 0, {1: 1_000}) == (1, "transfer"), "to be measured"
        replicator.moved(0, MEGABYTE, 9.0)  # the first one, which is not measured
        replicator.moved(0, MEGABYTE, 0.05)
        assert replicator.propose(leaf(), 0, {1: 1_000}) == (1, "transfer")
        for _ in range(60):
            replicator.moved(0, MEGABYTE, 0.3)
        assert replicator.propose(leaf(), 0, {1: 1_000}) == (1, "recompute")
        assert replicator.propose(leaf(), 0, {1: 10_000}) is None
    assert replicator.decisions == {"transfer": 2, "recompute": 1, "stay": 1}
    assert (replicator.stats.transfers, replicator.stats.tokens_moved) == (62, 62_000)
    assert replicator.stats.bytes_moved == 62_000_000
    logged = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [(each["event"], each["decision"]) for each in logged] == [
        ("replication", decision) for decision in ("transfer", "transfer", "recompute", "stay")
    ]
    inputs = logged[2]
    assert (inputs["tree"], inputs["node"], inputs["owner"], inputs["worker"], inputs["missing"]) == (1, 1, 0, 1, 1_000)
    assert (inputs["owner_delay_s"], inputs["target_delay_s"], inputs["recompute_s"]) == (1.0, 0.0, 0.2)
    assert inputs["transfer_s"] == pytest.approx(0.3, rel=0.01)
    assert inputs["bytes_per_s"] == pytest.approx(1e6 / 0.3, rel=0.01)
    assert caplog.records[3].levelno == logging.DEBUG


def test_the_worker_that_is_ready_first_gets_the_copy() -> None:
    replicator = waiting(4)
    for _ in range(2):
        replicator.moved(0, MEGABYTE, 0.1)
    assert replicator.propose(leaf(), 0, {1: 1_000, 2: 400, 3: 1_000}) == (2, "transfer")
    replicator._fleet.rates(2).waited_s = 0.2
    replicator._fleet._workers[2].in_flight = 1
    assert replicator.propose(leaf(), 0, {1: 1_000, 2: 400}) == (1, "transfer")


def test_many_calls_at_a_node_are_reason_enough_to_copy_it() -> None:
    replicator, segment = waiting(), leaf()
    replicator._fleet.rates(0).waited_s = 0.3
    assert replicator.propose(segment, 0, {1: 1_000}) is None
    segment.pins = 4
    assert replicator.propose(segment, 0, {1: 1_000}) == (1, "transfer")


def test_what_calls_cost_one_another_counts_as_a_queue() -> None:
    fleet = Fleet([None, None])
    fleet._workers[0].in_flight = 10
    assert delay(fleet, 0) == 0
    for _ in range(3):
        fleet.rates(0).decoded(2.0, 20, calls=10)
    assert fleet.queue_delay(0) == 0, "no call took longer than another"
    assert delay(fleet, 0) == pytest.approx(2.0)
    fleet._workers[0].in_flight = 5
    assert delay(fleet, 0) == pytest.approx(1.0)
    for calls in (1, 5, 9) * 20:
        fleet.rates(0).decoded(2.0, 20, calls=calls)
    assert delay(fleet, 0) < 0.3, "it takes as long with fewer calls"


def test_a_worker_with_too_few_pages_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    replicator = waiting()
    now = 100.0
    monkeypatch.setattr("actors.replication.time.monotonic", lambda: now)
    replicator.failed(1, 1_000, OutOfPages(60, 10))
    assert replicator.propose(leaf(), 0, {1: 1_000}) is None
    assert replicator.propose(leaf(), 0, {1: 500}) is not None
    now = 106.0
    assert replicator.propose(leaf(), 0, {1: 1_000}) is not None
    assert (replicator.stats.refusals, replicator.stats.failures) == (1, 0)


def test_after_a_failed_transfer_nodes_are_computed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    replicator = waiting()
    now = 100.0
    monkeypatch.setattr("actors.replication.time.monotonic", lambda: now)
    for _ in range(2):
        replicator.moved(0, MEGABYTE, 0.1)
    replicator.failed(1, 1_000, TransferFailed(0, "it is gone"))
    assert replicator.propose(leaf(), 0, {1: 1_000}) == (1, "recompute")
    now = 106.0
    assert replicator.propose(leaf(), 0, {1: 1_000}) == (1, "transfer")
    assert (replicator.stats.refusals, replicator.stats.failures) == (0, 1)
