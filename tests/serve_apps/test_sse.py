"""How events are framed, so that a reader gets the data back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_apps.sse import frame


def read(stream: bytes) -> list[dict[str, str]]:
    """A reader as the standard describes it."""
    events: list[dict[str, str]] = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = fields[name] + "\n" + value if name in fields else value
        events.append(fields)
    return events


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))
def test_events_come_back_as_they_were(texts: list[str]) -> None:
    stream = b"".join(frame(text, event="node", id=index) for index, text in enumerate(texts))
    plain = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert read(stream) == [{"id": str(i), "event": "node", "data": text} for i, text in enumerate(plain)]
