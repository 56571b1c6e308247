"""Workloads in sizes that the model has room for."""

from __future__ import annotations

import random

import pytest

from dendrite.errors import InvalidArgument
from dendrite.profiling.load import _W3_LEVELS, DEFAULTS, MOST_EXPANSIONS, Load


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_long_context_holds_the_sizes_of_the_benchmarks(name: str) -> None:
    assert Load.of(name, {}, 32_768).sizes == DEFAULTS[name]


@pytest.mark.parametrize("context", [64, 65, 500, 2048])
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_short_one_gets_less(name: str, context: int) -> None:
    sizes = Load.of(name, {"branches": None}, context).sizes
    levels = min(sizes.get("expansions", 1), _W3_LEVELS)
    assert min(sizes.values()) >= 1
    assert sizes["prompt"] + levels * sizes["tokens"] <= context


def test_sizes_given_are_kept() -> None:
    load = Load.of("W3", {"prompt": 30, "tokens": 5, "in_flight": 4, "expansions": 7, "branches": None}, 2048)
    assert load.sizes == {"prompt": 30, "tokens": 5, "expansions": 7, "in_flight": 4}
    assert load.widest == 4


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("W4", {}, "workload='W4': must be one of W1, W2, W3"),
        ("W1", {"branches": 8}, "branches=8: is no size of W1"),
        ("W2", {"in_flight": 8}, "in_flight=8: is no size of W2"),
        ("W2", {"tokens": 0}, "tokens=0: at least 1"),
        ("W3", {"expansions": 4097}, "expansions=4097: at most 4096"),
        ("W1", {"prompt": 2048}, "prompt=2048: at most 2047"),
        ("W1", {"prompt": 2000, "tokens": 49}, "tokens=49: at most 48"),
        ("W3", {"prompt": 1024, "tokens": 33}, "tokens=33: at most 32 for 32 after one another"),
    ],
)
def test_what_does_not_fit_is_named(name: str, given: dict[str, int], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        Load.of(name, given, 2048)


def test_no_path_of_a_search_is_longer_than_assumed() -> None:
    longest = 0
    for seed in range(20):
        draws, depths = random.Random(seed), [0]
        for _ in range(MOST_EXPANSIONS):
            depths.append(depths[int(len(depths) * draws.random() ** 0.5)] + 1)
        longest = max(longest, *depths)
    assert longest <= _W3_LEVELS
