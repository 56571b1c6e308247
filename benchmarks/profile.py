"""Where the time of a step goes in W1, W2 and W3: microseconds by phase, and what the host takes beside the model.

    python -m benchmarks.profile [--model NAME | --shape NAME] [--device cpu|cuda] [--runs N] [--before FILE] [--quick]

A figure is the least, over the runs, of a phase's median over the decode steps of a run: what disturbs a run only adds
to it. `host_us` sums the phases without `device`. With `--before`, a result of the same benchmark on other code, the
file holds its figures too, and the ratios of `host_us` to them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, Spread, spread, write_result
from benchmarks.machine import hardware_name, installed
from benchmarks.models import SHAPES
from dendrite import Engine, EngineConfig
from dendrite.model.decoder import Decoder
from dendrite.profiling.load import Load
from dendrite.profiling.recorder import ROWS
from dendrite.profiling.report import by_kind, operator_rows
from dendrite.profiling.run import TimedRun, time_steps
from dendrite.profiling.tracing import trace
from dendrite.profiling.workloads import random_prompts

_TRACED_STEPS = 48
_OPERATORS = 10


@dataclass(frozen=True, slots=True)
class Case:
    """A workload to profile, and its sizes."""

    name: str
    workload: str
    sizes: dict[str, int]


SMALL = (
    Case("W1", "W1", {"prompt": 64, "tokens": 128}),
    Case("W2_n64", "W2", {"prompt": 256, "tokens": 32, "branches": 64}),
    Case("W3_f1", "W3", {"prompt": 128, "tokens": 8, "expansions": 16, "in_flight": 1}),
    Case("W3_f16", "W3", {"prompt": 128, "tokens": 8, "expansions": 64, "in_flight": 16}),
)
"""For a CPU."""
DESIGN = (
    Case("W1", "W1", {}),
    Case("W2_n64", "W2", {"branches": 64}),
    Case("W2_n256", "W2", {"branches": 256}),
    Case("W3_f1", "W3", {"in_flight": 1}),
    Case("W3_f16", "W3", {"in_flight": 16}),
)
"""The design's sizes, for a GPU."""


def phase_spreads(runs: Sequence[TimedRun]) -> dict[str, Spread]:
    """Microseconds of each phase of a decode step, of the whole, and of the host's phases together, over the runs."""
    found = [by_kind(run.steps)["decode"] for run in runs]
    spreads: dict[str, Spread] = {row: spread([times.phases[row].p50_us for times in found]) for row in ROWS}
    host = [sum(times.phases[row].p50_us for row in ROWS if row != "device") for times in found]
    return {**spreads, "host": spread(host), "whole": spread([times.whole.p50_us for times in found])}


def measure(
    engine: Engine, cases: Sequence[Case], runs: int, device: torch.device
) -> tuple[dict[str, float], dict[str, Any]]:
    """Profile all cases, which take turns: metrics, and what they were made from."""
    prompts = random_prompts(engine.vocab_size)
    loads = {case.name: Load.of(case.workload, case.sizes, engine.longest_context) for case in cases}
    works = {name: partial(load.run, engine, prompts) for name, load in loads.items()}
    timed: dict[str, list[TimedRun]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(runs):
        for name, work in works.items():
            timed[name].append(time_steps(work, engine, device))
    metrics: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for name, work in works.items():
        spreads = phase_spreads(timed[name])
        metrics |= {f"profile.{name}.{row}_us": found["min"] for row, found in spreads.items()}
        operators = operator_rows(
            trace(work, engine.set_clock, device, most_steps=_TRACED_STEPS, path=None), _OPERATORS
        )
        raw[name] = {
            "sizes": loads[name].sizes,
            "phases": spreads,
            "operators": {kind: [asdict(row) for row in rows] for kind, rows in operators.items()},
        }
        print(f"{name:8}" + "".join(f" {row} {found['min']:,.1f}" for row, found in spreads.items()), flush=True)
    return metrics, raw


def compared(metrics: dict[str, float], before: Path | None) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics with their ratios to those of an older result, and what that was; nothing without one."""
    if before is None:
        return metrics, {}
    older = json.loads(before.read_text())
    ratios = {
        name.removesuffix("_us") + "_ratio": value / older["metrics"][name]
        for name, value in metrics.items()
        if name.endswith(".host_us") and name in older["metrics"]
    }
    kept = {name: older[name] for name in ("commit", "command", "metrics")}
    return metrics | ratios, {"before": {**kept, "phases": _phases_of(older["raw"])}}


def _phases_of(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: found["phases"] for name, found in raw["cases"].items()}


def main() -> None:
    """Read the command line, profile, print and write the result."""
    parser = argparse.ArgumentParser(description="The time of a step by phase.")
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--before", type=Path, help="an older result to compare with")
    parser.add_argument("--quick", action="store_true", help="small sizes on CUDA too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    if given.before is not None and not given.before.is_file():
        parser.error(f"--before: there is no file {given.before}")
    device = torch.device(given.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # a pool of threads would add its own waits to the phases
    config = EngineConfig(device=given.device, max_running=256)
    if given.shape is None:
        engine = Engine.from_pretrained(given.model, config=config)
    else:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        engine = Engine(Decoder.random(SHAPES[given.shape], dtype, device=device), config=config)
    with engine:
        cases = SMALL if given.quick or device.type == "cpu" else DESIGN
        metrics, raw = measure(engine, cases, given.runs, device)
    metrics, before = compared(metrics, given.before)
    subject = given.shape or Path(given.model).name
    path = write_result(
        benchmark="profile",
        subject=f"{subject}-quick" if given.quick else subject,
        hardware=hardware_name(device),
        metrics=metrics,
        raw={"runs": given.runs, "cases": raw, **before},
        packages=installed(("triton", "flashinfer-python")),
        folder=given.out,
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
