"""Watching a search by its trace, without a file."""

from __future__ import annotations

import json
from pathlib import Path

from dendrite.search.trace import Event, Trace


def test_a_listener_hears_what_is_written(tmp_path: Path) -> None:
    heard: list[Event] = []
    path = tmp_path / "trace.jsonl"
    with Trace(path, listener=heard.append) as trace:
        trace.write("backup", node=3, value=0.5)
        trace.write("release", node=3, subtree=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == heard
    assert [event["event"] for event in heard] == ["backup", "release"]


def test_a_listener_needs_no_file() -> None:
    heard: list[Event] = []
    trace = Trace(listener=heard.append)
    assert trace.writing
    trace.write("backup", node=0, value=1.0)
    assert heard[0]["value"] == 1.0
    assert not Trace().writing
