"""Cutting a stream of texts before a stop, however the text comes in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_apps.stops import Item, StopCutter, Token

letters = st.text(alphabet="ab\n", max_size=30)


@given(letters, st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_any_pieces_give_the_text_before_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    cutter, out, at = StopCutter(stops), "", 0
    while at < len(text) and not cutter.stopped:
        size = data.draw(st.integers(1, 5))
        out += "".join(item.text for item in cutter.push(Item(text[at : at + size])))
        at += size
        assert not any(stop in out for stop in stops)
    out += "".join(item.text for item in cutter.flush())
    seen = text[:at]
    first = min((found for stop in stops if (found := seen.find(stop)) >= 0), default=None)
    assert cutter.stopped == (first is not None)
    assert out == (seen if first is None else seen[:first])


@given(letters, st.text(alphabet="ab", min_size=1, max_size=3))
def test_no_more_is_held_back_than_may_begin_a_stop(text: str, stop: str) -> None:
    cutter, out = StopCutter([stop]), ""
    for letter in text:
        out += "".join(item.text for item in cutter.push(Item(letter)))
        if cutter.stopped:
            return
    held = text[len(out) :]
    assert stop.startswith(held)
    assert len(held) < len(stop)


def test_tokens_go_with_the_text_that_they_begin() -> None:
    cutter = StopCutter(["XY"])
    a, b, c = (Token(id, -1.0) for id in range(3))
    assert cutter.push(Item("one", (a,))) == [Item("one", (a,))]
    assert cutter.push(Item("twoX", (b,))) == []
    assert cutter.push(Item("Y", (c,))) == [Item("two", (b,))]
    assert cutter.push(Item("more", (c,))) == []
