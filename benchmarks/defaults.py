"""What each default trades: the sweeps behind page size, memory fraction, attention's crossover, in flight and more.

    python -m benchmarks.defaults --shape tinyllama|llama3-8b [--parts page_size,in_flight] [--runs 5]
    python -m benchmarks.defaults --device cpu --shape tiny

Each part measures one default beside other values, and writes a file of its own, `defaults-<hardware>-<shape>-<part>`,
from which `docs/defaults.md` is made. Figures are medians of the runs after one that warms up. A part that fails is
reported, the others go on, and the exit code is 1. Fewer than five runs, or `--quick` sizes, make results of another
name, since they are no figures to quote.

    page_size         W2 and W3 by `EngineConfig.page_size`, and the room that trees of uneven segments leave unused
    in_flight         W3 by the number of expansions under way
    crossover         attention that reads a shared prefix once beside attention that does not, and what is picked
    max_running       512 branches of one prefix by `EngineConfig.max_running`
    max_batch_tokens  a long prompt by `EngineConfig.max_batch_tokens`, and how long another branch waits meanwhile
    memory_fraction   KV tokens and memory to spare under load by `EngineConfig.memory_fraction`; on CUDA alone
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.common import RESULTS, write_result
from benchmarks.defaults_crossover import crossover
from benchmarks.defaults_memory import memory_fraction
from benchmarks.defaults_sweeps import IN_FLIGHT, Bench, Sweep, in_flight, max_batch_tokens, max_running, page_size
from benchmarks.machine import hardware_name, installed, release_memory
from benchmarks.models import SHAPES
from dendrite.model.decoder import Decoder
from dendrite.profiling import workloads
from dendrite.profiling.workloads import Sizes

DESIGN = Sizes(w2_branches=(64, 256), w3_expansions=128, w3_in_flight=IN_FLIGHT)
"""For a GPU: the design's, but for half of W3's expansions."""
SMALL = Sizes(
    w2_prompt=512,
    w2_tokens=16,
    w2_branches=(16, 64),
    w3_prompt=256,
    w3_tokens=32,
    w3_expansions=64,
    w3_in_flight=IN_FLIGHT,
    w4_contexts=(4096,),
    w5_trees=4,
    w5_prompt=128,
    w5_leaves=16,
    w5_kept=4,
    w5_levels=6,
    w5_tokens=32,
)
"""For the CPU."""
QUICK = replace(workloads.QUICK, w2_branches=(8, 16), w3_in_flight=IN_FLIGHT)
"""For a test."""
PARTS: Mapping[str, Callable[[Bench], Sweep]] = {
    "page_size": page_size,
    "in_flight": in_flight,
    "crossover": crossover,
    "max_running": max_running,
    "max_batch_tokens": max_batch_tokens,
    "memory_fraction": memory_fraction,  # the last, since it looks for where memory runs out
}
CUDA_ALONE = ("memory_fraction",)
_ENOUGH_RUNS = 5
_PACKAGES = ("triton", "flashinfer-python")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The sweeps behind the defaults.")
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--parts", help="which, such as page_size,crossover; without, all that the device has")
    parser.add_argument("--runs", type=int, default=_ENOUGH_RUNS)
    parser.add_argument("--quick", action="store_true", help="sizes for a test")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    given = parser.parse_args()
    on_cuda = given.device == "cuda"
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    if given.parts is None:
        given.parts = [part for part in PARTS if on_cuda or part not in CUDA_ALONE]
        return given
    given.parts = [part.strip() for part in given.parts.split(",")]
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part} is none of {', '.join(PARTS)}")
        if part in CUDA_ALONE and not on_cuda:
            parser.error(
                f"--parts: {part} does not apply to --device cpu, where the pool is EngineConfig.kv_tokens "
                "(65,536 unless set) and nothing is a share of a GPU's memory"
            )
    return given


def save(given: argparse.Namespace, bench: Bench, part: str, swept: Sweep) -> Path:
    """Write the result file of one part."""
    device = bench.decoder.device
    quotable = not given.quick and given.runs >= _ENOUGH_RUNS
    subject = f"{given.shape}-{part}"
    return write_result(
        benchmark="defaults",
        subject=subject if quotable else f"{subject}-quick",
        hardware=hardware_name(device),
        metrics={f"{part}.{name}": value for name, value in swept.metrics.items()},
        raw={
            "shape": given.shape,
            "part": part,
            "defaults": swept.defaults,
            "values": swept.values,
            "sizes": asdict(bench.sizes),
            "runs_each": given.runs,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            **swept.raw,
        },
        packages=installed(_PACKAGES),
        folder=given.out,
    )


def main() -> int:
    """Measure, print and write the results; 1 where a part failed."""
    given = arguments()
    device = torch.device(given.device)
    on_cuda = device.type == "cuda"
    sizes = QUICK if given.quick else DESIGN if on_cuda else SMALL
    decoder = Decoder.random(SHAPES[given.shape], torch.bfloat16 if on_cuda else torch.float32, device=device)
    bench = Bench(decoder, sizes, given.runs)
    failed = False
    for part in given.parts:
        began = time.monotonic()
        try:
            swept = PARTS[part](bench)
        except Exception as error:  # whatever one dies of, the others go on
            print(f"{part} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed = True
        else:
            path = save(given, bench, part, swept)
            print(f"{part}: {time.monotonic() - began:.0f} s, written to {path}", flush=True)
        release_memory(device)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
