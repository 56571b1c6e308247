"""`dendrite job` submitted to a running Ray by `ray job submit`, as docs/jobs.md shows it."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster as Machines

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"ray job submit (?P<options>.*?)-- (?P<entry>dendrite job run .*?)\n```", re.DOTALL)


@pytest.fixture
def job_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a new Ray's job server."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": True, "dashboard_port": port}
    machines = Machines(initialize_head=True, head_node_args=head)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        machines.shutdown()


@pytest.mark.slow
def test_the_documented_command_runs_a_job_to_its_end(job_server: str, tmp_path: Path) -> None:
    found = COMMAND.search((ROOT / "docs" / "jobs.md").read_text())
    assert found is not None
    documented = shlex.split(found["entry"].replace("\\\n", " "))
    documented[documented.index("--out") + 1] = str(tmp_path / "results.jsonl")
    documented[documented.index("--count") + 1] = "6"
    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", job_server]
    submit += ["--runtime-env-json", json.dumps(environment), "--", sys.executable, "-m", *documented]
    done = subprocess.run(submit, env=os.environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    assert "[6/6]" in done.stdout
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(result["index"] for result in results) == list(range(6))
    assert all("error" not in result for result in results)
