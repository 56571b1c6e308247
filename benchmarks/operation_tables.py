"""The table of the documentation on an engine that is short of pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.tables import load, short, table, with_sources

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


def pressure_block() -> str:
    """W5 with pages for half of what it needs, on a GPU and on the CPU."""
    results = [load("pressure-h100-tinyllama"), load("pressure-cpu-tiny")]
    rows = [
        (label, *(short(result["metrics"][f"pressure.{name}"]) for result in results))
        for name, label in _PRESSURE.items()
    ]
    return with_sources(table(("Beams with pages for half of them", "H100", "CPU"), rows), *results)


OPERATION_BLOCKS: dict[str, Callable[[], str]] = {"pressure": pressure_block}
