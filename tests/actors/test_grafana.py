"""The dashboard shows the metrics that there are, all of them and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from actors.metrics import METRICS

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "dendrite.json"
SERIES = {series: metric for metric in METRICS.values() for series in metric.series}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def used(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def test_grafana_can_import_it() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 36
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert board["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert all({"h", "w", "x", "y"} == set(panel["gridPos"]) for panel in board["panels"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_target_names_a_data_source_of_the_dashboard() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            names = re.findall(r"\$(\w+)", target["expr"])
            assert {name for name in names if not name.startswith("__")} <= set(variables)
    assert used(variables["worker"]["definition"]) <= set(SERIES)


def test_every_name_in_it_is_one_that_the_code_registers() -> None:
    names = {name for expression in expressions() for name in used(expression)}
    assert names
    assert names <= set(SERIES)


def test_every_metric_is_shown() -> None:
    shown = {SERIES[name].name for expression in expressions() for name in used(expression)}
    assert shown == set(METRICS)


def test_labels_are_those_of_the_metrics() -> None:
    for expression in expressions():
        for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", expression):
            labels = re.findall(r"(\w+)=~?", selector)
            assert set(labels) <= set(SERIES[name].tags), expression
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", by)}
        known = {tag for name in used(expression) for tag in SERIES[name].tags}
        assert grouped <= known | {"le"}, expression


def test_counters_are_shown_as_rates() -> None:
    for expression in expressions():
        for name in used(expression):
            if SERIES[name].kind != "gauge":
                assert re.search(rf"(rate|increase)\({name}", expression), expression


def test_parentheses_match() -> None:
    for expression in expressions():
        depth = 0
        for character in expression:
            depth += {"(": 1, ")": -1}.get(character, 0)
            assert depth >= 0, expression
        assert depth == 0, expression


def test_the_documentation_lists_every_metric() -> None:
    text = (DASHBOARD.parents[2] / "docs" / "operations.md").read_text()
    listed = re.findall(r"^\| `(ray_\w+)` \|(.*?)\|(.*)\|$", text, re.MULTILINE)
    expected = [
        (metric.series[0], ", ".join(f"`{tag}`" for tag in metric.tags), metric.description)
        for metric in METRICS.values()
    ]
    assert [tuple(part.strip() for part in row) for row in listed] == expected
