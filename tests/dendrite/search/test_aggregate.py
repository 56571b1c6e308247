from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.aggregate import Aggregate, aggregate


@pytest.mark.parametrize(("by", "expected"), [("last", 0.8), ("min", 0.4), ("prod", 0.16), ("mean", 0.5666666667)])
def test_aggregates_by_hand(by: Aggregate, expected: float) -> None:
    assert aggregate([0.5, 0.4, 0.8], by) == pytest.approx(expected)
    assert aggregate([], by) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_aggregates_are_ordered_and_stay_in_range(values: list[float]) -> None:
    assert 0 <= aggregate(values, "prod") <= aggregate(values, "min") <= aggregate(values, "mean") + 1e-12
    assert aggregate(values, "min") <= aggregate(values, "last") <= 1
