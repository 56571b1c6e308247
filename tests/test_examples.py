"""Every example runs as a reader would run it, and does what its text promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Training the packaged model takes much longer than a test may; its parts have tests of their own.
RUN_ELSEWHERE = {"train_countdown.py"}

EXPECTED = {
    "fork.py": "other ways",
    "json_branches.py": "all valid",
    "search.py": "expansions",
    "cluster.py": "solved",
    "ask_tell.py": "nodes; from",
    "job.py": "6 problems have one result each",
}


def run(example: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return done.stdout


@pytest.mark.parametrize("example", sorted(EXPECTED))
def test_an_example_runs(example: str) -> None:
    assert EXPECTED[example] in run(example)


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES} - RUN_ELSEWHERE == set(EXPECTED)
