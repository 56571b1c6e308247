"""Where the tree manager of a large cluster saturates, by simulation: 1,000 workers and 100,000 searches at a time.

The simulation (`dendrite.simulate`) is driven by what single operations were measured to cost. Each cost comes from a
result file, which has to be there:

    python -m benchmarks.manager           the manager's time for a node event
    python -m benchmarks.messages          Ray's part of a message, and the rate at which KV moves
    python -m benchmarks.decode --device cuda --shape tinyllama      the time of a decode step by its rows

Three sweeps. With one shard and as many searches a worker, more and more workers: `sim.s1.workers` is the most at which
it keeps up. With all workers, more and more shards: `sim.shards_needed` is the fewest that keep up with the events. The
first shard also places new searches, which no other shard can do: with so many shards, `sim.lead.workers` is the most
workers at which the first one keeps up. What it is to keep up is said in `dendrite.simulate.report`. A sweep that ends
without an answer leaves its metric out, and says so.

Run it with `python -m benchmarks.cluster_sim [--workers N] [--trees N] [--seconds S]`; needs `pip install -e '.[sim]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS, write_result
from dendrite.errors import DendriteError
from dendrite.simulate.cluster import Simulation
from dendrite.simulate.costs import Costs, StepTimes
from dendrite.simulate.report import Report
from dendrite.simulate.workload import Workload

MANAGER, MESSAGES, DECODE = "manager-cpu-topology", "messages-cpu-ray", "decode-h100-tinyllama"
KV_BYTES = 22 * 2 * 4 * 64 * 2
"""KV of a token of the shape that `DECODE` measured: layers, keys and values, KV heads, their width, bytes of bf16."""
ROWS = (1, 8, 64, 256)
WARM_UP_S = 1.0


class MissingCost(DendriteError):
    """A measured cost is not there: names the file, the metric and the command that makes it."""

    def __init__(self, file: Path, metric: str | None = None) -> None:
        self.file, self.metric = str(file), metric
        benchmark = file.name.split("-")[0]
        what = f"{file} is missing" if metric is None else f"{file} has no metric {metric}"
        super().__init__(f"{what}: run python -m benchmarks.{benchmark}")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a cost comes from: `metric` of the result `file`, which was measured at `commit`."""

    file: str
    metric: str
    commit: str
    value: float


class Measurements:
    """Result files of a folder, and a note of what was read from them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, Source] = {}

    def read(self, cost: str, file: str, metric: str) -> float:
        """A measured value, noted as the source of a cost.

        Raises:
            MissingCost: there is no such file, or it has no such metric.
        """
        path = self._folder / f"{file}.json"
        if file not in self._loaded:
            if not path.exists():
                raise MissingCost(path)
            self._loaded[file] = json.loads(path.read_text())
        result = self._loaded[file]
        if metric not in result["metrics"]:
            raise MissingCost(path, metric)
        value = float(result["metrics"][metric])
        self.sources[cost] = Source(path.name, metric, result["commit"], value)
        return value


def read_costs(measured: Measurements) -> Costs:
    """The costs of all operations.

    Raises:
        MissingCost: one has not been measured.
    """
    steps = [measured.read(f"step.rows{rows}", DECODE, f"decode.b{rows}.ms_per_token") / 1e3 for rows in ROWS]
    return Costs(
        step=StepTimes(ROWS, tuple(steps)),
        event_s=1 / measured.read("event_s", MANAGER, "manager.events_per_s"),
        message_s=measured.read("message_s", MESSAGES, "messages.callee_us") / 1e6,
        call_s=measured.read("call_s", MESSAGES, "messages.caller_us") / 1e6,
        round_trip_s=measured.read("round_trip_s", MESSAGES, "messages.round_trip_us") / 1e6,
        kv_bytes=KV_BYTES,
        transfer_bytes_s=measured.read("transfer_bytes_s", MESSAGES, "messages.transfer_bytes_s"),
    )


@dataclass(frozen=True, slots=True)
class Point:
    """One simulated cluster, and the seconds that the simulation took."""

    workload: Workload
    report: Report
    wall_s: float


def simulate(workload: Workload, costs: Costs, seconds: float) -> Point:
    """Simulate one cluster."""
    began = time.perf_counter()
    report = Simulation(workload, costs).run(seconds, WARM_UP_S)
    return Point(workload, report, time.perf_counter() - began)


def grow_workers(full: Workload, costs: Costs, seconds: float, shards: int) -> list[Point]:
    """So many shards and ever more workers, each three times as many or so, until the first shard cannot keep up."""
    points: list[Point] = []
    workers = 1
    while workers <= full.workers and not (points and points[-1].report.lead_saturated):
        trees = max(1, round(full.trees * workers / full.workers))
        points.append(simulate(replace(full, workers=workers, shards=shards, trees=trees), costs, seconds))
        workers = workers * 3 if str(workers)[0] == "1" else round(workers * 10 / 3)
    return points


def grow_shards(full: Workload, costs: Costs, seconds: float, most: int) -> list[Point]:
    """All workers and ever more shards, each twice as many, until the manager keeps up."""
    points: list[Point] = []
    shards = 1
    while shards <= most and not (points and not points[-1].report.saturated):
        points.append(simulate(replace(full, shards=shards), costs, seconds))
        shards *= 2
    return points


def metrics_of(alone: Sequence[Point], shards: Sequence[Point], lead: Sequence[Point]) -> dict[str, float]:
    """The answers of the three sweeps, and the state of the whole cluster with the most shards that were tried."""
    last = shards[-1]
    metrics: dict[str, float] = {}
    for name, points in (("s1", alone), ("lead", lead)):
        if kept_up := [point for point in points if not point.report.lead_saturated]:
            metrics[f"sim.{name}.workers"] = kept_up[-1].workload.workers
            metrics[f"sim.{name}.events_s"] = kept_up[-1].report.events_s
            metrics[f"sim.{name}.searches_s"] = kept_up[-1].report.searches_s
    if not last.report.saturated:
        metrics["sim.shards_needed"] = last.workload.shards
    others = last.report.shard_load[1:]
    return metrics | {
        "sim.shards": last.workload.shards,
        "sim.events_s": last.report.events_s,
        "sim.tokens_s": last.report.tokens_s,
        "sim.searches_s": last.report.searches_s,
        "sim.lead_load": last.report.shard_load[0],
        "sim.other_load": max(others, default=last.report.shard_load[0]),
        "sim.events_of_message": last.report.events_of_message,
        "sim.lag_p99_ms": 1e3 * last.report.lag_p99_s,
        "sim.lead_lag_p99_ms": 1e3 * last.report.lead_lag_p99_s,
        "sim.place_p99_ms": 1e3 * last.report.place_p99_s,
        "sim.worker_load": last.report.worker_load,
        "sim.driver_cores": last.report.driver_cores,
        "sim.prefix_share": last.report.choices["prefix"],
        "sim.transferred_share": last.report.choices["transferred"],
        "sim.moved_gb_s": last.report.moved_bytes_s / 1e9,
    }


def show(points: Sequence[Point]) -> None:
    """Print a table of simulated clusters."""
    table = Table(
        "workers", "shards", "events/s", "lag p99", "keeps up", "first: lag p99", "place p99", "keeps up", "took"
    )
    for point in points:
        report = point.report
        table.add_row(
            f"{point.workload.workers:,}",
            str(point.workload.shards),
            f"{report.events_s:,.0f}",
            f"{1e3 * report.lag_p99_s:,.1f} ms",
            "no" if report.saturated else "yes",
            f"{1e3 * report.lead_lag_p99_s:,.1f} ms",
            f"{1e3 * report.place_p99_s:,.1f} ms",
            "no" if report.lead_saturated else "yes",
            f"{point.wall_s:.0f} s",
        )
    Console(width=120).print(table)


def explain(metrics: Mapping[str, float]) -> str:
    """What the sweeps have found, in a sentence."""

    def told(name: str) -> str:
        workers = metrics.get(f"sim.{name}.workers")
        return "keeps up with not even 1 worker" if workers is None else f"keeps up with {workers:,.0f} workers"

    shards = metrics["sim.shards"]
    needed = f"{shards:.0f} shards" if "sim.shards_needed" in metrics else f"more than {shards:.0f} shards, if any,"
    return (
        f"one shard alone {told('s1')}; {needed} keep up with all workers' events; "
        f"the first of these, which places searches, {told('lead')}"
    )


def main() -> None:
    """Simulate, print and write the result."""
    parser = argparse.ArgumentParser(description="Simulate a large cluster.")
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--trees", type=int, default=100_000, help="searches at a time")
    parser.add_argument("--expansions", type=int, default=60, help="of a search")
    parser.add_argument("--seconds", type=float, default=3.0, help="simulated of each cluster, after a second")
    parser.add_argument("--most-shards", type=int, default=128)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measured costs")
    arguments = parser.parse_args()
    measured = Measurements(arguments.results)
    try:
        costs = read_costs(measured)
        full = Workload(arguments.workers, 1, arguments.trees, expansions=arguments.expansions)
        alone = grow_workers(full, costs, arguments.seconds, 1)
        show(alone)
        shards = grow_shards(full, costs, arguments.seconds, arguments.most_shards)
        show(shards)
        lead = grow_workers(full, costs, arguments.seconds, shards[-1].workload.shards)
        show(lead)
    except DendriteError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    metrics = metrics_of(alone, shards, lead)
    print(explain(metrics))
    raw = {
        "costs": {name: asdict(source) for name, source in measured.sources.items()},
        "kv_bytes": KV_BYTES,
        "warm_up_s": WARM_UP_S,
        "alone": [asdict(point) for point in alone],
        "shards": [asdict(point) for point in shards],
        "lead": [asdict(point) for point in lead],
    }
    path = write_result(
        benchmark="cluster_sim",
        subject=f"w{arguments.workers}",
        hardware="cpu",
        metrics=metrics,
        raw=raw,
        packages=["simpy", "numpy"],
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
