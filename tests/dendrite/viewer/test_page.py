from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dendrite.errors import InvalidArgument, TraceError
from dendrite.viewer.page import render, viewer_script
from tests.dendrite.search.traces import Event


class Scripts(HTMLParser):
    """What a browser would take for scripts, and all addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._within = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href", "action", "data"}]
        self._within = tag == "script"
        if self._within:
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data: str) -> None:
        if self._within:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    def handle_endtag(self, tag: str) -> None:
        self._within = False


def test_text_of_a_trace_is_never_markup(page_file: Path, events: list[Event]) -> None:
    parser = Scripts()
    parser.feed(page_file.read_text())
    data, *code = parser.scripts
    assert data[0]["type"] == "application/json"
    assert len(code) == 2
    traces = json.loads(data[1])
    assert [trace["name"] for trace in traces] == ["first.jsonl", "second.jsonl"]
    texts = [child["text"] for event in traces[0]["events"] for child in event.get("children", ())]
    assert texts == [child["text"] for event in events for child in event.get("children", ())]
    assert any("</script><!--" in text for text in texts)
    assert "b" not in parser.tags


def test_the_page_names_nothing_outside_itself(page_file: Path) -> None:
    parser = Scripts()
    parser.feed(page_file.read_text())
    assert parser.addresses == ["data:,"]
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page_file.read_text())
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.group(1)


def test_a_page_needs_traces(folder: Path, page_file: Path) -> None:
    before = page_file.read_bytes()
    with pytest.raises(InvalidArgument, match="at least one"):
        render([], page_file)
    with pytest.raises(TraceError, match="No such file"):
        render([folder / "none.jsonl"], page_file)
    assert page_file.read_bytes() == before


def test_the_viewer_is_a_script_of_its_own() -> None:
    assert "window.DendriteViewer = " in viewer_script()
    assert "</script" not in viewer_script()
