"""A machine of the cluster goes away with the worker on it, and the searches go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_searches_go_on_without_a_machine(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.actors.node_loss", str(tmp_path / "found.json")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "in_time": True,
        "errors": [],
        "equal": True,
        "workers": [0, 1],
        "leaked": 0,
    }
