"""The example clusters are ones that this Ray's `ray up` accepts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).parents[1] / "cluster.yaml"
ON_PREMISE = PATH.parent / "examples" / "cluster-on-premise.yaml"


def load(path: Path = PATH) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` completes and checks it."""
    full: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


@pytest.mark.parametrize("path", [PATH, ON_PREMISE], ids=["aws", "on-premise"])
def test_ray_accepts_it(path: Path) -> None:
    full = prepared(load(path))
    assert full["head_node_type"] in full["available_node_types"]


@pytest.mark.parametrize("path", [PATH, ON_PREMISE], ids=["aws", "on-premise"])
def test_a_misspelt_field_would_be_found(path: Path) -> None:
    config = load(path)
    config["max_wrokers"] = 3
    with pytest.raises(ValidationError, match="max_wrokers"):
        prepared(config)


def test_gpu_machines_come_and_go_within_limits() -> None:
    config = load()
    gpu = [kind for kind in config["available_node_types"].values() if kind["resources"].get("GPU")]
    assert len(gpu) == 1
    assert 0 <= gpu[0]["min_workers"] <= gpu[0]["max_workers"] <= config["max_workers"]


def test_machines_of_one_s_own_are_all_used() -> None:
    config = load(ON_PREMISE)
    machines = config["provider"]["worker_ips"]
    assert config["provider"]["head_ip"] not in machines
    assert config["min_workers"] == config["max_workers"] == len(set(machines)) == len(machines)


@pytest.mark.parametrize(
    "key", ["rsync_exclude", "setup_commands", "worker_setup_commands", "worker_start_ray_commands"]
)
def test_both_variants_set_machines_up_alike(key: str) -> None:
    assert load()[key] == load(ON_PREMISE)[key]


@pytest.mark.parametrize("path", [PATH, ON_PREMISE], ids=["aws", "on-premise"])
def test_every_machine_installs_this_checkout(path: Path) -> None:
    config = load(path)
    [(mount, source)] = config["file_mounts"].items()
    assert (PATH.parent / source).resolve() == PATH.parent
    assert any(f"pip install -e {mount}" in command for command in config["setup_commands"])
