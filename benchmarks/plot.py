"""Draw what searches solve against the tokens they take: docs/images/search.svg, from benchmarks/results.

python -m benchmarks.plot
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, ROOT

OUT = ROOT / "docs" / "images" / "search.svg"
TASKS = {"countdown": "Countdown, held-out problems", "game24": "Game of 24"}
HIGHLIGHTED = {"mcts": "#1b6ac9", "best_of_n": "#c2410c"}
"""The searches that are compared in the text; the others are grey."""
_GREY, _INK = "#9aa3ad", "#2b3138"


def curves(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The points at equal tokens of each search, cheapest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in result["raw"]["points"]:
        if "tokens" in point["budget"]:
            found.setdefault(point["search"], []).append(point)
    return {name: sorted(points, key=lambda point: float(point["tokens"])) for name, points in found.items()}


def draw(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Draw one panel a task and write the picture."""
    style = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "dendrite", "axes.edgecolor": _GREY}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for panel, (task, result) in zip(panels, results.items(), strict=True):
            _draw_panel(panel, TASKS[task], curves(result))
        panels[0].set_ylabel("solved", color=_INK)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, metadata={"Date": None})


def _draw_panel(panel: Axes, title: str, points: dict[str, list[dict[str, Any]]]) -> None:
    for name, curve in sorted(points.items(), key=lambda item: item[0] in HIGHLIGHTED):
        _draw_curve(panel, name, curve)
    _label_ends(panel, points)
    panel.set_title(title, loc="left", color=_INK, fontweight="bold")
    panel.set_xscale("log")
    panel.set_xlabel("generated tokens a problem, mean", color=_INK)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(axis="y", color="#e6e9ec", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_INK, which="both")
    left, right = panel.get_xlim()
    panel.set_xlim(left, right * 2.2)  # room for the names


def _draw_curve(panel: Axes, name: str, curve: Sequence[dict[str, Any]]) -> None:
    colour = HIGHLIGHTED.get(name, _GREY)
    tokens = [point["tokens"] for point in curve]
    rates = [point["solved"] / point["problems"] for point in curve]
    strong = name in HIGHLIGHTED
    panel.plot(
        tokens, rates, color=colour, linewidth=2.2 if strong else 1.0, marker="o", markersize=4 if strong else 2.5
    )
    if strong:
        panel.fill_between(
            tokens, [p["low"] for p in curve], [p["high"] for p in curve], color=colour, alpha=0.12, linewidth=0
        )


def _label_ends(panel: Axes, points: dict[str, list[dict[str, Any]]]) -> None:
    """Name each curve at its end; names that would lie on one another are moved apart."""
    ends = sorted(
        (curve[-1]["solved"] / curve[-1]["problems"], curve[-1]["tokens"], name) for name, curve in points.items()
    )
    at = 2.0
    for rate, tokens, name in reversed(ends):
        at = min(rate, at - 0.034)
        colour, weight = HIGHLIGHTED.get(name, _INK), "bold" if name in HIGHLIGHTED else "normal"
        panel.annotate(
            name.replace("_", " "),
            (tokens, rate),
            xytext=(max(curve[-1]["tokens"] for curve in points.values()) * 1.12, at),
            color=colour,
            fontweight=weight,
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#d5dade", "linewidth": 0.6},
        )


def main() -> None:
    """Draw the tasks that there are results of."""
    files = {task: RESULTS / f"search-cpu-{task}.json" for task in TASKS}
    draw({task: json.loads(file.read_text()) for task, file in files.items() if file.exists()}, OUT)
    print(f"written to {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
