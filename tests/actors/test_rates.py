from __future__ import annotations

from actors.line_fit import LineFit
from actors.rates import Rates


def test_a_call_that_took_no_time_is_not_measured() -> None:
    rates = Rates(LineFit(keep=0.98, origin=0.2))
    rates.decoded(0.0, 4)
    rates.prefilled(0.0, 4)
    assert (rates.steps, rates.pace, rates.step_s, rates.prefill_rate) == (0.0, None, None, None)
    rates.decoded(0.4, 4)
    rates.decoded(0.8, 4)
    assert rates.step_s == 0.1
    assert rates.waited_s > 0


def test_what_a_slow_worker_takes_is_told_by_its_pace() -> None:
    crowd = LineFit(keep=0.98, origin=0.2)
    quick, slow = Rates(crowd), Rates(crowd)
    for calls in (1, 2, 3, 4) * 20:
        quick.decoded(0.1 * calls, 10, calls)
        slow.decoded(0.3 * calls, 10, calls)
    assert slow.step_with(4) > 2 * quick.step_with(4)
    assert quick.step_with(4) > 2 * quick.step_with(1)
