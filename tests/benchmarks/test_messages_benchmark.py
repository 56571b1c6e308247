"""The benchmark of messages measures something on a real Ray, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, json, ray
from benchmarks.messages import TRANSFER_BYTES, measure
ray.init("local", include_dashboard=False, log_to_driver=False, object_store_memory=4 * TRANSFER_BYTES)
print(json.dumps(asyncio.run(measure(runs=2, calls=640))))
ray.shutdown()
"""


@pytest.mark.slow
def test_every_cost_is_measured() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: len(each["runs"]) for name, each in found.items()} == {
        "messages.callee_us": 2,
        "messages.caller_us": 2,
        "messages.round_trip_us": 2,
        "messages.transfer_bytes_s": 2,
    }
    assert all(run > 0 for each in found.values() for run in each["runs"])
