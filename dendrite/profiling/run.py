"""Profiles an engine under a workload."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dendrite.engine.clock import StepClock
from dendrite.engine.engine import Engine
from dendrite.profiling.load import Load
from dendrite.profiling.recorder import PhaseRecorder, StepTimes
from dendrite.profiling.report import Profile, by_kind, operator_rows
from dendrite.profiling.tracing import trace
from dendrite.profiling.workloads import random_prompts


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: runs that are timed, engine steps of another run that are traced, operators reported."""

    runs: int = 3
    traced_steps: int = 64
    operators: int = 10


@dataclass(frozen=True, slots=True)
class TimedRun:
    """All engine steps of some work, and the seconds of the whole."""

    steps: list[StepTimes]
    seconds: float


def time_steps(work: Callable[[], object], engine: Engine, device: torch.device) -> TimedRun:
    """Measure the phases of the engine's steps in `work`."""
    recorder = PhaseRecorder(device)
    engine.set_clock(recorder)
    began = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - began
    finally:
        engine.set_clock(StepClock())
    return TimedRun(recorder.steps(), seconds)


def profile_engine(
    engine: Engine, load: Load, *, model: str, device: torch.device, effort: Effort, trace_file: Path | None = None
) -> Profile:
    """Run a workload to warm up, then some times to measure its phases, then once under torch.profiler.

    The profiler slows the host down, so that the phases are never measured under it.

    Args:
        engine: idle; what it holds stays.
        load: the workload.
        model: a name for the report.
        device: that the engine runs on.
        effort: how much to measure.
        trace_file: where the Chrome trace goes; None writes none.
    """
    work = partial(load.run, engine, random_prompts(engine.vocab_size))
    work()
    timed = [time_steps(work, engine, device) for _ in range(effort.runs)]
    steps, seconds = [step for run in timed for step in run.steps], sum(run.seconds for run in timed)
    traced = trace(work, engine.set_clock, device, most_steps=effort.traced_steps, path=trace_file)
    return Profile(
        workload=load.name,
        model=model,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        sizes=load.sizes,
        runs=effort.runs,
        seconds=seconds,
        seconds_outside=seconds - sum(sum(step.ns.values()) for step in steps) / 1e9,
        kinds=by_kind(steps),
        traced=traced.steps,
        operators=operator_rows(traced, effort.operators),
    )
