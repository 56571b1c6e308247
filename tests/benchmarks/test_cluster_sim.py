"""The simulation's costs come from result files, and from nowhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simpy")

from benchmarks import cluster_sim
from benchmarks.cluster_sim import DECODE, MANAGER, MESSAGES, Measurements, MissingCost, read_costs
from dendrite.simulate.workload import Workload

METRICS = {
    MANAGER: {"manager.events_per_s": 10_000.0},
    MESSAGES: {
        "messages.callee_us": 50.0,
        "messages.caller_us": 100.0,
        "messages.round_trip_us": 800.0,
        "messages.transfer_bytes_s": 2e9,
    },
    DECODE: {f"decode.b{rows}.ms_per_token": 1.0 + rows / 100 for rows in (1, 8, 64, 256)},
}


def write(folder: Path, metrics: dict[str, dict[str, float]]) -> Path:
    for name, values in metrics.items():
        (folder / f"{name}.json").write_text(json.dumps({"commit": "0123abc", "metrics": values}))
    return folder


def test_costs_are_what_was_measured(tmp_path: Path) -> None:
    measured = Measurements(write(tmp_path, METRICS))
    costs = read_costs(measured)
    assert costs.event_s == pytest.approx(1e-4)
    assert costs.message_s == pytest.approx(50e-6)
    assert costs.step.of(64) == pytest.approx(1.64e-3)
    assert measured.sources["event_s"].file == f"{MANAGER}.json"
    assert {source.commit for source in measured.sources.values()} == {"0123abc"}


@pytest.mark.parametrize("file", sorted(METRICS))
def test_a_missing_file_is_an_error_that_says_how_to_make_it(file: str, tmp_path: Path) -> None:
    write(tmp_path, {name: values for name, values in METRICS.items() if name != file})
    with pytest.raises(MissingCost, match=rf"{file}.*run python -m benchmarks\.{file.split('-')[0]}"):
        read_costs(Measurements(tmp_path))


@pytest.mark.parametrize(("file", "metric"), [(file, metric) for file in METRICS for metric in METRICS[file]])
def test_a_missing_metric_is_an_error_that_names_it(file: str, metric: str, tmp_path: Path) -> None:
    less: dict[str, Any] = {**METRICS, file: {name: 1.0 for name in METRICS[file] if name != metric}}
    with pytest.raises(MissingCost, match=metric):
        read_costs(Measurements(write(tmp_path, less)))


def test_the_sweeps_find_where_the_manager_saturates(tmp_path: Path) -> None:
    costs = read_costs(Measurements(write(tmp_path, METRICS)))
    full = Workload(workers=10, shards=1, trees=200, expansions=20)
    alone = cluster_sim.grow_workers(full, costs, 1.0, 1)
    assert [point.workload.workers for point in alone] == [1, 3, 10][: len(alone)]
    assert alone[-1].report.saturated
    assert alone[-1].report.lead_saturated
    shards = cluster_sim.grow_shards(full, costs, 1.0, most=64)
    assert not shards[-1].report.saturated
    assert all(point.report.saturated for point in shards[:-1])
    lead = cluster_sim.grow_workers(full, costs, 1.0, shards[-1].workload.shards)
    metrics = cluster_sim.metrics_of(alone, shards, lead)
    # The events of all workers, and what a shard takes in a second, bound the answer from below.
    assert metrics["sim.shards_needed"] == shards[-1].workload.shards >= metrics["sim.events_s"] / 10_000
    assert all(math.isfinite(value) for value in metrics.values())
    assert f"{shards[-1].workload.shards} shards keep up" in cluster_sim.explain(metrics)
    without = {name: value for name, value in metrics.items() if name != "sim.shards_needed" and ".workers" not in name}
    assert "not even 1 worker" in cluster_sim.explain(without)
    assert "more than" in cluster_sim.explain(without)
