"""Workload W5 with pages for half of what it needs: eviction, preemption and recomputation at work.

    python -m benchmarks.pressure                                       a small model and small trees, on the CPU
    python -m benchmarks.pressure --device cuda --shape tinyllama       the design's sizes

W5 (see `dendrite.profiling.workloads`) runs on an engine whose pool holds all that it asks for. The most pages that
live nodes hold at any time is its demand. Then it runs on an engine that has a part of the demand (`--share`, a
half), from the same prompts and with the same seeds. Of both, the first run warms up, and the figures are medians of
the others.

Leaves get `--tokens` tokens a level: by default twice as many as W5's, for the engine takes a leaf only where there are
pages for its next 32, so that W5's own never have to give theirs back.

`pressure.utilisation` is the share of the pool's pages that live nodes hold, those that only cached prompts hold left
out, weighted by time over the steps of the decoding: each step counts with the seconds that it took, and the pages held
at its end. `pressure.needed` is the same of those pages alone that leaves which have not ended read: the others are of
nodes that may be wanted again, and are the first to go. `pressure.demand_pages` and `.pages` are the demand and the
pool, `.preemptions` generations that had to wait for others, `.dropped_pages` pages that live nodes lost,
`.evicted_pages` pages that cached prompts lost, `.recomputed_tokens` what had to be computed again, each a run;
`.tok_s`, and `.enough.tok_s` with pages enough.

`pressure.equal` is the share of leaves that got the same tokens in both. On the CPU, where the model is in float64, it
has to be 1, else the exit code is 1. On a GPU, in bfloat16, it is only told: log-probabilities come out some 0.02 apart
with other rows in a batch, and tokens are drawn by inverting the cumulative distribution, so that with random weights,
where 32,000 tokens are about as likely, most fall on a neighbour. (In float32 that happens once in 100,000 tokens.)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, spread, write_result
from benchmarks.machine import hardware_name, installed, release_memory
from benchmarks.models import SHAPES
from dendrite import Engine, EngineConfig, Node, SamplingParams
from dendrite.engine.footprint import AHEAD_TOKENS
from dendrite.engine.generation import Generation, raise_first
from dendrite.engine.stepper import StepResult, TokenEvent
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import Sizes, random_prompts, w5

SMALL = Sizes(w5_trees=4, w5_prompt=128, w5_leaves=16, w5_kept=4, w5_levels=6)
"""For the CPU."""
_COUNTED = ("preemptions", "dropped_pages", "evicted_pages", "recomputed_tokens", "steps")
_ENOUGH_RUNS = 5
_TOKENS = 2 * AHEAD_TOKENS
_PACKAGES = ("triton", "flashinfer-python")


@dataclass
class Run:
    """One run: tokens a second, the use of the pool, the engine's counts, and each leaf's tokens in order."""

    tok_s: float = 0.0
    utilisation: float = 0.0
    needed: float = 0.0
    peak_pages: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    leaves: list[tuple[int, ...]] = field(default_factory=list)


class Observed:
    """An engine whose every decode step is looked at: how long it took, and how many pages were held after it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._held = self._needed = self._whole = 0.0  # pages times seconds
        self._leaves: list[Generation] = []
        self.peak_pages = 0
        self.leaves: list[tuple[int, ...]] = []

    @property
    def utilisation(self) -> float:
        """Share of all pages that live nodes held, weighted by time."""
        return self._held / self._whole

    @property
    def needed(self) -> float:
        """Share of all pages that leaves read which had not ended, weighted by time."""
        return self._needed / self._whole

    def prefill(self, prompt: Sequence[int]) -> Node:
        """See `Engine.prefill`."""
        return self._engine.prefill(prompt)

    def decode(self, nodes: Sequence[Node], params: SamplingParams) -> None:
        """See `Engine.decode`."""
        generations = self.submit(nodes, params)
        while not all(generation.done for generation in generations):
            self.step()
        raise_first(generations)
        self.leaves += [tuple(node.tokens) for node in nodes]

    def submit(self, nodes: Sequence[Node], params: SamplingParams) -> list[Generation]:
        """See `Engine.submit`."""
        self._leaves = self._engine.submit(nodes, params)
        return self._leaves

    def step(self) -> StepResult:
        """See `Engine.step`."""
        began = time.perf_counter()
        result = self._engine.step()
        took, held = time.perf_counter() - began, self._engine.cache.held_pages
        self._whole += took * (self._engine.cache.pool.num_pages - 1)
        self._held += took * held
        self._needed += took * _pages_read(generation.node for generation in self._leaves if not generation.done)
        self.peak_pages = max(self.peak_pages, held)
        return result

    def stream(self, nodes: Node, params: SamplingParams) -> Iterator[TokenEvent]:
        """See `Engine.stream`."""
        return self._engine.stream(nodes, params)


def _pages_read(nodes: Iterable[Node]) -> int:
    """Pages that the segments of nodes and of their ancestors own."""
    path: set[Node] = set()
    for node in nodes:
        at: Node | None = node
        while at is not None and at not in path:
            path.add(at)
            at = at.parent
    return sum(len(node.pages) for node in path)


def measure(decoder: Decoder, config: EngineConfig, sizes: Sizes, runs: int) -> list[Run]:
    """Runs of W5 on a new engine, each from other prompts, after one that warms up."""
    prompts, found = random_prompts(decoder.config.vocab_size), []
    with Engine(decoder, config=config) as engine:
        for _ in range(runs + 1):
            watched, before = Observed(engine), engine.stats().to_dict()
            figures = w5(watched, prompts, sizes)
            after = engine.stats().to_dict()
            counts = {name: int(after[name] - before[name]) for name in _COUNTED}
            tok_s = figures.metrics["W5.tok_s"]
            found.append(Run(tok_s, watched.utilisation, watched.needed, watched.peak_pages, counts, watched.leaves))
        engine.check()
    release_memory(decoder.device)
    return found[1:]


def compare(
    decoder: Decoder, config: EngineConfig, sizes: Sizes, share: float, runs: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of runs with pages for a share of the demand beside runs with enough, and what they were made from."""
    enough = measure(decoder, config, sizes, runs)
    demand = max(run.peak_pages for run in enough)
    pages = max(2, int(demand * share))
    few = measure(decoder, config.model_copy(update={"kv_tokens": pages * config.page_size}), sizes, runs)
    pairs = [
        pair for one, other in zip(enough, few, strict=True) for pair in zip(one.leaves, other.leaves, strict=True)
    ]
    metrics = {
        "pressure.utilisation": statistics.median(run.utilisation for run in few),
        "pressure.needed": statistics.median(run.needed for run in few),
        "pressure.demand_pages": float(demand),
        "pressure.pages": float(pages),
        **{f"pressure.{name}": float(statistics.median(run.counts[name] for run in few)) for name in _COUNTED},
        "pressure.tok_s": statistics.median(run.tok_s for run in few),
        "pressure.enough.tok_s": statistics.median(run.tok_s for run in enough),
        "pressure.equal": sum(one == other for one, other in pairs) / len(pairs),
    }
    raw = {
        "runs": {
            "pressure.tok_s": spread([run.tok_s for run in few]),
            "pressure.utilisation": spread([run.utilisation for run in few]),
            "pressure.enough.tok_s": spread([run.tok_s for run in enough]),
        },
        "counts": [run.counts for run in few],
        "enough_counts": [run.counts for run in enough],
    }
    return metrics, raw


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="W5 with too few pages.")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--share", type=float, default=0.5, help="of the demand that there are pages for")
    parser.add_argument("--tokens", type=int, default=_TOKENS, help="that a leaf gets")
    parser.add_argument("--runs", type=int, default=_ENOUGH_RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if not 0 < given.share <= 1:
        parser.error("--share must be above 0, and 1 at most")
    if given.runs < 1 or given.tokens < 1:
        parser.error("--runs and --tokens must be at least 1")
    return given


def main() -> int:
    """Measure, print and write the result; 1 where outputs differ that must not."""
    given = arguments()
    device = torch.device(given.device)
    on_cuda = device.type == "cuda"
    sizes = replace(Sizes() if on_cuda else SMALL, w5_tokens=given.tokens)
    config = EngineConfig(device=given.device, max_running=256)
    decoder = Decoder.random(SHAPES[given.shape], torch.bfloat16 if on_cuda else torch.float64, device=device)
    metrics, raw = compare(decoder, config, sizes, given.share, given.runs)
    for name, value in metrics.items():
        print(f"{name:28} {value:12.3f}")
    used = {name: value for name, value in asdict(sizes).items() if name.startswith("w5_")}
    settings = {"shape": given.shape, "share": given.share, "sizes": used, "config": config.model_dump()}
    path = write_result(
        benchmark="pressure",
        subject=given.shape if given.runs >= _ENOUGH_RUNS else f"{given.shape}-quick",
        hardware=hardware_name(device),
        metrics=metrics,
        raw={**settings, **raw},
        packages=installed(_PACKAGES),
        folder=given.out,
    )
    print(f"written to {path}")
    return 0 if on_cuda or metrics["pressure.equal"] == 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
