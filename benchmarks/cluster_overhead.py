"""What an expansion costs more through the cluster than on an engine in the same process.

    python -m benchmarks.cluster_overhead

Sixteen expansions are in flight at all times, each of 8 children with 16 tokens below a root of its own, on the
packaged model; when one is done its children are released and the next begins. The cluster has one worker with one
thread, the engine one thread too. Both take turns for several rounds; `cluster.overhead_ratio` is the median of the
ratios of the rounds' seconds, `cluster.added_ms` what an expansion takes longer that has nothing else in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import torch

import actors
from benchmarks.common import Spread, spread, write_result
from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.search.backend import Backend, NodeRef
from dendrite.search.tasks.countdown import problems

MODEL = "countdown"
IN_FLIGHT, CHILDREN, TOKENS = 16, 8, 16
ALONE = 16
"""Expansions of a round that are made one after the other."""
PARAMS = SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=1)


async def roots(backend: Backend) -> list[NodeRef]:
    """A root for each expansion in flight."""
    return [await backend.prefill(task.prompt) for task in problems(IN_FLIGHT, seed=3)]


async def expand(backend: Backend, root: NodeRef, count: int) -> None:
    """Make expansions one after the other."""
    for _ in range(count):
        branches = await backend.expand(root, CHILDREN, PARAMS)
        await asyncio.gather(*(backend.release(branch.node) for branch in branches))


async def timed(backend: Backend, nodes: Sequence[NodeRef], expansions: int) -> float:
    """Seconds of so many expansions."""
    began = time.perf_counter()
    await asyncio.gather(*(expand(backend, node, expansions // len(nodes)) for node in nodes))
    return time.perf_counter() - began


async def compare(local: Backend, cluster: Backend, rounds: int, expansions: int) -> dict[str, Spread]:
    """Seconds of each round, a round of each backend in turn; the first round warms up."""
    backends = {"local": (local, await roots(local)), "cluster": (cluster, await roots(cluster))}
    taken: dict[str, list[float]] = {f"{name}{kind}": [] for name in backends for kind in ("", ".alone")}
    for _ in range(rounds + 1):
        for name, (backend, nodes) in backends.items():
            taken[name].append(await timed(backend, nodes, expansions))
            taken[f"{name}.alone"].append(await timed(backend, nodes[:1], ALONE) / ALONE)
    for backend, nodes in backends.values():
        await asyncio.gather(*(backend.release(node) for node in nodes))
    return {name: spread(seconds[1:]) for name, seconds in taken.items()}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time expansions through the cluster and on an engine here.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are kept (at least 5 for a result)")
    parser.add_argument("--expansions", type=int, default=160, help="expansions of a round")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.expansions < IN_FLIGHT:
        parser.error(f"--rounds must be at least 1 and --expansions at least {IN_FLIGHT}")
    torch.set_num_threads(1)
    with (
        Engine.from_pretrained(MODEL, device="cpu") as engine,
        actors.connect(MODEL, workers=1, cpus_per_worker=1, device="cpu") as cluster,
    ):
        found = asyncio.run(compare(AsyncEngine(engine), cluster, arguments.rounds, arguments.expansions))
    pairs = zip(found["cluster"]["runs"], found["local"]["runs"], strict=True)
    alone = zip(found["cluster.alone"]["runs"], found["local.alone"]["runs"], strict=True)
    metrics = {
        "cluster.overhead_ratio": statistics.median(cluster / local for cluster, local in pairs),
        "cluster.added_ms": 1000 * statistics.median(cluster - local for cluster, local in alone),
        "cluster.expansions_per_s": arguments.expansions / found["cluster"]["median"],
        "local.expansions_per_s": arguments.expansions / found["local"]["median"],
    }
    for name, value in metrics.items():
        print(f"{name} {value:.4g}")
    raw = {"seconds": found, "expansions": arguments.expansions}
    path = write_result(
        benchmark="cluster_overhead", subject=MODEL, hardware="cpu", metrics=metrics, raw=raw, packages=("ray",)
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
