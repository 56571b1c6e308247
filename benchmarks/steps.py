"""The decode step alone: milliseconds a token by batch size, at short contexts, and where the time goes by kernel.

Branches of one short prompt of random ids decode together, on a model of random weights. A step cannot take less time
than it takes to read the weights and the keys and values, so the share of the copy bandwidth that this comes to is
given beside the time; the bandwidth is measured in the same run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Spread, spread
from benchmarks.machine import synchronize
from benchmarks.models import step_bytes, token_bytes
from dendrite import Engine
from dendrite.model.config import ModelConfig
from dendrite.profiling.workloads import Prompts

BATCHES = (1, 8, 64, 256)
_KERNELS = 15


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the prompt, and tokens that each branch generates."""

    prompt: int = 64
    tokens: int = 128


class KernelTime(TypedDict):
    """One kernel (on the CPU, one operator): microseconds and launches a step."""

    name: str
    us_per_step: float
    calls_per_step: float


def step_times(engine: Engine, prompts: Prompts, batch: int, runs: int, lengths: Lengths) -> Spread:
    """Milliseconds a token of `batch` branches, over `runs` runs after one that warms up."""
    times = []
    for _ in range(runs + 1):
        seconds, made = _decode(engine, prompts, batch, lengths)
        if made != batch * lengths.tokens:
            raise RuntimeError(f"{made} tokens were generated instead of {batch * lengths.tokens}")
        times.append(1e3 * seconds / lengths.tokens)
    return spread(times[1:])


def least_bytes(shape: ModelConfig, element_bytes: int, batch: int, lengths: Lengths) -> float:
    """Bytes that a step must read: the weights, the prompt's KV once, and half of what each branch comes to."""
    tokens = lengths.prompt + batch * lengths.tokens / 2
    return step_bytes(shape, element_bytes) + tokens * token_bytes(shape, element_bytes)


def kernel_times(
    engine: Engine, prompts: Prompts, batch: int, lengths: Lengths, device: torch.device
) -> dict[str, Any]:
    """The longest-running kernels of one decoding, the time of all, and how many a step launches."""
    on_gpu = device.type == "cuda"
    root = engine.prefill(prompts(lengths.prompt))
    kids = root.fork(batch)
    synchronize(device)
    # The host's events would slow it down, and the kernels' own times are what is wanted.
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        engine.decode(kids, max_tokens=lengths.tokens, ignore_eos=True)
        synchronize(device)
    root.release(subtree=True)
    rows: list[KernelTime] = []
    for event in profiler.key_averages():
        total = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if total:
            rows.append(
                KernelTime(
                    name=str(event.key)[:160],
                    us_per_step=round(total / lengths.tokens, 3),
                    calls_per_step=round(event.count / lengths.tokens, 2),
                )
            )
    rows.sort(key=lambda row: -row["us_per_step"])
    return {
        "batch": batch,
        "us_per_step": round(sum(row["us_per_step"] for row in rows), 2),
        "calls_per_step": round(sum(row["calls_per_step"] for row in rows), 1),
        "kernels": rows[:_KERNELS],
    }


def print_kernels(found: dict[str, Any]) -> None:
    """The profile as a table."""
    print(f"batch {found['batch']}: {found['us_per_step']:,.1f} µs in {found['calls_per_step']:,.1f} kernels a step")
    for row in found["kernels"]:
        print(f"  {row['us_per_step']:10,.2f} µs {row['calls_per_step']:8,.1f} ×  {row['name'][:90]}")


def _decode(engine: Engine, prompts: Prompts, batch: int, lengths: Lengths) -> tuple[float, int]:
    """Seconds of one decoding, and the tokens it made."""
    root = engine.prefill(prompts(lengths.prompt))
    engine.decode(root.fork(), max_tokens=1, ignore_eos=True)  # so that the prompt has been run
    kids = root.fork(batch)
    start = time.perf_counter()
    engine.decode(kids, max_tokens=lengths.tokens, ignore_eos=True)
    seconds = time.perf_counter() - start
    made = sum(len(kid.tokens) for kid in kids)
    root.release(subtree=True)
    return seconds, made
