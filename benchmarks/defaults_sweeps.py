"""Sweeps of `benchmarks.defaults` through an engine's public API: page size, in flight, rows and tokens of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from benchmarks.common import spread
from benchmarks.defaults_trees import grow_beams, grow_search, unused_room
from benchmarks.machine import release_memory
from dendrite import Engine, EngineConfig, SamplingParams
from dendrite.config import checked
from dendrite.engine.generation import raise_first
from dendrite.model.decoder import Decoder
from dendrite.profiling.workloads import Prompts, Sizes, Workload, random_prompts, w2, w3
from dendrite.search import ALGORITHMS

PAGE_SIZES = (8, 16, 32)
IN_FLIGHT = (1, 4, 8, 16, 64)
MAX_RUNNING = (64, 128, 256, 512)
MAX_BATCH_TOKENS = (512, 1024, 2048, 4096, 8192)
_PAGES_IN_FLIGHT = 16
_Found = TypeVar("_Found")


@dataclass
class Sweep:
    """One default beside other values of its setting.

    Attributes:
        defaults: the value that ships, by whose it is.
        values: those measured.
        metrics: `v<value>.<name>` to number.
        raw: what the metrics were made from.
    """

    defaults: dict[str, float]
    values: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    def take(self, name: str, runs: list[float]) -> None:
        """Add repeated measurements of one metric, and print their median."""
        found = self.raw.setdefault("runs", {})[name] = spread(runs)
        self.put(name, found["median"])

    def put(self, name: str, value: float) -> None:
        """Add a metric that does not vary, and print it."""
        self.metrics[name] = value
        print(f"  {name:36} {value:14,.3f}", flush=True)


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured on: a model, the sizes of the workloads, and how often each runs after one that warms up."""

    decoder: Decoder
    sizes: Sizes
    runs: int

    def on_engine(self, work: Callable[[Engine], _Found], **settings: Any) -> _Found:
        """What `work` makes of a new engine, whose memory is free again when this returns."""
        try:
            return self._on_new(work, settings)
        finally:
            release_memory(self.decoder.device)

    def prompts(self) -> Prompts:
        """Prompts for one engine, which must take all of its own from them: those of the next call are the same."""
        return random_prompts(self.decoder.config.vocab_size)

    def repeated(self, engine: Engine, prompts: Prompts, workload: Workload) -> dict[str, list[float]]:
        """The workload's metrics in each run."""
        found = [workload(engine, prompts, self.sizes).metrics for _ in range(self.runs + 1)][1:]
        return {name: [metrics[name] for metrics in found] for name in found[0]}

    def _on_new(self, work: Callable[[Engine], _Found], settings: dict[str, Any]) -> _Found:
        config = checked(EngineConfig, {"device": self.decoder.device.type, **settings})
        with Engine(self.decoder, config=config) as engine:
            return work(engine)


def page_size(bench: Bench) -> Sweep:
    """Tokens a second of W2, milliseconds an expansion of W3, and the share of the room of held pages left unused."""
    swept = Sweep({"default": EngineConfig().page_size}, list(PAGE_SIZES))
    timed = [partial(w2, branches) for branches in bench.sizes.w2_branches] + [partial(w3, _PAGES_IN_FLIGHT)]

    def measure(engine: Engine) -> None:
        label, prompts = f"v{engine.config.page_size}", bench.prompts()
        for workload in timed:
            for name, runs in bench.repeated(engine, prompts, workload).items():
                swept.take(f"{label}.{name}", runs)
        for name, grow in (("search_unused", grow_search), ("beams_unused", grow_beams)):
            nodes = grow(engine, prompts, bench.sizes)
            swept.put(f"{label}.{name}", unused_room(engine, nodes))
            for node in nodes:
                node.release()

    for size in PAGE_SIZES:
        bench.on_engine(measure, page_size=size)
    return swept


def in_flight(bench: Bench) -> Sweep:
    """Milliseconds an expansion of W3 by the number under way, and expansions a second over those of one at a time."""
    fields = {name: kind.options_type.model_fields for name, kind in ALGORITHMS.items()}
    defaults = {name: found["in_flight"].default for name, found in fields.items() if "in_flight" in found}
    swept = Sweep(defaults, list(IN_FLIGHT))

    def measure(engine: Engine) -> None:
        prompts = bench.prompts()
        for count in IN_FLIGHT:
            for runs in bench.repeated(engine, prompts, partial(w3, count)).values():
                swept.take(f"v{count}.ms_per_expansion", runs)

    bench.on_engine(measure)
    alone = swept.metrics[f"v{IN_FLIGHT[0]}.ms_per_expansion"]
    for count in IN_FLIGHT:
        swept.put(f"v{count}.speedup", alone / swept.metrics[f"v{count}.ms_per_expansion"])
    return swept


def max_running(bench: Bench) -> Sweep:
    """Tokens a second of as many branches of one prefix as the largest value, and the time between tokens of one."""
    swept = Sweep({"default": EngineConfig().max_running}, list(MAX_RUNNING))
    branches = max(MAX_RUNNING)

    def measure(engine: Engine) -> None:
        rows = engine.config.max_running
        for runs in bench.repeated(engine, bench.prompts(), partial(w2, branches)).values():
            swept.take(f"v{rows}.tok_s", runs)
            swept.take(f"v{rows}.ms_per_token", [1e3 * rows / rate for rate in runs])

    for rows in MAX_RUNNING:
        bench.on_engine(measure, max_running=rows)
    return swept


def max_batch_tokens(bench: Bench) -> Sweep:
    """Tokens a second of a long prompt, and the longest that a branch which decodes meanwhile waits for a token."""
    swept = Sweep({"default": EngineConfig().max_batch_tokens}, list(MAX_BATCH_TOKENS))

    def measure(engine: Engine) -> None:
        label = f"v{engine.config.max_batch_tokens}"
        prompts, length = bench.prompts(), max(bench.sizes.w4_contexts)
        alone = [_prefill_rate(engine, prompts, length) for _ in range(bench.runs + 1)][1:]
        waits = [_longest_wait_ms(engine, prompts, length) for _ in range(bench.runs + 1)][1:]
        swept.take(f"{label}.prefill_tok_s", alone)
        swept.take(f"{label}.longest_wait_ms", waits)

    for tokens in MAX_BATCH_TOKENS:
        bench.on_engine(measure, max_batch_tokens=tokens)
    return swept


def _prefill_rate(engine: Engine, prompts: Prompts, length: int) -> float:
    """Prompt tokens a second, up to the first token after them, which waits for the device."""
    prompt = prompts(length)
    start = time.perf_counter()
    root = engine.prefill(prompt)
    engine.decode(root.fork(), max_tokens=1, ignore_eos=True)
    seconds = time.perf_counter() - start
    root.release(subtree=True)
    return length / seconds


def _longest_wait_ms(engine: Engine, prompts: Prompts, length: int) -> float:
    """The longest time between arrivals of tokens of one branch while a prompt of `length` tokens is computed."""
    root = engine.prefill(prompts(16))
    (kid,) = root.fork()
    room = engine.longest_context - kid.length
    (generation,) = engine.submit(kid, SamplingParams(max_tokens=room, ignore_eos=True))
    while not generation.produced:
        engine.step()
    other, job = engine.submit_prefill(prompts(length))
    if job is None:
        raise RuntimeError("the prompt was cached")
    waits, last, computed = [], time.perf_counter(), False
    while not computed:  # up to the first token after the prompt, which waits for all of it
        computed = job.done
        while not any(span.node is kid for span in engine.step().spans):
            raise_first([job, generation])
            if generation.done:
                raise RuntimeError("the branch ended before the prompt was computed")
        now = time.perf_counter()
        waits.append(1e3 * (now - last))
        last = now
    engine.cancel(generation)
    for each in (root, other):
        each.release(subtree=True)
    return max(waits)
