from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dendrite.search.noise import uniform
from dendrite.search.seeds import derive_seed


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-5, 100), max_size=8), st.integers(0, 1000))
def test_a_variate_lies_between_0_and_1_and_repeats(seed: int, path: list[int], draw: int) -> None:
    value = uniform(seed, path, draw)
    assert 0.0 < value < 1.0
    assert value == uniform(seed, tuple(path), draw)


def test_variates_differ_by_seed_path_and_draw_and_fill_the_unit_interval() -> None:
    values = [uniform(seed, (a, b), draw) for seed in range(5) for a in range(5) for b in range(5) for draw in range(8)]
    assert len(set(values)) == len(values) == 1000
    assert abs(sum(values) / len(values) - 0.5) < 0.05
    assert sum(value < 0.1 for value in values) in range(70, 131)


def test_noise_is_keyed_apart_from_the_sampling_of_the_same_node() -> None:
    sampled = {(derive_seed(3, (1, 2), draw) >> 11) / 2.0**52 for draw in range(100)}
    assert not any(abs(uniform(3, (1, 2), draw) - other) < 1e-12 for draw in range(100) for other in sampled)
