"""The page as a browser shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dendrite.search.trace_file import read_trace
from dendrite.viewer.page import render
from tests.dendrite.search.traces import Event, synthesize, write_trace
from tests.dendrite.viewer.browser import CHROMIUM, Opened, open_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Playwright (pip install playwright) and a Chromium")


def test_a_click_selects_a_node(opened: Opened) -> None:
    opened.js("viewer.stage.reveal(viewer.state.root)")
    opened.settle()
    opened.page.mouse.click(*opened.card(0))
    assert opened.selected == 0
    detail = opened.page.locator(".dv-detail")
    assert detail.locator("h2").inner_text() == "Prompt"
    assert "Numbers: 3 7 8 25" in detail.locator(".dv-text").inner_text()
    detail.locator(".dv-kids button").first.click()
    node = opened.selected
    assert opened.js("viewer.selected.parent.id") == 0
    assert detail.locator("h2").inner_text() == f"Node {node}"


def test_the_panel_tells_what_the_trace_does(opened: Opened, folder: Path, events: list[Event]) -> None:
    trace = read_trace(folder / "first.jsonl")
    node = max((each for each in trace.nodes.values() if each.parent is not None), key=lambda each: each.visits)
    opened.js("(id) => viewer.select(viewer.state.byId.get(id))", node.id)
    figures = dict(
        row.split("\n", 1) for row in opened.page.locator(".dv-figures > div, .dv-origin > div").all_inner_texts()
    )
    assert figures["Visits"].strip() == str(node.visits)
    assert figures["Mean value"].strip() == f"{node.mean:.3f}"
    assert figures["Prior"].strip() == f"{node.prior:.3f}"
    assert figures["Worker"].strip() == str(node.worker)
    assert figures["KV pages"].strip() == str(node.pages)
    shared = sum(len(each.tokens) for each in trace.path(node.id)[:-1])
    assert opened.page.locator(".dv-key").inner_text().split("\n")[0].startswith(f"{shared} shared")
    everything = opened.js(
        "viewer.state.nodes.map((n) => [n.id, n.visits, n.visits ? n.sum / n.visits : null, n.released])"
    )
    expected = [[each.id, each.visits, each.mean, each.released] for each in trace.nodes.values()]
    assert [row[:2] + row[3:] for row in everything] == [row[:2] + row[3:] for row in expected]
    assert [row[2] for row in everything] == [pytest.approx(row[2]) if row[2] is not None else None for row in expected]


def test_folding_hides_and_shows_a_subtree(opened: Opened) -> None:
    placed = "viewer.layout.placed.length"
    everything = opened.js(placed)
    assert everything == opened.js("viewer.state.nodes.length")
    opened.page.get_by_role("button", name="Fold all", exact=True).click()
    assert opened.js(placed) == 1 + opened.js("viewer.state.root.children.length")
    opened.page.get_by_role("button", name="Unfold all").click()
    assert opened.js(placed) == everything
    opened.js("viewer.select(viewer.state.root)")
    opened.settle()
    opened.page.mouse.dblclick(*opened.card(0))
    assert opened.js(placed) == 1
    opened.settle()
    opened.page.mouse.dblclick(*opened.card(0))
    assert opened.js(placed) == everything


def test_the_keyboard_walks_the_tree(opened: Opened) -> None:
    press = opened.page.keyboard.press
    opened.page.locator(".dv-stage").focus()
    press("Home")
    assert opened.selected == 0
    press("ArrowRight")
    first = opened.selected
    assert opened.js("viewer.selected.parent.id") == 0
    press("ArrowDown")
    second = opened.selected
    assert second != first
    assert opened.js("viewer.selected.depth") == 1
    press("ArrowUp")
    assert opened.selected == first
    press("ArrowLeft")
    press("Enter")
    assert opened.js("viewer.layout.placed.length") == 1
    item = opened.page.locator("[role=treeitem][aria-selected=true]")
    assert item.get_attribute("aria-expanded") == "false"
    assert item.get_attribute("id") == opened.page.locator("[role=tree]").get_attribute("aria-activedescendant")
    press("ArrowRight")
    assert item.get_attribute("aria-expanded") == "true"
    press("End")
    assert opened.js("viewer.selected.id === viewer.state.bestNode().id")
    press("/")
    assert opened.js("document.activeElement.type") == "search"
    press("Escape")
    assert opened.js("document.activeElement.getAttribute('role')") == "tree"


def test_the_filter_counts_and_goes_to_matches(opened: Opened) -> None:
    total = opened.js("viewer.state.nodes.length")
    assert opened.count == f"{total} nodes"
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("GRÜN")
    matching = opened.js("viewer.state.nodes.filter((n) => n.text.includes('grün')).map((n) => n.id)")
    assert 0 < len(matching) < total
    assert opened.count.endswith(f"{len(matching)} of {total} nodes")
    opened.page.get_by_role("button", name="Fold all", exact=True).click()
    opened.page.locator(".dv-input").focus()
    seen = []
    for _ in matching:
        opened.page.keyboard.press("Enter")
        seen.append(opened.selected)
        assert opened.js("viewer.layout.placed.includes(viewer.selected)")
    assert sorted(seen) == sorted(matching)
    opened.page.locator(".dv-input").fill("")
    for status, rule in (("solved", "n.reward >= 1"), ("ended", "n.ended"), ("open", "!n.ended"), ("all", "true")):
        opened.page.locator(f"[data-status={status}]").click()
        expected = opened.js(f"viewer.state.nodes.filter((n) => {rule}).length")
        assert opened.count.split(" / ")[-1].startswith(f"{expected} ")


def test_the_slider_shows_the_search_as_it_was(opened: Opened, events: list[Event]) -> None:
    slider = opened.page.locator(".dv-slider")
    shown = "viewer.state.nodes.filter((n) => viewer.state.visible(n)).length"
    state = "JSON.stringify(viewer.state.nodes.map((n) => [n.visits, n.sum, n.released, n.flying]))"
    last = opened.js(state)
    for at in (len(events) // 2, 3, len(events)):
        slider.fill(str(at))
        so_far = events[:at]
        there = sum(1 if event["event"] == "root" else len(event.get("children", ())) for event in so_far)
        assert opened.js(shown) == there
        assert opened.js("viewer.state.root.visits") == sum(event["event"] == "backup" for event in so_far)
        over = sum(event["event"] == "children" for event in so_far)
        flying = sum(event["event"] == "expand" for event in so_far) - over
        assert opened.js("viewer.state.totals().flying") == (flying if at < len(events) else 0)
        assert slider.get_attribute("aria-valuetext").startswith(f"event {at} of {len(events)}, ")
    assert opened.js(state) == last
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press(",")
    assert slider.input_value() == str(len(events) - 1)
    opened.page.keyboard.press(".")
    assert slider.input_value() == str(len(events))


def test_play_runs_to_the_end_and_stops(opened: Opened, events: list[Event]) -> None:
    slider = opened.page.locator(".dv-slider")
    slider.fill(str(len(events) - 6))
    opened.page.get_by_role("button", name="Play").click()
    opened.wait("!viewer.replay.playing")
    assert slider.input_value() == str(len(events))
    opened.page.get_by_role("button", name="Play").click()
    opened.wait("viewer.state.at > 3")
    opened.page.get_by_role("button", name="Pause").click()
    assert int(slider.input_value()) < len(events)


def test_the_timeline_has_a_bar_for_each_expansion(opened: Opened, events: list[Event]) -> None:
    calls = [event for event in events if event["event"] == "expand"]
    assert opened.js("viewer.timeline._bars.length") == len(calls)
    assert opened.js(
        """viewer.timeline._bars.every((one) => viewer.timeline._bars.every((other) => one === other
            || one.lane !== other.lane || one.call.end <= other.call.start || other.call.end <= one.call.start))"""
    )
    lanes = opened.page.locator(".dv-lanes").bounding_box()
    x, y = opened.js(
        """(() => { const bar = viewer.timeline._bars.find((each) => each.call.children.length && each.call.to);
            return [viewer.timeline._x((bar.call.from + bar.call.to) / 2), viewer.timeline._y(bar.lane) + 3] })()"""
    )
    opened.page.mouse.click(lanes["x"] + x, lanes["y"] + y)
    assert opened.js("viewer.state.at - 1 === viewer.selected.call.end")
    # A click beside all bars moves the replay to that time.
    opened.page.mouse.click(lanes["x"] + opened.js("viewer.timeline._x(1.0)"), lanes["y"] + lanes["height"] - 4)
    assert opened.js("viewer.state.now <= 1.0 && viewer.state.events[viewer.state.at].time > 1.0")


def test_several_traces_have_a_selector(opened: Opened) -> None:
    opened.page.locator("#chooser").select_option(label="second.jsonl")
    assert opened.page.title() == "second.jsonl · Dendrite"
    assert opened.js("viewer.state.events.length") == len(synthesize(12, 30))


def test_events_can_be_pushed_while_a_search_runs(opened: Opened, events: list[Event]) -> None:
    opened.js(
        "(events) => { viewer.destroy(); viewer = DendriteViewer(document.getElementById('viewer'), events) }", []
    )
    assert opened.js("viewer.state.nodes.length") == 0
    opened.js("(events) => events.forEach((event) => viewer.push(event))", events[: len(events) // 2])
    opened.settle()
    assert opened.js("viewer.layout.placed.length") == opened.js("viewer.state.nodes.length") > 1
    assert opened.js("viewer.state.at") == len(events) // 2
    opened.page.keyboard.press(",")
    opened.js("(events) => events.forEach((event) => viewer.push(event))", events[len(events) // 2 :])
    opened.settle()
    # Whoever looks at an earlier event is left there.
    assert opened.js("viewer.state.at") == len(events) // 2 - 1
    assert opened.page.locator(".dv-slider").get_attribute("max") == str(len(events))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_search_that_has_hardly_begun_is_shown(
    browser: Browser, folder: Path, events: list[Event], size: int
) -> None:
    render([write_trace(folder / "begun.jsonl", events[:size])], folder / "begun.html")
    opened = open_page(browser, folder / "begun.html")
    assert opened.js("viewer.layout.placed.length") == int(size > 1)
    opened.js("viewer.replay.move(0); viewer.stage.fit(false); viewer.draw()")
    assert opened.complaints == []
    opened.page.close()


def test_a_search_of_several_prompts_shows_all_trees(browser: Browser, folder: Path) -> None:
    events = next(made for made in map(synthesize, range(100)) if sum(each["event"] == "root" for each in made) > 2)
    render([write_trace(folder / "forest.jsonl", events)], folder / "forest.html")
    opened = open_page(browser, folder / "forest.html")
    assert opened.js("viewer.state.roots.length") == sum(each["event"] == "root" for each in events)
    assert opened.js("viewer.layout.placed.length") == opened.js("viewer.state.nodes.length")
    assert opened.js("viewer.state.roots.every((root) => root.x === 0)")
    assert opened.complaints == []
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits(browser: Browser, page_file: Path, scheme: str) -> None:
    opened = open_page(browser, page_file, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    assert opened.js("document.documentElement.scrollWidth") == 400
    for part in (".dv-stage", ".dv-slider", ".dv-lanes", ".dv-detail", ".dv-input"):
        box = opened.page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        assert box["width"] > 300
    assert opened.complaints == []
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_against_its_ground(browser: Browser, page_file: Path, scheme: str) -> None:
    """Contrast of 4.5 and more for text, as WCAG 2.2, 1.4.3, asks."""
    opened = open_page(browser, page_file, color_scheme=scheme)
    contrasts = opened.js(
        """(() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
                const { r, g, b } = d3.rgb(style.getPropertyValue(`--${name}`).trim());
                const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
            };
            const grounds = ["bg", "surface", "sunk", "raised"];
            const pairs = ["accent", "good", "bad"].map((name) => [name, `${name}-soft`]);
            for (const text of ["ink", "muted"]) pairs.push(...grounds.map((ground) => [text, ground]));
            return pairs.map(([one, two]) => {
                const [high, low] = [light(one), light(two)].sort((a, b) => b - a);
                return [one, two, (high + 0.05) / (low + 0.05)];
            });
        })()"""
    )
    assert not [each for each in contrasts if each[2] < 4.5]
    opened.page.close()


def test_ten_thousand_nodes_stay_smooth(browser: Browser, folder: Path) -> None:
    events = large_search(10_000)
    render([write_trace(folder / "large.jsonl", events)], folder / "large.html")
    opened = open_page(browser, folder / "large.html")
    assert opened.js("viewer.state.nodes.length") > 10_000
    # At first about as many nodes show as can be looked over.
    assert 100 < opened.js("viewer.layout.placed.length") <= 260
    opened.js("viewer._foldAll(false); viewer.stage.fit(false)")
    opened.settle()
    assert opened.js("viewer.layout.placed.length") > 10_000
    medians = opened.js(
        """(() => {
            const canvas = viewer.stage.canvas, medians = {};
            const time = (name, move) => {
                const times = [];
                for (let turn = 0; turn < 15; turn++) {
                    const start = performance.now();
                    move(turn);
                    viewer.draw();
                    canvas.getContext("2d").getImageData(0, 0, 1, 1); // Waits until all is drawn.
                    times.push(performance.now() - start);
                }
                medians[name] = times.sort((a, b) => a - b)[7];
            };
            const zoom = viewer.stage._zoom, target = d3.select(canvas);
            time("pan", (turn) => zoom.translateBy(target, turn % 2 ? 300 : -300, turn % 2 ? 900 : -900));
            time("zoom", () => zoom.scaleBy(target, 1.5));
            time("replay", (turn) => viewer.replay.move(4000 + turn));
            return medians;
        })()"""
    )
    assert medians["pan"] < 50, medians
    assert medians["zoom"] < 50, medians
    assert medians["replay"] < 100, medians
    opened.page.close()


def large_search(nodes: int) -> list[Event]:
    """A search tree of at least so many nodes: 16 children each, backed up once."""
    events = synthesize(0, 0, finished=False)
    parents, made = [0], 1
    for call, parent in enumerate(parents):
        if made > nodes:
            break
        fields = {"n": 16, "max_tokens": 8, "temperature": 1.0, "seed": call}
        events.append({"event": "expand", "time": call * 0.01, "call": call, "node": parent, **fields})
        children = [
            {"node": made + index, "text": f"step {made + index}\n", "tokens": [1], "logprobs": [-2.5], "value": 0.5}
            for index in range(16)
        ]
        events.append(
            {"event": "children", "time": call * 0.01 + 0.008, "call": call, "node": parent, "children": children}
        )
        events += [
            {"event": "backup", "time": call * 0.01 + 0.009, "node": child["node"], "value": 0.5} for child in children
        ]
        parents += [child["node"] for child in children]
        made += 16
    return events
