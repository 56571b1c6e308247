from __future__ import annotations

import numpy as np
import pytest

from benchmarks.trend import theil_sen


def test_a_line_has_its_slope() -> None:
    trend = theil_sen([0.0, 1.0, 3.0, 4.0], [1.0, 3.0, 7.0, 9.0])
    assert (trend.slope, trend.low, trend.high) == (2.0, 2.0, 2.0)


def test_outliers_do_not_tilt_it() -> None:
    times = np.arange(60.0)
    values = 0.5 * times
    values[[7, 30, 55]] += 1_000.0
    assert theil_sen(list(times), list(values)).slope == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("drift", [0.0, 0.2])
@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_the_interval_holds_the_slope_as_often_as_it_says(drift: float, memory: float) -> None:
    """Where neighbours are alike too, as what is allocated stays a while."""
    draws, times = np.random.default_rng(1), np.arange(120.0)
    held = 0
    for _ in range(200):
        noise = draws.normal(size=len(times))
        for at in range(1, len(noise)):
            noise[at] += memory * noise[at - 1]
        trend = theil_sen(list(times), list(drift * times + noise))
        assert trend.low <= trend.slope <= trend.high
        held += trend.low <= drift <= trend.high
    assert held >= 170, "of 200 it should hold 190"


def test_a_constant_does_not_rise() -> None:
    trend = theil_sen(list(range(10)), [4.0] * 10)
    assert (trend.slope, trend.low, trend.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("times", "values"), [([1.0, 2.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])])
def test_too_little_makes_no_line(times: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least three"):
        theil_sen(times, values)
