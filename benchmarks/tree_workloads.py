"""The tree workloads W1 to W5 on a model of random weights, by the public API (see `dendrite.profiling.workloads`).

    python -m benchmarks.tree_workloads --shape tinyllama|llama3-8b [--workloads W1,W2] [--runs 5] [--peer transformers]

Each figure is the median of the runs after one that warms up. A workload that fails is reported, the others go on, the
exit code is 1, and the result file holds what was measured. Fewer than five runs, or `--quick` sizes, make a result of
another name, since they are no figures to quote.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, Spread, spread, write_result
from benchmarks.goals import table_row
from benchmarks.machine import copy_bandwidth, hardware_name, installed, release_memory, seconds_alive
from benchmarks.models import SHAPES, step_bytes, token_bytes
from dendrite import Engine, EngineConfig, Node, SamplingParams
from dendrite.engine.generation import Generation
from dendrite.engine.stepper import StepResult, TokenEvent
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import QUICK, Figures, Sizes, random_prompts, workloads

_ENOUGH_RUNS = 5
_PEER_SECONDS = 8.0
_PACKAGES = ("triton", "flashinfer-python", "transformers")


@dataclass
class Measured:
    """What has been found so far: medians by metric, everything else in `raw`."""

    metrics: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, str]:
        """What failed, by workload."""
        errors: dict[str, str] = self.raw.setdefault("errors", {})
        return errors

    def take(self, runs: Sequence[Figures], prefix: str = "") -> dict[str, Spread]:
        """Add repeated runs of one workload; returns the spread of each of its metrics."""
        spreads = {name: spread([run.metrics[name] for run in runs]) for name in runs[0].metrics}
        for name, row in spreads.items():
            self.metrics[prefix + name] = row["median"]
            self.raw.setdefault("runs", {})[prefix + name] = row
        for name in runs[0].aside:
            self.raw.setdefault("aside", {})[prefix + name] = spread([run.aside[name] for run in runs])
        return spreads


class Tracked:
    """An engine that knows the trees it was asked for, so that a run that fails leaves none behind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._roots: list[Node] = []

    def prefill(self, prompt: Sequence[int]) -> Node:
        """See `Engine.prefill`."""
        self._roots.append(self._engine.prefill(prompt))
        return self._roots[-1]

    def decode(self, nodes: Sequence[Node], params: SamplingParams) -> None:
        """See `Engine.decode`."""
        self._engine.decode(nodes, params)

    def submit(self, nodes: Sequence[Node], params: SamplingParams) -> list[Generation]:
        """See `Engine.submit`."""
        return self._engine.submit(nodes, params)

    def step(self) -> StepResult:
        """See `Engine.step`."""
        return self._engine.step()

    def stream(self, nodes: Node, params: SamplingParams) -> Iterator[TokenEvent]:
        """See `Engine.stream`."""
        return self._engine.stream(nodes, params)

    def release_all(self) -> None:
        """Release every tree."""
        for root in self._roots:
            root.release(subtree=True)
        self._roots.clear()


def measure_engine(
    decoder: Decoder,
    config: EngineConfig,
    names: Sequence[str],
    runs: int,
    sizes: Sizes,
    measured: Measured,
    save: Callable[[], None],
) -> None:
    """Run the workloads on a new engine; what fails is noted in `measured`, which `save` is called to keep."""
    subject = measured.raw["shape"]
    prompts = random_prompts(decoder.config.vocab_size)
    with Engine(decoder, config=config) as engine:
        root = engine.prefill(prompts(sizes.w1_prompt))
        engine.decode(root.fork(), max_tokens=1, ignore_eos=True)
        measured.raw["startup_s"] = seconds_alive()
        root.release(subtree=True)
        tracked = Tracked(engine)
        for name, workload in workloads(sizes).items():
            if not chosen(name, names):
                continue
            try:
                found = [workload(tracked, prompts, sizes) for _ in range(runs + 1)][1:]
            except Exception as error:
                measured.errors[name] = told(name, error)
            else:
                for metric, row in measured.take(found).items():
                    print(table_row(subject, metric, row), flush=True)
            finally:
                tracked.release_all()
            measured.raw["engine"] = engine.stats().to_dict()
            save()


@torch.inference_mode()
def measure_peer(
    decoder: Decoder,
    names: Sequence[str],
    runs: int,
    sizes: Sizes,
    measured: Measured,
    save: Callable[[], None],
) -> None:
    """Run transformers on the same weights: a figure at a time, each for some seconds and at least once."""
    from benchmarks.peers import Transformers

    prompts = random_prompts(decoder.config.vocab_size)
    peer = Transformers(decoder)
    wanted: dict[str, Callable[[], Figures]] = {"W1": partial(peer.w1, prompts, sizes)}
    wanted |= {f"W2.n{n}": partial(peer.w2, n, prompts, sizes) for n in sizes.w2_branches}
    wanted |= {f"W4.c{context}": partial(peer.w4, context, prompts, sizes) for context in sizes.w4_contexts}
    for name, run in wanted.items():
        if not chosen(name, names):
            continue
        try:
            run()
            found, deadline = [run()], time.monotonic() + _PEER_SECONDS
            while len(found) < runs and time.monotonic() < deadline:
                found.append(run())
        except Exception as error:
            measured.errors[f"transformers.{name}"] = told(f"transformers {name}", error)
        else:
            for metric, row in measured.take(found, "transformers.").items():
                print(f"  transformers {metric:22} {row['median']:12,.2f}", flush=True)
            save()
        release_memory(decoder.device)


def chosen(name: str, names: Sequence[str]) -> bool:
    """Whether a workload, such as W2.n64, was asked for, by that name or by W2."""
    return name in names or name.split(".")[0] in names


def told(name: str, error: Exception) -> str:
    """The error in one line, which is also printed."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print(f"  {name} failed: {text}", file=sys.stderr, flush=True)
    return text


def note_bandwidth(measured: Measured, decoder: Decoder, sizes: Sizes, copy_gb_s: float) -> None:
    """How much of the copy bandwidth W1 reaches, by the bytes that a token cannot do without."""
    element = decoder.dtype.itemsize
    context = sizes.w1_prompt + sizes.w1_tokens / 2
    needed = step_bytes(decoder.config, element) + context * token_bytes(decoder.config, element)
    measured.raw["W1_bytes_per_token"] = needed
    if "W1.ms_per_token" in measured.metrics:
        fraction = needed / (measured.metrics["W1.ms_per_token"] * 1e6) / copy_gb_s
        measured.raw["W1_fraction_of_copy_bandwidth"] = fraction


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tree workloads on a model of random weights.")
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--workloads", default="W1,W2,W3,W4,W5", help="which, such as W1,W2.n64,W4")
    parser.add_argument("--runs", type=int, default=_ENOUGH_RUNS)
    parser.add_argument("--peer", choices=("transformers",), help="measure this too, on the same weights")
    parser.add_argument("--quick", action="store_true", help="sizes for a test")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    given.sizes = QUICK if given.quick else Sizes()
    given.workloads = [name.strip() for name in given.workloads.split(",")]
    known = workloads(given.sizes)
    for name in given.workloads:
        if not any(chosen(other, [name]) for other in known):
            parser.error(f"--workloads: {name} is none of {', '.join(known)}")
    if given.runs < 1:
        parser.error("--runs must be at least 1")
    return given


def main() -> int:
    """Measure, print and write the result; 1 where anything failed."""
    given = arguments()
    device = torch.device(given.device)
    sizes = given.sizes
    quotable = not given.quick and given.runs >= _ENOUGH_RUNS
    hardware = hardware_name(device)
    config = EngineConfig(device=given.device, max_running=256)
    copy_gb_s = copy_bandwidth(device)
    measured = Measured(
        raw={
            "shape": given.shape,
            "runs_each": given.runs,
            "sizes": asdict(sizes),
            "config": config.model_dump(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "copy_gb_s": copy_gb_s,
            "timed": "W1: decoding, without prefill; W2, W3, W5: from the first fork, the prompts computed; "
            "W4: from fork to the first token, median over the branches of a run",
        }
    )
    decoder = Decoder.random(
        SHAPES[given.shape], torch.bfloat16 if device.type == "cuda" else torch.float32, device=device
    )

    def save() -> None:
        note_bandwidth(measured, decoder, sizes, copy_gb_s)
        if measured.metrics:
            subject = given.shape if quotable else f"{given.shape}-quick"
            measured.raw["path"] = str(
                write_result(
                    benchmark="tree_workloads",
                    subject=subject,
                    hardware=hardware,
                    metrics=measured.metrics,
                    raw={name: value for name, value in measured.raw.items() if name != "path"},
                    packages=installed(_PACKAGES),
                    folder=given.out,
                )
            )

    print(f"{given.shape} on {hardware}, copy bandwidth {copy_gb_s:,.0f} GB/s; median, extremes, goal, vLLM 0.25")
    stages: dict[str, Callable[[], None]] = {
        "Dendrite": lambda: measure_engine(decoder, config, given.workloads, given.runs, sizes, measured, save)
    }
    if given.peer:
        stages[given.peer] = lambda: measure_peer(decoder, given.workloads, given.runs, sizes, measured, save)
    for name, measure in stages.items():
        try:
            measure()
        except Exception as error:
            measured.errors[name] = told(name, error)
        release_memory(device)
    save()
    if "W1_fraction_of_copy_bandwidth" in measured.raw:
        print(f"W1 reaches {measured.raw['W1_fraction_of_copy_bandwidth']:.1%} of the copy bandwidth")
    if "startup_s" in measured.raw:
        print(f"first token {measured.raw['startup_s']:.1f} s after the start of the process")
    if "path" in measured.raw:
        print(f"written to {measured.raw['path']}")
    return 1 if measured.errors or not measured.metrics else 0


if __name__ == "__main__":
    sys.exit(main())
