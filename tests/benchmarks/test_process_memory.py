from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.process_memory import family, memory, ray_role

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def test_a_process_is_found_and_measured_until_it_ends() -> None:
    program = "import sys; held = bytearray(b'x') * 50_000_000; print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found = memory(process.pid)
        assert found is not None
        assert 50.0 < found.private < 500.0
        assert found.resident >= found.private
        assert family()[0] == os.getpid()
        assert process.pid in family()
        assert family(process.pid) == [process.pid]
    finally:
        process.communicate()
    assert memory(process.pid) is None
    assert process.pid not in family()


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::ModelWorker", "ModelWorker"),
        ("ray::ModelWorker.expand", "ModelWorker"),
        ("ray::ServeReplica:dendrite:Desk", "Desk"),
        ("ray::ServeReplica:dendrite:Ingress.handle_request", "Ingress"),
        ("ray::IDLE", None),
        ("/opt/ray/core/src/ray/raylet/raylet", "raylet"),
        ("something", None),
    ],
)
def test_rays_processes_tell_what_they_run(title: str, role: str | None) -> None:
    program = "print('ready', flush=True); import sys; sys.stdin.read()"
    process = subprocess.Popen(
        [title, "-c", program], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert ray_role(process.pid) == role
    finally:
        process.communicate()
    assert ray_role(process.pid) is None
