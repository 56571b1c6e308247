"""A search on the real engine whose process is killed goes on from its trace as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
# The target has no solution, so that the search goes on to the end of its budget.
PROGRAM = """
import json, sys
import torch
torch.set_num_threads(1)
from dendrite import Budget, Engine, run_search
from dendrite.search.tasks import Countdown
engine = Engine.from_pretrained("countdown", device="cpu")
settings = json.loads(sys.argv[2])
result = run_search(Countdown((3, 7, 8, 25), 99), engine, budget=Budget(expansions=200), seed=3, children=1,
                    trace=sys.argv[1], resume=True, **settings)
print(json.dumps({**result.to_dict(), "seconds": 0, "decoded": engine.stats().decode_tokens}))
"""


def start(trace: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(trace), json.dumps(settings)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(out)
    return result


def landed(trace: Path) -> list[dict[str, Any]]:
    if not trace.exists():
        return []
    lines = trace.read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == "children"]


@pytest.mark.parametrize(
    "settings", [pytest.param({"in_flight": 1}, marks=pytest.mark.slow), {"in_flight": 8, "ordered": True}]
)
def test_kill_9_and_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    expected = finish(start(tmp_path / "whole.jsonl", settings))
    assert (expected["expansions"], expected["stop_reason"]) == (200, "expansions")

    trace = tmp_path / "killed.jsonl"
    process = start(trace, settings)
    deadline = time.monotonic() + 120
    while len(landed(trace)) < 100 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "killed while it was searching"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(landed(trace))
    assert 100 <= before < 200

    resumed = finish(start(trace, settings))
    decoded, whole = resumed.pop("decoded"), expected.pop("decoded")
    assert resumed == expected
    assert decoded < whole * (200 - before + 10) / 200 * 1.5, "what had landed is not generated again"
    calls = [event["call"] for event in landed(trace)]
    assert sorted(calls) == list(range(200)), "no expansion is made twice, and none is lost"
    made = [[child["tokens"] for child in event["children"]] for event in landed(trace)]
    assert made == [[child["tokens"] for child in event["children"]] for event in landed(tmp_path / "whole.jsonl")]
