"""Every example runs as a reader would run it, and does what its text promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Training the packaged model takes much longer than a test may; its parts have tests of their own.
RUN_ELSEWHERE = {"train_countdown.py", "train_text.py"}

EXPECTED = {
    "fork.py": "other ways",
    "json_branches.py": "all valid",
    "search.py": "expansions",
    "cluster.py": "solved",
    "ask_tell.py": "nodes; from",
    "job.py": "6 problems have one result each",
}


def run(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *arguments],
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


def test_a_text_model_is_trained_quantised_and_measured(tmp_path: Path) -> None:
    """In small: the folder that comes of it is read, and the text kept out scored."""
    out = tmp_path / "model"
    assert "kept out: " in run("train_text.py", "--out", str(out), "--smoke", "--minutes", "0.05")
    command = [sys.executable, "-m", "dendrite", "eval", "perplexity", str(out), "--data", str(out / "held_out.txt")]
    text = (out / "held_out.txt").read_text()[:2_000]
    (out / "held_out.txt").write_text(text)
    options = ["--window", "64", "--quantize", "fp8", "--against", str(out), "--device", "cpu", "--json"]
    done = subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["tokens"] > 200
    assert 0.95 < found["ratio"] < 1.05


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES} - RUN_ELSEWHERE == set(EXPECTED)
