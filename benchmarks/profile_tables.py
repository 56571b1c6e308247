"""The tables of `docs/profiling.md` on decode steps on a GPU, from the files of four benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.tables import load, short, table, with_source, with_sources

_TOP = 3
_CPU_PHASES = {"host": "host", "device": "model"}
_LABELS: Mapping[str, str] = {
    "W1": "W1, one row",
    "W2_n64": "W2, 64 branches",
    "W2_n256": "W2, 256 branches",
    "W3_f1": "W3, one in flight",
    "W3_f16": "W3, 16 in flight",
}


def phases_block() -> str:
    """Decode steps by workload: the whole, the wait for the GPU, and what the host does beside it."""
    result = load("profile-h100-tinyllama")
    rows = []
    for case, label in _LABELS.items():
        whole, device, host = (result["metrics"][f"profile.{case}.{phase}_us"] for phase in ("whole", "device", "host"))
        rows.append((label, short(whole), short(device), short(host), f"{device / whole:.0%}"))
    return with_source(table(("Decode step", "whole, µs", "GPU, µs", "host, µs", "GPU ÷ whole"), rows), result)


def cpu_block() -> str:
    """Decode steps on the CPU, and the host's part of them, before what was found was mended and now."""
    result = load("profile-cpu-countdown")
    before = result["raw"]["before"]
    rows = [
        (
            label,
            *(
                short(each["metrics"][f"profile.{case}.{phase}_us"])
                for phase in _CPU_PHASES
                for each in (before, result)
            ),
        )
        for case, label in _LABELS.items()
        if f"profile.{case}.host_us" in result["metrics"]
    ]
    states = [f"{part}, µs: {state}" for part in _CPU_PHASES.values() for state in ("before", "now")]
    return with_source(table(("Decode step", *states), rows), result)


def kernels_block() -> str:
    """The kernels that take most of a decode step's time on the GPU, by workload."""
    result = load("profile-h100-tinyllama")
    cases = result["raw"]["cases"]
    rows = [(label, *map(_kernel, cases[case]["operators"]["decode"][:_TOP])) for case, label in _LABELS.items()]
    return with_source(table(("Decode step", "first", "second", "third"), rows), result)


def bandwidth_block() -> str:
    """How near decoding is to reading its bytes at the speed of a copy."""
    steps = load("decode-h100-tinyllama")
    trees = {name: load(f"tree_workloads-h100-{name}") for name in ("tinyllama", "llama3-8b")}
    rows = [(f"W1, {name}", f"{each['raw']['W1_fraction_of_copy_bandwidth']:.0%}") for name, each in trees.items()] + [
        (f"branches of a short prompt: {batch}, tinyllama", f"{steps['metrics'][f'decode.b{batch}.copy_fraction']:.0%}")
        for batch in (1, 8, 64, 256)
    ]
    return with_sources(table(("Decoding", "of a copy's bandwidth"), rows), steps, *trees.values())


def _kernel(operator: Mapping[str, Any]) -> str:
    name = str(operator["name"]).strip("_").removesuffix("_kernel")
    kernel = "cuBLAS product" if name.startswith("nvjet") else f"`{name}`"
    return f"{kernel}, {operator['share']:.0%}"


PROFILE_BLOCKS: dict[str, Callable[[], str]] = {
    "profile_cpu": cpu_block,
    "profile_phases": phases_block,
    "profile_kernels": kernels_block,
    "profile_bandwidth": bandwidth_block,
}
