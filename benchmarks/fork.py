"""What a fork costs on the host, and that context, depth and siblings don't change it.

Times the public `Node.fork` with Python's garbage collector on, as a user has it. Compared are: a context of 128 tokens
with one of 131,072; a node at depth 1 with one at depth 1000; a parent with 1 child with one that has 1000. The two
sides of a comparison take turns call by call, so that a busy machine slows both. Every figure is the median of several
runs; a run's figure is the median of its calls, or their mean where its name says so. The clock's own cost is included.

Memory is what `tracemalloc` counts for the worst shape, a chain in which every node has a single child, before any of
them writes. The overhead compares 64 forks of a 4096-token context with that context's KV.

Run it with `python -m benchmarks.fork [--runs N] [--calls N]`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import Spread, spread, write_result
from dendrite.kv import KvCache, Node

BATCH = 64
SHORT, LONG = 128, 131_072
DEPTH = SIBLINGS = 1000
CONTEXT = 4096
KV_BYTES_PER_TOKEN = 22 * 2 * 4 * 64 * 2
"""TinyLlama-1.1B in bfloat16: 22 layers, keys and values, 4 KV heads of 64, 2 bytes each."""

TARGETS = {
    "fork.p50_us": 2.5,
    "fork.n64_us": 0.5,
    "fork.context_ratio": 1.15,
    "fork.depth_ratio": 1.15,
    "fork.sibling_ratio": 1.15,
    "fork.metadata_bytes": 512.0,
    "fork.kv_overhead_percent": 0.1,
}
"""The most that each metric may be."""


class Bare:
    """As many slots as a node and nothing in them: the least that Python can do for an object of its size."""

    __slots__ = Node.__slots__


@dataclass(frozen=True)
class Runs:
    """Repeated measurements, by name."""

    latency: dict[str, Spread]
    ratios: dict[str, Spread]


def prompt(cache: KvCache, tokens: int) -> Node:
    """A computed root of that many tokens."""
    root = cache.new_tree(range(tokens), tree_id=0, seed=0, detokenize=repr)
    cache.reserve(root, tokens)
    cache.commit(root, tokens)
    return root


def chain(cache: KvCache, depth: int) -> Node:
    """A computed node of one token at that depth below a root of `SHORT` tokens."""
    node = prompt(cache, SHORT)
    for _ in range(depth):
        (node,) = node.fork()
        cache.reserve(node, 1)
        node.tokens.append(0)
        cache.commit(node, 1)
    return node


def make_cache() -> KvCache:
    """Room for everything below; prompts must not find each other."""
    return KvCache(2 * LONG // 16, 16, prefix_cache=False)


def time_us(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Median and mean time of a call in µs.

    What it returns is kept until the end, as a search would keep its nodes. The mean holds the collector's pauses.
    """
    kept, times = [], []
    clock = time.perf_counter_ns
    for _ in range(calls):
        start = clock()
        made = call()
        times.append(clock() - start)
        kept.append(made)
    return statistics.median(times) / 1000, statistics.mean(times) / 1000


def alternating_us(one: Node, other: Node, calls: int) -> tuple[float, float]:
    """Median time of `fork(1)` on each of two nodes in µs; they take turns, and a child goes before the next comes."""
    times: dict[Node, list[int]] = {one: [], other: []}
    clock = time.perf_counter_ns
    for call in range(calls):
        for node in (one, other) if call % 2 else (other, one):
            start = clock()
            made = node.fork(1)
            times[node].append(clock() - start)
            made[0].release()
    return statistics.median(times[one]) / 1000, statistics.median(times[other]) / 1000


def latency(calls: int) -> dict[str, float]:
    """One run: times in µs of `fork(1)`, of a child in `fork(64)`, and of bare objects beside them."""
    batches = max(1, calls // BATCH)
    single, batch = prompt(make_cache(), SHORT), prompt(make_cache(), SHORT)
    p50, mean = time_us(lambda: single.fork(1), calls)
    n64, n64_mean = time_us(lambda: batch.fork(BATCH), batches)
    figures = {
        "fork.p50_us": p50,
        "fork.mean_us": mean,
        "fork.n64_us": n64 / BATCH,
        "fork.n64_mean_us": n64_mean / BATCH,
        "bare.p50_us": time_us(lambda: [Bare()], calls)[0],
        "bare.n64_us": time_us(lambda: [Bare() for _ in range(BATCH)], batches)[0] / BATCH,
        "clock.p50_us": time_us(lambda: None, calls)[0],
    }
    for root in (single, batch):
        root.release(subtree=True)
    return figures


def ratios(calls: int) -> dict[str, float]:
    """One run: what the extreme costs by the ordinary, for each of the three things that must not matter."""
    few, many = prompt(make_cache(), SHORT), prompt(make_cache(), SHORT)
    few.fork(1)
    many.fork(SIBLINGS)
    pairs = {
        "fork.context_ratio": (prompt(make_cache(), SHORT), prompt(make_cache(), LONG)),
        "fork.depth_ratio": (chain(make_cache(), 1), chain(make_cache(), DEPTH)),
        "fork.sibling_ratio": (few, many),
    }
    figures = {}
    for name, (ordinary, extreme) in pairs.items():
        base, cost = alternating_us(ordinary, extreme, calls)
        figures[name] = cost / base
    return figures


def memory() -> dict[str, float]:
    """Bytes that a fork adds before it writes, and the share that 64 of them add to their context's KV."""

    def single(root: Node) -> list[Node]:
        nodes = [root]
        for _ in range(1000):
            nodes += nodes[-1].fork(1)
        return nodes

    def siblings(root: Node) -> list[Node]:
        return root.fork(BATCH)

    per_fork = {}
    for name, grow in {"chain": single, "siblings": siblings}.items():
        root = prompt(make_cache(), CONTEXT)
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        nodes = grow(root)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        made = [node for node in nodes if node is not root]
        per_fork[name] = (after - before - sys.getsizeof(nodes)) / len(made)
    cache = root.tree.cache
    used = cache.pool.num_used
    root.fork(BATCH)
    new_pages = cache.pool.num_used - used
    context = CONTEXT * KV_BYTES_PER_TOKEN
    added = new_pages * cache.page_size * KV_BYTES_PER_TOKEN + BATCH * per_fork["siblings"]
    return {
        "fork.metadata_bytes": max(per_fork.values()),
        "fork.metadata_bytes_chain": per_fork["chain"],
        "fork.metadata_bytes_siblings": per_fork["siblings"],
        "fork.new_pages": float(new_pages),
        "fork.kv_overhead_percent": 100 * added / context,
        "bare.bytes": float(sys.getsizeof(Bare())),
    }


def measure(runs: int, calls: int) -> Runs:
    """Everything that is timed. A first round warms up and is not kept."""
    timed: dict[str, list[float]] = {}
    compared: dict[str, list[float]] = {}
    for run in range(runs + 1):
        for kept, figures in ((timed, latency(calls)), (compared, ratios(calls))):
            for name, value in figures.items() if run else ():
                kept.setdefault(name, []).append(value)
    return Runs(*({name: spread(values) for name, values in kept.items()} for kept in (timed, compared)))


def show(metrics: dict[str, float], raw: dict[str, Any]) -> None:
    """Print a table of the metrics, with spread and target where they have one."""
    table = Table("metric", "median", "min", "max", "target")
    spreads = raw["latency"] | raw["ratios"]
    for name, value in metrics.items():
        runs, target = spreads.get(name), TARGETS.get(name)
        extremes = (f"{runs['min']:.4g}", f"{runs['max']:.4g}") if runs else ("", "")
        verdict = "" if target is None else f"≤ {target:g} {'met' if value <= target else 'missed'}"
        table.add_row(name, f"{value:.4g}", *extremes, verdict)
    Console().print(table)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time Node.fork and count its memory, on the host alone.")
    parser.add_argument("--runs", type=int, default=7, help="runs that are kept (at least 5 for a result)")
    parser.add_argument("--calls", type=int, default=5000, help="calls timed in a run")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.calls < BATCH:
        parser.error(f"--runs must be at least 1 and --calls at least {BATCH}")
    try:
        runs = measure(arguments.runs, arguments.calls)
        used = memory()
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    raw: dict[str, Any] = {"latency": runs.latency, "ratios": runs.ratios, "memory": used}
    metrics = {name: values["median"] for name, values in (runs.latency | runs.ratios).items()} | used
    show(metrics, raw)
    path = write_result(benchmark="fork", subject="metadata", hardware="cpu", metrics=metrics, raw=raw)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
