"""The crossover of tree attention for `benchmarks.defaults`: reading a shared prefix once, beside reading it by row.

Rows have a prefix that all share and some tokens of their own. Both ways are timed on each point, and the engine's own
rule is asked which it takes: on CUDA the planner (`dendrite.attention.tree_plan`), on the CPU the builder of batches
(`dendrite.engine.batch.shared_runs`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.defaults_sweeps import Bench, Sweep
from dendrite import EngineConfig
from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.engine.batch import shared_runs
from dendrite.kv.storage import KvStorage
from dendrite.model.config import ModelConfig

BRANCHES = {"cuda": (2, 4, 8, 16, 64, 256), "cpu": (2, 4, 16, 64)}
SHARED = {"cuda": (16, 32, 64, 128, 256, 1024, 4096), "cpu": (16, 32, 64, 128, 256, 1024)}
CLOSE = 1.05
"""A choice that takes no more than this times the faster way's time counts as right."""
_OWN = 64
_CPU_SECONDS = 0.02
_CUDA_MS = 10.0
Timed = tuple[str, list[float], list[float]]
"""What is picked, `tree` or `flat`, and microseconds of a layer by either way, several runs."""


def crossover(bench: Bench) -> Sweep:
    """Microseconds of a layer's attention both ways, by branches and shared tokens, and how often the choice is right.

    `right_share` is the share of points at which the way picked is the faster or within 5 % of it.
    """
    device, shape = bench.decoder.device, bench.decoder.config
    branchings, prefixes = BRANCHES[device.type], SHARED[device.type]
    swept = Sweep({}, list(prefixes))
    losses, picks = [], {}
    for branches in branchings:
        for shared in prefixes:
            if device.type == "cuda":
                picked, tree, flat = _on_cuda(shape, branches, shared)
            else:
                picked, tree, flat = _on_cpu(shape, branches, shared, bench.runs)
            name = f"b{branches}.p{shared}"
            swept.take(f"{name}.tree_us", tree)
            swept.take(f"{name}.flat_us", flat)
            times = {way: swept.metrics[f"{name}.{way}_us"] for way in ("tree", "flat")}
            picks[name] = picked
            losses.append(times[picked] / min(times.values()))
    swept.raw |= {"picked": picks, "own_tokens": _OWN, "branches": branchings}
    swept.put("right_share", sum(loss <= CLOSE for loss in losses) / len(losses))
    swept.put("worst_loss", max(losses))
    return swept


def _on_cuda(shape: ModelConfig, branches: int, shared: int) -> Timed:
    from benchmarks.attention import HORIZON, Case, Heads, layer_us, rivals  # needs Triton

    case = Case(Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim, ""), branches, shared)
    picked, tree, flat = rivals(case)
    for each in (tree, flat):
        each.plan(case.tables, case.lengths, HORIZON)
    tree_us, flat_us = (layer_us(case.step(each), case.layers, _CUDA_MS) for each in (tree, flat))
    return picked, tree_us, flat_us


def _on_cpu(shape: ModelConfig, branches: int, shared: int, runs: int) -> Timed:
    size = EngineConfig().page_size
    common, own = shared // size, -(-_OWN // size)
    ids = np.random.default_rng(0).permutation(common + branches * own) + 1
    table = np.stack([np.concatenate((ids[:common], ids[common + row * own :][:own])) for row in range(branches)])
    lengths = [shared + _OWN] * branches
    storage = KvStorage.of(shape, len(ids) + 1, size, torch.float32, torch.device("cpu"))
    storage.pages.normal_()
    attention = TorchAttention(storage)
    query = torch.randn(branches, shape.num_heads, shape.head_dim)
    key, value = torch.randn(2, branches, shape.num_kv_heads, shape.head_dim)

    def step(shared_pages: list[tuple[int, int, int]]) -> None:
        attention.begin(_batch(table, lengths, size, shared_pages))
        for layer in range(shape.num_layers):
            attention.forward(layer, query, key, value)

    picked = "tree" if shared_runs(table, lengths, size, shape.kv_size) else "flat"
    ways = [partial(step, [(0, branches, common)]), partial(step, [])]
    tree, flat = ([1e6 * seconds / shape.num_layers for seconds in times] for times in _timed(ways, runs))
    return picked, tree, flat


def _batch(
    table: npt.NDArray[np.int64], lengths: list[int], page_size: int, shared_pages: list[tuple[int, int, int]]
) -> ForwardBatch:
    """A decode step of all rows."""
    rows = len(lengths)
    last = [int(pages[(length - 1) // page_size]) for pages, length in zip(table, lengths, strict=True)]
    return ForwardBatch(
        tokens=torch.zeros(rows, dtype=torch.int64),
        positions=torch.tensor(lengths) - 1,
        slots=torch.tensor(last) * page_size + (torch.tensor(lengths) - 1) % page_size,
        query_start=list(range(rows + 1)),
        context=lengths,
        page_table=torch.from_numpy(table),
        shared_pages=shared_pages,
    )


def _timed(ways: Sequence[Callable[[], None]], runs: int) -> list[list[float]]:
    """Seconds of each in several runs, which take turns and are of as many calls as fill some time."""
    counts = []
    for way in ways:
        way()
        counts.append(max(1, int(_CPU_SECONDS / _seconds(way, 1))))
    found = [[_seconds(way, count) for way, count in zip(ways, counts, strict=True)] for _ in range(runs)]
    return [list(times) for times in zip(*found, strict=True)]


def _seconds(way: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - start) / count
