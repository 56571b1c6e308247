"""What the benchmarks share: the result file, and the summary of repeated runs.

The format is one JSON object a file, `benchmarks/results/<benchmark>-<hardware>-<subject>.json`, with the keys of
`Result` below. A metric is one number under a dotted name; what it was made from is in `raw`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ARCHIVED = ROOT / "benchmarks" / "archived_commit.txt"
"""Git writes the commit there in an archive (`export-subst`)."""


class Result(TypedDict):
    """Content of a result file."""

    benchmark: str
    subject: str
    hardware: str
    commit: str
    command: str
    versions: dict[str, str]
    metrics: dict[str, float]
    raw: dict[str, Any]


class Spread(TypedDict):
    """Repeated measurements of one quantity: median, extremes, and the runs as they came."""

    median: float
    min: float
    max: float
    runs: list[float]


def spread(runs: Sequence[float]) -> Spread:
    """Summarise repeated measurements of one quantity."""
    return Spread(median=statistics.median(runs), min=min(runs), max=max(runs), runs=list(runs))


def write_result(
    *,
    benchmark: str,
    subject: str,
    hardware: str,
    metrics: Mapping[str, float],
    raw: Mapping[str, Any],
    packages: Sequence[str] = (),
    folder: Path = RESULTS,
) -> Path:
    """Write a result file whole, or not at all, and return its path.

    Args:
        benchmark: the module's name under `benchmarks`.
        subject: what was measured, for example a model.
        hardware: short name of the machine, for example `cpu` or `h200`.
        metrics: dotted name to number.
        raw: everything that the metrics were made from.
        packages: distributions whose version matters, besides Python and torch.
        folder: where to write.
    """
    result = Result(
        benchmark=benchmark,
        subject=subject,
        hardware=hardware,
        commit=commit(),
        command=command(benchmark),
        versions=versions(packages),
        metrics={name: _rounded(value) for name, value in metrics.items()},
        raw=dict(raw),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}-{hardware}-{subject}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
    return path


def commit() -> str:
    """Short hash of the checkout's commit, with `-dirty` where the code measured differs from it.

    In a folder made by `git archive` it is the hash that Git has written there.
    """
    try:
        short = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "dendrite", "actors", "benchmarks/*.py")
    except (OSError, subprocess.SubprocessError):
        archived = ARCHIVED.read_text().strip()
        return "0000000-dirty" if archived.startswith("$") else archived[:12]  # else nothing says which code this is
    return f"{short}-dirty" if changed else short


def command(benchmark: str) -> str:
    """How to run the same again."""
    return " ".join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]])


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, torch and `packages`, and the system and processor they ran on."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {"processor": processor()}
    return found | {name: version(name) for name in ("torch", *packages)}


def processor() -> str:
    """The model of the CPU, as Linux names it, and how many this process may use."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{models[0] if models else platform.machine()} x {len(os.sched_getaffinity(0))}"


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _rounded(value: float) -> float:
    """Six significant digits: more would be noise."""
    return float(f"{value:.6g}")
