from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.line_fit import LineFit


def fitted(*points: tuple[float, float], origin: float = 0.2) -> LineFit:
    fit = LineFit(keep=0.95, origin=origin)
    for x, y in points:
        fit.add(x, y)
    return fit


def test_nothing_is_known_before_the_first_measurement() -> None:
    assert not fitted()
    assert fitted().line == (0.0, 0.0)
    assert fitted((1, 1))


def test_measurements_at_one_place_give_a_line_through_the_origin() -> None:
    for count in (1, 5, 200):
        assert fitted(*[(16, 0.8)] * count).line == pytest.approx((0.0, 0.05), abs=1e-9)


def test_a_line_is_found_where_measurements_differ() -> None:
    intercept, slope = fitted(*[(x, 3 + 0.5 * x) for x in (4, 8, 12, 16)] * 20).line
    assert intercept == pytest.approx(3, rel=0.15)
    assert slope == pytest.approx(0.5, rel=0.25)


def test_what_falls_is_taken_for_even() -> None:
    assert fitted(*[(1, 5.0), (2, 4.0)] * 50, origin=0.0).line == pytest.approx((4.5, 0.0), rel=0.05)


def test_old_measurements_are_forgotten() -> None:
    assert fitted((1, 100.0), *[(1, 1.0)] * 200).at(1) == pytest.approx(1.0, rel=0.01)


@given(
    points=st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e3)), min_size=1, max_size=9),
    origin=st.floats(0, 1),
    x=st.floats(0, 1e9),
)
def test_no_line_is_negative(points: list[tuple[float, float]], origin: float, x: float) -> None:
    fit = fitted(*points, origin=origin)
    intercept, slope = fit.line
    assert intercept >= 0
    assert slope >= 0
    assert fit.at(x) >= 0
