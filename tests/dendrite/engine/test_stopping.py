"""Stop texts, however tokens cut them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dendrite.engine.stopping import StopText


class Spelt:
    """A detokenizer for tests: token i is the i-th piece."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token: int) -> str:
        return self._pieces[token]


def stopped_at(pieces: list[str], *stops: str) -> int | None:
    watch = StopText(stops, Spelt(pieces))
    for token in range(len(pieces)):
        if watch.push(token):
            return token
    return None


def test_inside_one_token_and_across_several() -> None:
    assert stopped_at(["ab", "c\nd", "e"], "\n") == 1
    assert stopped_at(["a", "E", "N", "D", "x"], "END") == 3
    assert stopped_at(["EN", "", "DE", "ND"], "END") == 2
    assert stopped_at(["one", "two"], "three", "wot", "etw") == 1
    assert stopped_at(["EN", "EN", "D"], "END") == 2
    assert stopped_at(["a", "b"], "c") is None


@given(
    st.lists(st.text("ab", max_size=3), max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_it_stops_where_the_whole_text_first_holds_a_stop(pieces: list[str], stops: list[str]) -> None:
    expected = next(
        (i for i in range(len(pieces)) if any(stop in "".join(pieces[: i + 1]) for stop in stops)),
        None,
    )
    assert stopped_at(pieces, *stops) == expected
