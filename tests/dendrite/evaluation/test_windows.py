"""Sliding windows score every token once, with enough context."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.evaluation.windows import Window, sliding_windows


@given(st.integers(0, 300), st.integers(2, 80), st.data(), st.booleans())
def test_every_token_is_scored_once_with_its_context(count: int, window: int, data: st.DataObject, bos: bool) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = list(range(1, count + 1))
    assume(count >= 2 or (bos and count))
    windows = sliding_windows(tokens, window, stride, 0 if bos else None)
    scored = [token for each in windows for token in each.tokens[each.first :]]
    assert len(scored) == len(set(scored))
    assert scored == sorted(scored)
    unscored = set(tokens) - set(scored)
    if bos:
        assert not unscored
    elif stride < window:
        assert unscored == {1}
    for each in windows:
        body = each.tokens[1:] if bos else each.tokens
        assert len(body) <= window
        assert list(body) == list(range(body[0], body[0] + len(body)))
        if body[0] > 1:  # not the first window
            assert each.first - bos >= window - stride or each.first - bos == max(1, window - stride)


def test_windows_of_a_known_text() -> None:
    assert sliding_windows([1, 2, 3, 4, 5, 6, 7], 4, 2) == [
        Window((1, 2, 3, 4), 1),
        Window((3, 4, 5, 6), 2),
        Window((4, 5, 6, 7), 3),
    ]
    assert sliding_windows([1, 2, 3], 2, 2, bos=9) == [Window((9, 1, 2), 1), Window((9, 2, 3), 2)]


@pytest.mark.parametrize(("window", "stride", "field"), [(1, 1, "window"), (4, 5, "stride"), (4, 0, "stride")])
def test_sizes_out_of_range_are_refused(window: int, stride: int, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        sliding_windows([1, 2, 3], window, stride)


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_text_with_nothing_to_score_is_refused(tokens: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="tokens"):
        sliding_windows(tokens, 4, 2)


@pytest.mark.parametrize("first", [0, 3])
def test_a_window_scores_something_that_has_context(first: int) -> None:
    with pytest.raises(InvalidArgument, match="first"):
        Window((1, 2, 3), first)
