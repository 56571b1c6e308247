from __future__ import annotations

import pytest

from dendrite.errors import InvalidArgument
from dendrite.limits import check_positive_seconds, check_whole


@pytest.mark.parametrize("value", [0, 5, True, None, 1.0, "1"])
def test_what_is_no_whole_number_within_the_limits_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^workers=.*: must be a whole number, 1 to 4$"):
        check_whole("workers", value, 1, 4)


def test_the_limits_themselves_are_allowed() -> None:
    check_whole("workers", 1, 1, 4)
    check_whole("workers", 4, 1, 4)
    check_whole("attempts", 10**9, 1)


def test_without_an_end_the_least_is_told() -> None:
    with pytest.raises(InvalidArgument, match=r"^attempts=0: must be a whole number, at least 1$"):
        check_whole("attempts", 0, 1)


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_duration_must_be_above_zero(value: float) -> None:
    with pytest.raises(InvalidArgument, match=r"^ttl_s=.*: must be a positive number of seconds$"):
        check_positive_seconds("ttl_s", value)
    check_positive_seconds("ttl_s", 0.1)
