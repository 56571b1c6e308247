from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dendrite.config import MAX_SEED
from dendrite.search.seeds import derive_seed

paths = st.lists(st.integers(-1, 30), max_size=6)


def test_the_hash_never_changes() -> None:
    assert derive_seed(0, (), 0) == 4858170441910151848
    assert derive_seed(7, (0, 3, 1), 2) == 130952293283153699


@given(st.integers(0, MAX_SEED), paths, st.integers(0, 1000))
def test_seeds_are_in_range(seed: int, path: list[int], draw: int) -> None:
    assert 0 <= derive_seed(seed, path, draw) <= MAX_SEED


@given(
    st.tuples(st.integers(0, 20), paths, st.integers(0, 20)), st.tuples(st.integers(0, 20), paths, st.integers(0, 20))
)
def test_different_places_have_different_seeds(
    one: tuple[int, list[int], int], other: tuple[int, list[int], int]
) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)
