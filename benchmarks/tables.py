"""Result files as Markdown tables, each with the command, commit, hardware and versions that it comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(stem: str) -> dict[str, Any]:
    """The result file of that name.

    Raises:
        FileNotFoundError: there is none.
    """
    return dict(json.loads((RESULTS / f"{stem}.json").read_text()))


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = ("---", *("---:" for _ in header[1:]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def with_source(text: str, result: dict[str, Any]) -> str:
    """The text, and below it where its figures come from."""
    return f"{text}\n\n{_source(result)}"


def with_sources(text: str, *results: dict[str, Any]) -> str:
    """The same for figures from several results."""
    return f"{text}\n\n" + "\n".join(f"- {_source(result)}" for result in results)


def short(value: float) -> str:
    """Three significant digits, never in scientific form."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure(value: float | None) -> str:
    """A number as `short` has it, or a dash where there is none."""
    return "–" if value is None else short(value)


def _source(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` at {result['commit']}, {result['hardware']}; {versions}."
