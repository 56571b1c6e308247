"""Records engine steps with torch.profiler: a Chrome trace with the phases as ranges, and the time by operator."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dendrite.engine.clock import Phase, StepClock
from dendrite.engine.plan import Plan
from dendrite.profiling.recorder import Kind, kind_of

STEP_RANGE = "dendrite.step"
_PREFIX = "dendrite."


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One kernel, or on the CPU one operator without those it calls, over the traced steps of a kind.

    A kernel that is launched early waits on the device for the one before it. That wait counts for the other alone, so
    the kernels' times sum to the time in which the device is busy.
    """

    name: str
    kind: Kind
    us: float
    calls: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What was recorded: model steps by kind, and all operators in order of their time."""

    steps: dict[Kind, int]
    operators: list[OperatorTime]


class _TraceClock(StepClock):
    """Marks the steps and phases as ranges of a running profile, which it ends after so many steps."""

    def __init__(self, profiler: profile, most: int, device: torch.device) -> None:
        self._profiler, self._most, self._on_cuda = profiler, most, device.type == "cuda"
        self._open: list[record_function] = []
        self.steps: list[tuple[Kind, int] | None] = []  # kind and burst; None for one that had nothing to run
        self.recording = True

    def begin(self) -> None:
        self._leave(0)
        self._push(STEP_RANGE)
        self._push(_PREFIX + "schedule")

    def enter(self, phase: Phase) -> None:
        self._leave(1)
        self._push(_PREFIX + phase)

    def end(self, plan: Plan) -> None:
        self._leave(0)
        if self.recording:
            self.steps.append(None if plan.empty else (kind_of(plan), plan.burst))
            if len(self.steps) == self._most:
                self.stop()

    def stop(self) -> None:
        """End the profile, unless it has ended."""
        self._leave(0)
        if self.recording:
            self.recording = False
            if self._on_cuda:
                torch.cuda.synchronize()
            self._profiler.stop()

    def _push(self, name: str) -> None:
        if self.recording:
            self._open.append(record_function(name))
            self._open[-1].__enter__()

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            self._open.pop().__exit__(None, None, None)


def trace(
    work: Callable[[], object],
    set_clock: Callable[[StepClock], None],
    device: torch.device,
    *,
    most_steps: int,
    path: Path | None,
) -> Traced:
    """Profile the first engine steps of `work`.

    Args:
        work: what makes the steps.
        set_clock: `Engine.set_clock`; a plain clock is set again in the end.
        device: that the engine runs on.
        most_steps: the profile ends after so many engine steps; `work` goes on.
        path: of the Chrome trace, packed if it ends in `.gz`; None writes none.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    profiler = profile(activities=activities)
    clock = _TraceClock(profiler, most_steps, device)
    set_clock(clock)
    profiler.start()
    try:
        work()
    finally:
        set_clock(StepClock())
        clock.stop()
    if path is not None:
        profiler.export_chrome_trace(str(path))
    kinds = [step[0] if step is not None else None for step in clock.steps]
    made: dict[Kind, int] = defaultdict(int)
    for kind, burst in filter(None, clock.steps):
        made[kind] += burst
    return Traced(dict(made), _operators(profiler.events(), kinds, device))


def _operators(events: Sequence[Any], kinds: Sequence[Kind | None], device: torch.device) -> list[OperatorTime]:
    """The time by operator, where each is of the step that began last before it; `kinds` are those of the steps."""
    on_cuda = device.type == "cuda"
    wanted = "CUDA" if on_cuda else "CPU"
    begins = sorted(
        event.time_range.start for event in events if event.name == STEP_RANGE and event.device_type.name == "CPU"
    )
    spent: dict[tuple[str, Kind], list[float]] = defaultdict(list)
    wanted_events = [
        event for event in events if event.device_type.name == wanted and not event.name.startswith(_PREFIX)
    ]
    if on_cuda:
        own = added([(event.time_range.start, event.time_range.end) for event in wanted_events])
    else:
        own = [event.self_cpu_time_total for event in wanted_events]
    for event, us in zip(wanted_events, own, strict=True):
        at = bisect.bisect_right(begins, event.time_range.start) - 1
        kind = kinds[at] if 0 <= at < len(kinds) else None
        if kind is not None:
            spent[event.name, kind].append(us)
    found = [OperatorTime(name, kind, sum(times), len(times)) for (name, kind), times in spent.items()]
    return sorted(found, key=lambda row: -row.us)


def added(spans: Sequence[tuple[float, float]]) -> list[float]:
    """What each span (start, end) adds to the time that those of earlier starts cover; they sum to all that is covered.

    ::

        ----------            adds 10
          ----                adds 0
              --------        adds 4
    """
    found, covered = [0.0] * len(spans), float("-inf")
    for at in sorted(range(len(spans)), key=lambda at: spans[at]):
        start, end = spans[at]
        found[at] = max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return found
