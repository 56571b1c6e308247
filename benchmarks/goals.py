"""What the tree workloads are held against: the design's goals, and vLLM 0.25 on an H200."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common import Spread


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal, and the measured figure of vLLM; None where there is none."""

    goal: float | None
    vllm: float | None


GOALS: dict[str, dict[str, Goal]] = {
    "tinyllama": {
        "W1.ms_per_token": Goal(0.70, 1.82),
        "W2.n64.tok_s": Goal(55_000, 16_300),
        "W2.n256.tok_s": Goal(120_000, 22_100),
        "W3.f1.ms_per_expansion": Goal(25, 85),
        "W3.f16.ms_per_expansion": Goal(2.2, 5.7),
        "W4.c4096.ms": Goal(1.2, 7.0),
        "W4.c16000.ms": Goal(1.3, 14.9),
        "W5.tok_s": Goal(60_000, 16_100),
    },
    "llama3-8b": {
        "W1.ms_per_token": Goal(4.2, 4.86),
        "W2.n8.tok_s": Goal(None, 1_390),
        "W2.n64.tok_s": Goal(13_000, 5_540),
        "W2.n256.tok_s": Goal(28_000, 7_660),
        "W3.f1.ms_per_expansion": Goal(None, 165),
        "W3.f16.ms_per_expansion": Goal(None, 13.1),
        "W4.c4096.ms": Goal(5.5, 10.4),
        "W4.c16000.ms": Goal(5.5, 15.6),
        "W5.tok_s": Goal(None, 7_550),
    },
}


def more_is_better(metric: str) -> bool:
    """Whether a metric is a rate; the others are times."""
    return metric.endswith("tok_s")


def table_row(shape: str, metric: str, measured: Spread) -> str:
    """One line for people: the median, the extremes, the goal and whether it is met, and vLLM's figure."""
    target = GOALS.get(shape, {}).get(metric, Goal(None, None))
    sign = "≥" if more_is_better(metric) else "≤"
    goal, verdict = "", ""
    if target.goal is not None:
        goal = f"{sign} {target.goal:,g}"
        met = (measured["median"] >= target.goal) if more_is_better(metric) else (measured["median"] <= target.goal)
        verdict = "met" if met else "missed"
    vllm = f"{target.vllm:,g}" if target.vllm is not None else ""
    extremes = f"({_short(measured['min'])} – {_short(measured['max'])})"
    return f"  {metric:24} {_short(measured['median']):>10} {extremes:>23} {goal:>11} {verdict:6} {vllm:>8}".rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3f}"
