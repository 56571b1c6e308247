"""`dendrite job` on a Ray that runs already, as one that is submitted there: no terminal, and RAY_ADDRESS set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
PATIENCE_S = 150.0
COUNT = 12
BEGIN = ["run", "--task", "countdown", "--count", str(COUNT), "--out", "o.jsonl", "--checkpoint", "searches", "--sort"]
BEGIN += ["--workers", "2", "--concurrency", "4", "--budget-tokens", "400"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-m", "dendrite", "job", *arguments],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(parent: int, name: str) -> Iterator[int]:
    """The processes that `parent` has started, whose command line tells `name`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and name in (folder / "cmdline").read_text():
                yield int(folder.name)
        except OSError:
            continue  # it ended in the meantime


def model_workers() -> set[int]:
    """The model workers on the Ray of this process."""
    return {pid for raylet in children(os.getpid(), "raylet") for pid in children(raylet, "ray::ModelWorker")}


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_whole(folder: Path, out: str) -> None:
    assert f"[{COUNT}/{COUNT}]" in out
    found = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert [line["index"] for line in found] == list(range(COUNT))
    assert all("error" not in line and line["tokens"] <= 400 for line in found)
    traces = sorted(trace.name for trace in (folder / "o.jsonl.traces").iterdir())
    assert traces == [f"{index:05}.jsonl" for index in range(COUNT)]
    assert ray.is_initialized()


def test_one_result_each_though_a_worker_is_killed(ray_here: None, tmp_path: Path) -> None:
    others = model_workers()
    job = start(tmp_path, *BEGIN)
    wait_until(lambda: line_count(tmp_path / "o.jsonl") >= 2, job)
    os.kill(min(model_workers() - others), signal.SIGKILL)
    out, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, err
    check_whole(tmp_path, out)


@pytest.mark.slow
def test_one_result_each_though_the_job_is_killed(ray_here: None, tmp_path: Path) -> None:
    others = model_workers()
    killed = start(tmp_path, *BEGIN)
    wait_until(lambda: line_count(tmp_path / "o.jsonl") >= 2, killed)
    killed.kill()
    killed.communicate()
    assert 2 <= line_count(tmp_path / "o.jsonl") < COUNT
    deadline = time.monotonic() + PATIENCE_S
    while model_workers() - others:
        assert time.monotonic() < deadline, "workers outlive the job that made them"
        time.sleep(0.1)
    resumed = start(tmp_path, "resume", "o.jsonl")
    out, err = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 0, err
    check_whole(tmp_path, out)
