"""Making a cluster: on which Ray, of what, and what is left when that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import actors
from actors.ray_session import RaySession
from dendrite.errors import ClusterError, InvalidArgument, ModelError, ModelNotFound

ROOT = Path(__file__).parents[2]


def test_bad_arguments_are_refused_before_anything_starts(tiny_model: Path) -> None:
    wrong: dict[str, Any]
    for wrong in (
        {"workers": 0},
        {"workers": 10**6},
        {"workers": 1.5},
        {"drivers": 0},
        {"shards": 0},
        {"max_calls": 0},
        {"lease_ttl_s": 0},
        {"start_timeout_s": -1},
        {"cpus_per_worker": 0},
        {"kv_tokens": 1},
        {"bogus": 1},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            actors.connect(tiny_model, **wrong)
    with pytest.raises(ModelNotFound, match="nowhere"):
        actors.connect("nowhere")


def test_an_address_where_no_ray_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: .*refused"):
        RaySession("127.0.0.1:1")
    with pytest.raises(ClusterError, match="host:port"):
        RaySession("ray://127.0.0.1:10001")
    with pytest.raises(ClusterError, match="cannot connect to Ray at head: give host:port of the cluster's head"):
        RaySession("head")


def test_what_a_failed_cluster_took_is_free_again(ray_here: None, tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    before = free_cpus()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        actors.connect(tmp_path, workers=1, cpus_per_worker=1)
    with pytest.raises(ClusterError, match="GPU"):
        actors.connect(tiny_model, workers=1, device="cuda")
    with pytest.raises(ClusterError, match="17 CPUs each"):
        actors.connect(tiny_model, workers=1, cpus_per_worker=17)
    deadline = time.monotonic() + 30
    while free_cpus() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free_cpus() == before
    assert ray.is_initialized()


def test_another_process_attaches_and_leaves_ray_running(ray_here: None, tiny_model: Path) -> None:
    program = f"""
import actors
with actors.connect({str(tiny_model)!r}, workers=1, cpus_per_worker=1) as cluster:
    [outcome] = cluster.map_search([__import__("dendrite.search.tasks", fromlist=["x"]).Countdown((1, 2), 3)])
    print(outcome.to_dict()["index"])
"""
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, 0), done.stderr[-2_000:]
    assert ray.is_initialized()
    assert ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()) == 7


def free_cpus() -> float:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free["CPU"]
