"""Pages of made-up searches, and a browser to open them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dendrite.viewer.page import render
from tests.dendrite.search.traces import Event, synthesize, write_trace
from tests.dendrite.viewer.browser import Opened, chromium, open_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return synthesize(11, 160, roots=False)


@pytest.fixture(scope="module")
def page_file(folder: Path, events: list[Event]) -> Path:
    """A page of two traces."""
    first = write_trace(folder / "first.jsonl", events)
    second = write_trace(folder / "second.jsonl", synthesize(12, 30))
    render([first, second], folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, page_file: Path) -> Iterator[Opened]:
    opened = open_page(browser, page_file)
    yield opened
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.file.as_uri()]
    opened.page.close()
