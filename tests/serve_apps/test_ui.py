"""The live page in a browser, over a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.dendrite.viewer.browser import CHROMIUM, Opened, chromium, watched_page
from tests.serve_apps.serving import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Playwright (pip install playwright) and a Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def live(browser: Browser, served: Served) -> Iterator[Opened]:
    opened = watched_page(browser, Path("ui"))
    page = opened.page
    page.goto(f"{served.url}/ui")
    yield opened
    assert opened.complaints == []
    assert all(url.startswith((served.url, "data:")) for url in opened.requests)
    page.close()
    served.wait_for_pages(0, 1.0)


def test_a_search_is_run_looked_at_and_branched(live: Opened, tmp_path: Path) -> None:
    page = live.page
    page.get_by_label("Problem").fill("Numbers: 3 4 50. Target: 62.")
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name="Search").click()
    live.wait("document.getElementById('status').textContent === 'Solved.'")
    assert live.js("viewer.state.result.solved")
    assert page.get_by_role("button", name="Cancel").is_disabled()

    live.js("viewer.stage.reveal(viewer.state.root)")
    live.settle()
    page.mouse.click(*live.card(0))
    assert live.selected == 0
    before = live.js("viewer.state.nodes.length")
    page.get_by_label("Children").fill("2")
    page.get_by_role("button", name="Branch the selected node").click()
    live.wait("document.getElementById('status').textContent.startsWith('Made')")
    live.wait(f"viewer.state.nodes.length === {before + 2}")
    assert live.js("viewer.state.nodes.at(-1).parent.id") == 0
    live.js("viewer.select(viewer.state.nodes.at(-1))")
    detail = page.locator(".dv-detail")
    assert detail.locator("h2").inner_text() == f"Node {live.selected}"
    assert "Visits" in detail.inner_text()
    assert "shared" in detail.locator(".dv-key").inner_text()
    live.settle()
    shot = page.screenshot(path=tmp_path / "live.png")
    assert len(shot) > 20_000


def test_a_search_begun_elsewhere_is_watched_by_its_link_and_after_a_reload(live: Opened, served: Served) -> None:
    body = {"task": {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}, "seed": 1, "wait": False}
    with served.client() as client:
        id = client.post("/v1/search", json=body).raise_for_status().json()["id"]
    live.page.goto(f"{served.url}/ui#{id}")
    for _ in range(2):
        live.page.reload()  # a link that differs in its fragment alone loads nothing anew
        live.wait("document.getElementById('status').textContent === 'Solved.'")
        assert live.js("viewer.state.result.solved")
        assert live.page.get_by_role("button", name="Cancel").is_disabled()


def test_a_search_is_cancelled_by_the_keyboard_alone(live: Opened, served: Served) -> None:
    page, press = live.page, live.page.keyboard.press
    page.get_by_label("Problem").focus()
    press("Control+A")
    page.keyboard.type("Numbers: 1 1 1 1. Target: 999.")
    page.get_by_label("Tokens").fill("1000000")
    press("Enter")
    live.wait("window.viewer?.state?.nodes.length > 3")
    page.get_by_role("button", name="Search").focus()
    press("Tab")
    assert live.js("document.activeElement.id") == "cancel"
    press("Enter")
    live.wait("document.getElementById('status').textContent === 'The search was cancelled.'")
    served.wait_for_pages(0, 1.0)


def test_what_is_wrong_is_said(live: Opened) -> None:
    live.page.get_by_label("Problem").fill("What is love?")
    live.page.get_by_role("button", name="Search").click()
    assert "reads" in live.page.get_by_role("status").inner_text()
