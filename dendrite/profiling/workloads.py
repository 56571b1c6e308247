"""Workloads W1 to W5: what a tree search asks of an engine, through the public API.

Tokens are random ids, new in every run, so that no cache of an earlier run serves them; sampling is at temperature 1
but for W1, which is greedy; nothing ends early. Each function makes one run and gives its figures, and what was
measured beside them (`aside`), by name. Every time includes all work of the host.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from dendrite.config import SamplingParams
from dendrite.engine.generation import Generation
from dendrite.engine.stepper import StepResult, TokenEvent
from dendrite.kv.node import Node


class TreeEngine(Protocol):
    """The part of `dendrite.Engine` that the workloads use."""

    def prefill(self, prompt: Sequence[int]) -> Node:
        """Compute a prompt; the root of its tree."""
        ...

    def decode(self, nodes: Sequence[Node], params: SamplingParams) -> None:
        """Generate on all nodes until each has ended."""
        ...

    def submit(self, nodes: Sequence[Node], params: SamplingParams) -> list[Generation]:
        """Queue nodes for decoding."""
        ...

    def step(self) -> StepResult:
        """Run what is queued for a while; tells what has ended."""
        ...

    def stream(self, nodes: Node, params: SamplingParams) -> Iterator[TokenEvent]:
        """Generate on a node, token by token."""
        ...


Prompts = Callable[[int], list[int]]
"""A new prompt of that many random tokens."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long everything is, in tokens unless said otherwise. The defaults are the design's."""

    w1_prompt: int = 128
    w1_tokens: int = 512
    w2_prompt: int = 4096
    w2_tokens: int = 128
    w2_branches: tuple[int, ...] = (8, 64, 256)
    w3_prompt: int = 2048
    w3_tokens: int = 32
    w3_expansions: int = 256
    w3_in_flight: tuple[int, ...] = (1, 16)
    w4_contexts: tuple[int, ...] = (4096, 16_000)
    w4_branches: int = 5
    w4_tokens: int = 32
    w5_trees: int = 8
    w5_prompt: int = 512
    w5_leaves: int = 16
    w5_kept: int = 4
    w5_levels: int = 8
    w5_tokens: int = 32


QUICK = Sizes(
    w1_prompt=16,
    w1_tokens=24,
    w2_prompt=48,
    w2_tokens=8,
    w2_branches=(8, 64),
    w3_prompt=40,
    w3_tokens=4,
    w3_expansions=24,
    w3_in_flight=(1, 16),
    w4_contexts=(64, 160),
    w4_branches=2,
    w4_tokens=4,
    w5_trees=2,
    w5_prompt=20,
    w5_leaves=8,
    w5_kept=2,
    w5_levels=3,
    w5_tokens=4,
)
"""Small enough for a test."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: `metrics` are what the workload is for, `aside` what else was timed."""

    metrics: dict[str, float]
    aside: dict[str, float] = field(default_factory=dict)


Workload = Callable[[TreeEngine, Prompts, Sizes], Figures]


def random_prompts(vocabulary: int) -> Prompts:
    """Prompts of random ids, another one at each call."""
    generator = torch.Generator().manual_seed(0)

    def prompt(length: int) -> list[int]:
        ids: list[int] = torch.randint(vocabulary, (length,), generator=generator).tolist()
        return ids

    return prompt


def w1(engine: TreeEngine, prompts: Prompts, sizes: Sizes) -> Figures:
    """One greedy sequence: milliseconds a token, over the decoding alone."""
    (root,), prefill = _prefilled(engine, [prompts(sizes.w1_prompt)])
    kids = root.fork()
    start = time.perf_counter()
    engine.decode(kids, _sampling(sizes.w1_tokens, temperature=0.0))
    seconds = time.perf_counter() - start
    _expect(kids, sizes.w1_tokens)
    root.release(subtree=True)
    return Figures({"W1.ms_per_token": 1e3 * seconds / sizes.w1_tokens}, {"W1.prefill_ms": 1e3 * prefill})


def w2(branches: int, engine: TreeEngine, prompts: Prompts, sizes: Sizes) -> Figures:
    """Branches of one prefix that is already computed: tokens a second, over fork and decoding."""
    name = f"W2.n{branches}"
    (root,), prefill = _prefilled(engine, [prompts(sizes.w2_prompt)])
    start = time.perf_counter()
    kids = root.fork(branches)
    engine.decode(kids, _sampling(sizes.w2_tokens))
    seconds = time.perf_counter() - start
    _expect(kids, sizes.w2_tokens)
    root.release(subtree=True)
    return Figures({f"{name}.tok_s": branches * sizes.w2_tokens / seconds}, {f"{name}.prefill_ms": 1e3 * prefill})


def w3(in_flight: int, engine: TreeEngine, prompts: Prompts, sizes: Sizes) -> Figures:
    """The trace of a tree search: milliseconds an expansion, with one or with many in flight.

    An expansion picks `nodes[int(len(nodes) * u ** 0.5)]` (u uniform, so later nodes more often), forks it and decodes;
    the result is a node from then on. With more than one in flight the next starts as soon as any has ended.
    """
    name = f"W3.f{in_flight}"
    (root,), prefill = _prefilled(engine, [prompts(sizes.w3_prompt)])
    draws = random.Random(in_flight)  # the same picks in every run
    start = time.perf_counter()
    nodes = _expand_all(engine, root, draws, in_flight, sizes)
    seconds = time.perf_counter() - start
    _expect(nodes[1:], sizes.w3_tokens)
    root.release(subtree=True)
    metrics = {f"{name}.ms_per_expansion": 1e3 * seconds / sizes.w3_expansions}
    return Figures(metrics, {f"{name}.prefill_ms": 1e3 * prefill})


def w4(context: int, engine: TreeEngine, prompts: Prompts, sizes: Sizes) -> Figures:
    """Branch a long context: milliseconds from fork to the arrival of the branch's first token.

    A run branches the context several times and takes the median. Each time the engine is idle before: a branch's first
    token arrives before the model has run on it, which belongs to the branch and not to the next one's wait.
    """
    name = f"W4.c{context}"
    (root,), prefill = _prefilled(engine, [prompts(context)])
    times = []
    for _ in range(sizes.w4_branches):
        _wait_until_idle()
        start = time.perf_counter()
        (kid,) = root.fork()
        stream = engine.stream(kid, _sampling(sizes.w4_tokens))
        next(stream)
        times.append(1e3 * (time.perf_counter() - start))
        _close(stream)
    root.release(subtree=True)
    aside = {f"{name}.first_ms": times[0], f"{name}.slowest_ms": max(times), f"{name}.prefill_ms": 1e3 * prefill}
    return Figures({f"{name}.ms": statistics.median(times)}, aside)


def w5(engine: TreeEngine, prompts: Prompts, sizes: Sizes) -> Figures:
    """Beam-like search on several trees at once: tokens a second, over all levels, without the prompts.

    At each level the leaves of a tree are spread evenly over the nodes kept, and of the results the first are kept.
    """
    roots, prefill = _prefilled(engine, [prompts(sizes.w5_prompt) for _ in range(sizes.w5_trees)])
    start = time.perf_counter()
    kept = [[root] for root in roots]
    made = 0
    for _ in range(sizes.w5_levels):
        leaves = [[leaf for node in nodes for leaf in node.fork(sizes.w5_leaves // len(nodes))] for nodes in kept]
        level = [leaf for tree in leaves for leaf in tree]
        engine.decode(level, _sampling(sizes.w5_tokens))
        made += sum(len(leaf.tokens) for leaf in level)
        for tree in leaves:
            for leaf in tree[sizes.w5_kept :]:
                leaf.release()
        kept = [tree[: sizes.w5_kept] for tree in leaves]
    seconds = time.perf_counter() - start
    expected = sizes.w5_trees * sizes.w5_leaves * sizes.w5_levels * sizes.w5_tokens
    if made != expected:
        raise RuntimeError(f"W5 generated {made} tokens instead of {expected}")
    for root in roots:
        root.release(subtree=True)
    return Figures({"W5.tok_s": made / seconds}, {"W5.prefill_ms": 1e3 * prefill})


def workloads(sizes: Sizes) -> dict[str, Workload]:
    """All workloads by name: W1, W2.n8, …, W5."""
    return {
        "W1": w1,
        **{f"W2.n{branches}": partial(w2, branches) for branches in sizes.w2_branches},
        **{f"W3.f{in_flight}": partial(w3, in_flight) for in_flight in sizes.w3_in_flight},
        **{f"W4.c{context}": partial(w4, context) for context in sizes.w4_contexts},
        "W5": w5,
    }


def _expand_all(engine: TreeEngine, root: Node, draws: random.Random, in_flight: int, sizes: Sizes) -> list[Node]:
    """Run the expansions of W3; the root and all results, in the order in which they ended."""
    params = _sampling(sizes.w3_tokens)
    nodes = [root]
    started = running = 0
    while len(nodes) <= sizes.w3_expansions:
        wanted = min(in_flight - running, sizes.w3_expansions - started)
        if wanted:
            kids = [nodes[int(len(nodes) * draws.random() ** 0.5)].fork()[0] for _ in range(wanted)]
            started, running = started + wanted, running + wanted
            if in_flight == 1:
                engine.decode(kids, params)
                nodes += kids
                running = 0
                continue
            engine.submit(kids, params)
        ended = engine.step().generations
        _raise_first(ended)
        nodes += [generation.node for generation in ended]
        running -= len(ended)
    return nodes


def _prefilled(engine: TreeEngine, prompts: list[list[int]]) -> tuple[list[Node], float]:
    """Roots of the prompts, and the seconds that it took.

    A token is drawn after each, so that the clock of what follows does not start while the prompts still run.
    """
    start = time.perf_counter()
    roots = [engine.prefill(prompt) for prompt in prompts]
    probes = [root.fork()[0] for root in roots]
    engine.decode(probes, _sampling(1))
    seconds = time.perf_counter() - start
    for probe in probes:
        probe.release()
    return roots, seconds


def _sampling(tokens: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=temperature, ignore_eos=True)


def _expect(nodes: Sequence[Node], tokens: int) -> None:
    """Fail where a node generated another number of tokens: then the figure would be of something else."""
    wrong = [len(node.tokens) for node in nodes if len(node.tokens) != tokens]
    if wrong:
        raise RuntimeError(f"a branch generated {wrong[0]} tokens instead of {tokens}")


def _raise_first(ended: Sequence[Generation]) -> None:
    for generation in ended:
        if generation.error is not None:
            raise generation.error


def _wait_until_idle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _close(stream: Iterator[Any]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
