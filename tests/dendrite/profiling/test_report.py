"""Figures of a profile, from the times of its steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.profiling.recorder import ROWS, StepTimes
from dendrite.profiling.report import KINDS, by_kind, operator_rows
from dendrite.profiling.tracing import OperatorTime, Traced

STEPS = st.lists(
    st.builds(
        StepTimes,
        kind=st.sampled_from(KINDS),
        burst=st.integers(1, 5),
        rows=st.integers(1, 9),
        ns=st.fixed_dictionaries({row: st.integers(1, 10**9) for row in ROWS}),
    ),
    max_size=30,
)


@given(STEPS)
def test_phases_sum_to_the_whole_of_each_kind(steps: list[StepTimes]) -> None:
    found = by_kind(steps)
    assert set(found) == {step.kind for step in steps}
    assert sum(times.calls for times in found.values()) == len(steps)
    for kind, times in found.items():
        of_kind = [step for step in steps if step.kind == kind]
        total = sum(sum(step.ns.values()) for step in of_kind) / 1e3
        assert times.steps == sum(step.burst for step in of_kind)
        assert times.whole.mean_us * times.steps == pytest.approx(total)
        assert sum(phase.mean_us for phase in times.phases.values()) == pytest.approx(times.whole.mean_us)
        assert sum(phase.share for phase in times.phases.values()) == pytest.approx(1.0)
        assert times.whole.share == pytest.approx(1.0)
        assert times.gpu is None
        for quantity in (*times.phases.values(), times.whole):
            assert quantity.p50_us <= quantity.p99_us


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_percentiles_are_times_that_occurred(times: list[int]) -> None:
    steps = [StepTimes("decode", 1, 1, dict.fromkeys(ROWS, 1000 * time)) for time in times]
    found = by_kind(steps)["decode"].phases["post"]
    ordered = sorted(times)
    assert found.p50_us == ordered[math.ceil(len(times) / 2) - 1]
    assert found.p99_us == ordered[math.ceil(0.99 * len(times)) - 1]


def test_a_burst_counts_as_its_steps() -> None:
    long = StepTimes("decode", 9, 2, dict.fromkeys(ROWS, 9_000))
    short = StepTimes("decode", 1, 4, dict.fromkeys(ROWS, 5_000))
    found = by_kind([long, short])["decode"]
    assert (found.steps, found.calls, found.rows) == (10, 2, 3.0)
    post = found.phases["post"]
    assert (post.mean_us, post.p50_us, post.p99_us) == pytest.approx((1.4, 1.0, 5.0))


def test_the_gpu_s_time_goes_beside_the_phases() -> None:
    steps = [StepTimes("decode", 2, 1, dict.fromkeys(ROWS, 1_000), span_us=4.0) for _ in range(3)]
    gpu = by_kind(steps)["decode"].gpu
    assert gpu is not None
    assert (gpu.mean_us, gpu.share) == pytest.approx((2.0, 0.8))


def test_operators_are_those_of_most_time_a_step() -> None:
    operators = [OperatorTime("a", "decode", 30.0, 20), OperatorTime("b", "prefill", 9.0, 1)]
    operators += [OperatorTime("c", "decode", 10.0, 10)]
    found = operator_rows(Traced({"decode": 10, "prefill": 1, "mixed": 2}, operators), 1)
    (row,) = found["decode"]
    assert (row.name, row.us_per_step, row.calls_per_step, row.share) == ("a", 3.0, 2.0, 0.75)
    assert [row.name for row in found["prefill"]] == ["b"]
    assert found["mixed"] == []
