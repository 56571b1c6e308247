"""What a profile found, in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dendrite.profiling.recorder import ROWS, Kind, Row, StepTimes
from dendrite.profiling.tracing import Traced

KINDS: tuple[Kind, ...] = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Microseconds a step over all steps of a kind, and the share of their wall time."""

    mean_us: float
    p50_us: float
    p99_us: float
    share: float


@dataclass(frozen=True, slots=True)
class KindTimes:
    """The steps of one kind.

    A burst of n decode steps counts as n steps that each took an n-th of it. `calls` counts the engine's own steps,
    `rows` is the mean number of tokens that went through the model in one. `phases` sum to `whole`. `gpu` is the time
    between the begin and the end of a step's work on the GPU, which goes on beside the phases; None off CUDA.
    """

    steps: int
    calls: int
    rows: float
    phases: dict[Row, Quantity]
    whole: Quantity
    gpu: Quantity | None


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One kernel (on the CPU, one operator), a step of its kind; `share` is of the time in all of them."""

    name: str
    us_per_step: float
    calls_per_step: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of one workload.

    `seconds` are those of all measured runs, `seconds_outside` the part of them between the engine's steps: forks,
    submissions, the workload itself. `operators` come from another run, under torch.profiler, `traced` steps of it.
    """

    workload: str
    model: str
    device: str
    sizes: dict[str, int]
    runs: int
    seconds: float
    seconds_outside: float
    kinds: dict[Kind, KindTimes]
    traced: dict[Kind, int]
    operators: dict[Kind, list[OperatorRow]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def by_kind(steps: Sequence[StepTimes]) -> dict[Kind, KindTimes]:
    """The times of the steps, apart by kind; kinds that did not occur are left out."""
    found = {kind: [step for step in steps if step.kind == kind] for kind in KINDS}
    return {kind: _times(of_kind) for kind, of_kind in found.items() if of_kind}


def operator_rows(traced: Traced, most: int) -> dict[Kind, list[OperatorRow]]:
    """The operators of most time of each kind of step, at most so many."""
    rows: dict[Kind, list[OperatorRow]] = {}
    for kind, steps in traced.steps.items():
        of_kind = [operator for operator in traced.operators if operator.kind == kind]
        whole = sum(operator.us for operator in of_kind) or 1.0
        rows[kind] = [
            OperatorRow(each.name, each.us / steps, each.calls / steps, each.us / whole) for each in of_kind[:most]
        ]
    return rows


def _times(steps: Sequence[StepTimes]) -> KindTimes:
    bursts = [step.burst for step in steps]
    walls = [sum(step.ns.values()) / 1e3 for step in steps]
    total = sum(walls)
    spans = [step.span_us for step in steps if step.span_us is not None]
    return KindTimes(
        steps=sum(bursts),
        calls=len(steps),
        rows=sum(step.rows for step in steps) / len(steps),
        phases={row: _quantity([step.ns[row] / 1e3 for step in steps], bursts, total) for row in ROWS},
        whole=_quantity(walls, bursts, total),
        gpu=_quantity(spans, bursts, total) if len(spans) == len(steps) else None,
    )


def _quantity(per_call: Sequence[float], bursts: Sequence[int], total: float) -> Quantity:
    """Summarise microseconds of engine steps that were each good for `bursts` steps."""
    each = sorted(us / burst for us, burst in zip(per_call, bursts, strict=True) for _ in range(burst))
    return Quantity(
        mean_us=sum(each) / len(each),
        p50_us=_percentile(each, 0.5),
        p99_us=_percentile(each, 0.99),
        share=sum(per_call) / total if total else 0.0,
    )


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
