"""The tables of the documentation on an engine that is short of pages, and on memory over a long run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.tables import load, short, table, with_source, with_sources

_PRESSURE: Mapping[str, str] = {
    "demand_pages": "pages that the work asks for",
    "pages": "pages of the pool",
    "utilisation": "share of them that live nodes hold, mean over time",
    "needed": "the same of pages that unfinished leaves read",
    "evicted_pages": "pages taken from cached prompts",
    "dropped_pages": "pages taken from live nodes",
    "preemptions": "generations that had to wait for others",
    "recomputed_tokens": "tokens computed again",
    "tok_s": "tokens/s",
    "enough.tok_s": "tokens/s with pages enough",
}
_PROCESSES: Mapping[str, str] = {
    "worker0": "first model worker",
    "worker1": "second model worker",
    "manager0": "tree manager",
    "desk0": "desk",
    "ingress0": "ingress",
    "search_driver0": "first search driver",
    "search_driver1": "second search driver",
    "driver": "the process that makes the operations",
}


def pressure_block() -> str:
    """W5 with pages for half of what it needs, on a GPU and on the CPU."""
    results = [load("pressure-h100-tinyllama"), load("pressure-cpu-tiny")]
    rows = [
        (label, *(short(result["metrics"][f"pressure.{name}"]) for result in results))
        for name, label in _PRESSURE.items()
    ]
    return with_sources(table(("Beams with pages for half of them", "H100", "CPU"), rows), *results)


def soak_block() -> str:
    """The memory of each process over half an hour of random operations."""
    result = load("soak-cpu-countdown")
    warm_up_s = 60 * result["raw"]["plan"]["warm_up_minutes"]
    samples = [sample["memory"] for sample in result["raw"]["samples"] if sample["seconds"] >= warm_up_s]
    private, allocated = (result["raw"]["slopes_mb_h"][kind] for kind in ("private", "allocated"))
    rows = [
        (
            label,
            *(short(sample[name]["private"]) for sample in (samples[0], samples[-2])),
            _interval(private[name]),
            _interval(allocated.get(name)),
        )
        for name, label in _PROCESSES.items()
        if name in private
    ]
    header = (
        "Memory of a process",
        "MB after the warm-up",
        "half an hour later",
        "MB/h (95 %)",
        "allocated, MB/h (95 %)",
    )
    return with_source(table(header, rows), result)


def _interval(trend: Mapping[str, Any] | None) -> str:
    return "–" if trend is None else f"{trend['slope']:.1f} ({trend['low']:.1f} – {trend['high']:.1f})"


OPERATION_BLOCKS: dict[str, Callable[[], str]] = {"pressure": pressure_block, "soak": soak_block}
