"""`dendrite serve`, as a shell runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from benchmarks.process_memory import family, ray_role
from dendrite.commands import serve
from dendrite.errors import ServerError
from serve_apps.run import run
from tests.serve_apps.serving import PROMPT, Served

ROOT = Path(__file__).parents[2]
START = """
from serve_apps.run import run
run(model="countdown", workers=1, local={local}, host="127.0.0.1", port=0, keys=None)
"""


@pytest.mark.parametrize("local", [True, False])
def test_a_server_serves_until_it_is_interrupted(local: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(local=local)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = said.split()[2].rstrip(",")
        with httpx.Client(base_url=url, timeout=60.0) as client:
            body = {"model": "countdown", "prompt": PROMPT, "max_tokens": 4}
            assert client.post("/v1/completions", json=body).status_code == 200
        if not local and hasattr(os, "sched_getaffinity"):
            check_cores(process.pid)
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=30.0)
    finally:
        process.kill()
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints
    assert "failed" not in rest + complaints


def check_cores(server: int) -> None:
    """Model workers have cores, if the machine has two, that are not all of them."""
    allowed = [os.sched_getaffinity(each) for each in family(server) if ray_role(each) == "ModelWorker"]
    assert allowed
    own = os.sched_getaffinity(0)
    assert all(cores < own or len(own) == 1 for cores in allowed)


def test_a_taken_port_is_said(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(ServerError, match=str(port)):
        run(model="countdown", workers=1, local=True, host="127.0.0.1", port=port, keys=None)


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from dendrite.cli import app

    asked: dict[str, object] = {}

    class Registered:
        def load(self) -> object:
            return lambda **options: asked.update(options)

    monkeypatch.setattr(serve, "entry_points", lambda group: [Registered()] if group == "dendrite.servers" else [])
    result = CliRunner().invoke(app, ["serve", "--model", "m", "--port", "0", "--local"])
    assert result.exit_code == 0, result.output
    assert asked == {"model": "m", "workers": 1, "local": True, "host": "127.0.0.1", "port": 0, "keys": None}
    refused = CliRunner().invoke(app, ["serve", "--workers", "2", "--local"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "workers=2" in refused.stderr
