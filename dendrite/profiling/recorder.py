"""Measures the phases of engine steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from dendrite.engine.clock import Phase, StepClock
from dendrite.engine.plan import Plan

Row: TypeAlias = Literal["schedule", "launch", "device", "sample", "post"]
"""A part of a step's wall time. device: the host has nothing to do but wait for the model; on the CPU it runs it."""
ROWS: tuple[Row, ...] = ("schedule", "launch", "device", "sample", "post")
Kind: TypeAlias = Literal["prefill", "decode", "mixed"]
"""What a step runs: given tokens (also single ones, whose hidden state was lost), sampled ones, or both."""

_ROW_OF: dict[Phase, Row] = {
    "schedule": "schedule",
    "launch": "launch",
    "model": "device",
    "wait": "device",
    "sample": "sample",
    "post": "post",
}
_QUEUEING: frozenset[Phase] = frozenset(("launch", "model"))
_Marks: TypeAlias = tuple[torch.cuda.Event, torch.cuda.Event]


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One engine step: its kind, how many tokens each decoding row made in it, and how it spent its time.

    `rows` counts tokens that went through the model at a time. `ns` sums to the wall time of the step. `span_us` is the
    time on the GPU from the begin of the step's work (or the end of the work before, if that is later) to its end.
    """

    kind: Kind
    burst: int
    rows: int
    ns: dict[Row, int]
    span_us: float | None = None


def kind_of(plan: Plan) -> Kind:
    """What a plan that is not empty runs."""
    if not plan.decodes:
        return "prefill"
    return "mixed" if plan.chunks or plan.retips else "decode"


class PhaseRecorder(StepClock):
    """Keeps the times of every step that comes to its end and has run something.

    On CUDA a call of the model only queues its kernels. That counts as `launch`, and the host then waits for them, as
    `device`, which it does not do otherwise: prefill steps lose their overlap with the host's work for the next one.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._phase: Phase = "schedule"
        self._since = 0
        self._ns: dict[Row, int] = {}
        self._marks: _Marks | None = None
        self._steps: list[StepTimes] = []
        self._spans: list[_Marks | None] = []  # of the steps, while the GPU may still be at work on them

    def begin(self) -> None:
        """See `StepClock`."""
        self._ns = dict.fromkeys(ROWS, 0)
        self._marks = None
        self._phase, self._since = "schedule", time.perf_counter_ns()

    def enter(self, phase: Phase) -> None:
        """See `StepClock`."""
        self._leave()
        if self._on_cuda and phase in _QUEUEING and self._marks is None:
            self._marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._marks[0].record()
        self._phase = phase

    def end(self, plan: Plan) -> None:
        """See `StepClock`."""
        self._leave()
        if not plan.empty:
            rows = len(plan.decodes) + len(plan.retips) + sum(chunk.count for chunk in plan.chunks)
            self._steps.append(StepTimes(kind_of(plan), plan.burst, rows, self._ns))
            self._spans.append(self._marks)

    def steps(self) -> list[StepTimes]:
        """All steps so far, in order."""
        if self._on_cuda:
            torch.cuda.synchronize()
        return [
            step if marks is None else replace(step, span_us=1e3 * marks[0].elapsed_time(marks[1]))
            for step, marks in zip(self._steps, self._spans, strict=True)
        ]

    def _leave(self) -> None:
        """Charge the time since the last call to what it was spent on."""
        if self._on_cuda and self._phase in _QUEUEING and self._marks is not None:
            self._marks[1].record()
            if self._phase == "model":
                self._charge("launch")
                torch.cuda.synchronize()
        self._charge(_ROW_OF[self._phase])

    def _charge(self, row: Row) -> None:
        now = time.perf_counter_ns()
        self._ns[row] += now - self._since
        self._since = now
