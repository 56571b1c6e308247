from __future__ import annotations

import math

import pytest

from dendrite.errors import InvalidArgument
from dendrite.simulate.costs import Costs, StepTimes


def test_a_step_between_two_measured_ones() -> None:
    step = StepTimes((1, 8, 64), (1.0, 1.7, 4.5))
    assert [step.of(rows) for rows in (1, 4, 8, 36, 64)] == pytest.approx([1.0, 1.3, 1.7, 3.1, 4.5])
    assert StepTimes((8,), (1.0,)).of(2) == 1.0
    with pytest.raises(InvalidArgument, match="at most 64"):
        step.of(65)


def test_a_prompt_is_computed_in_the_largest_steps_that_were_measured() -> None:
    costs = Costs(StepTimes((1, 8), (1.0, 2.0)), 0, 0, 0, round_trip_s=0.5, kv_bytes=4, transfer_bytes_s=8)
    assert costs.prefill_s(0) == 0
    assert costs.prefill_s(16) == 4.0
    assert costs.prefill_s(17) == 5.0
    assert costs.transfer_s(10) == 5.5


@pytest.mark.parametrize(
    ("rows", "seconds"), [((), ()), ((8, 1), (1.0, 1.0)), ((1, 8), (1.0,)), ((1,), (0.0,)), ((1,), (math.nan,))]
)
def test_steps_that_make_no_sense_are_refused(rows: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(InvalidArgument):
        StepTimes(rows, seconds)


@pytest.mark.parametrize("field", ["event_s", "message_s", "call_s", "round_trip_s", "kv_bytes"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_costs_that_make_no_sense_are_refused(field: str, value: float) -> None:
    good = {"event_s": 0.0, "message_s": 0.0, "call_s": 0.0, "round_trip_s": 0.0, "kv_bytes": 1.0}
    with pytest.raises(InvalidArgument, match=field):
        Costs(StepTimes((1,), (1.0,)), transfer_bytes_s=1.0, **{**good, field: value})
