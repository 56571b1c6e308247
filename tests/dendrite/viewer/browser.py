"""Opens pages in a headless Chromium, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser's program; None where there is none, or no Playwright to drive it."""

if find_spec("playwright") is None:
    CHROMIUM = None


@dataclass
class Opened:
    """A page under test, and what it has said and asked for."""

    page: Page
    file: Path
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def js(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    @property
    def selected(self) -> int:
        return int(self.js("viewer.selected.id"))

    @property
    def count(self) -> str:
        return self.page.locator(".dv-count").inner_text()

    def card(self, node: int) -> tuple[float, float]:
        """Where on the page the middle of a node's card is."""
        x, y = self.js(
            """(id) => {
                const node = viewer.state.byId.get(id), box = viewer.stage.canvas.getBoundingClientRect();
                const [x, y] = viewer.stage.painter.transform.apply([node.x + 90, node.y]);
                return [box.left + x, box.top + y];
            }""",
            node,
        )
        return x, y

    def wait(self, condition: str) -> None:
        """Wait until a condition holds; Playwright's own way is by `eval`, which the page's policy forbids."""
        for _ in range(300):
            if self.js(condition):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"never: {condition}")

    def settle(self) -> None:
        """Wait until moves have ended and all has been drawn."""
        self.page.wait_for_timeout(330)
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def watched_page(browser: Browser, file: Path, **how: Any) -> Opened:
    """An empty page of which complaints and requests are noted."""
    page = browser.new_page(**{"viewport": {"width": 1600, "height": 1000}, **how})
    opened = Opened(page, file)
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    return opened


def open_page(browser: Browser, file: Path, **how: Any) -> Opened:
    opened = watched_page(browser, file, **how)
    opened.page.goto(file.as_uri())
    opened.wait("window.viewer !== undefined")
    opened.settle()
    return opened
