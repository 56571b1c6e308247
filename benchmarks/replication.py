"""What it brings to copy a hot prefix to a second worker, and what the ways of copying it cost.

    python -m benchmarks.replication

A prompt of 1,500 tokens is computed on one worker; then many expansions of it are under way at once, always the same
number. Compared are one worker, and two under each policy (`actors.replication`): no copies, copies computed again,
copies of the KV, and whichever of the two is faster by the measured rates. Every worker has one thread. A run takes
from the first expansion to the end of the last, the copying included. Each has a prompt of its own, as to its first
tokens, so that no worker has anything of it in its cache. A policy's first run, in which rates are first measured, is
not counted. The prefix is read once for all rows of a step, so that a step of half the rows takes more than half the
time: it takes a large load for two workers to do nearly twice as much as one.

`replication.speedup` is the ratio of the throughputs of two workers ("auto") and of one. `tokens_avoided` is what was
not computed again since its KV was moved, `bytes_moved` what that took; `prefill_tokens` is what all workers computed,
the prompt itself included: all of a run.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import actors
from actors.cluster_client import ClusterClient
from actors.replication import Policy
from benchmarks.common import spread, write_result
from dendrite.config import SamplingParams
from dendrite.search.backend import Branch

CASES: dict[str, tuple[int, Policy]] = {
    "one_worker": (1, "never"),
    "never": (2, "never"),
    "recompute": (2, "recompute"),
    "transfer": (2, "transfer"),
    "auto": (2, "auto"),
}
"""Workers and policy by name."""


@dataclass(frozen=True, slots=True)
class Load:
    """The expansions of a run: `in_flight` of them at once, each of `children` nodes of `tokens`."""

    prompt: int
    expansions: int
    in_flight: int
    children: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run: generated tokens a second, where they were generated, and what the copies took."""

    tok_s: float
    by_worker: dict[int, int]
    prefill_tokens: int
    tokens_avoided: int
    bytes_moved: int


async def measure(cluster: ClusterClient, load: Load, number: int) -> Run:
    """Expand one prompt many times."""
    text = f"{number}: " + "Numbers: 3 7 8 25. Target: 99.\n" * load.prompt
    tokens = (await cluster.tokenize(text))[: load.prompt]
    before = await _totals(cluster)
    root = await cluster.prefill(tokens)
    left = iter(range(load.expansions))
    branches: list[Branch] = []

    async def expand_in_turn() -> None:
        for index in left:
            seed = number * load.expansions + index
            params = SamplingParams(max_tokens=load.tokens, seed=seed, ignore_eos=True)
            made = await cluster.expand(root, load.children, params)
            branches.extend(made)
            await asyncio.gather(*(cluster.release(branch.node) for branch in made))

    began = time.monotonic()
    await asyncio.gather(*(expand_in_turn() for _ in range(load.in_flight)))
    seconds = time.monotonic() - began
    await cluster.release(root)
    after = await _totals(cluster)
    by_worker = Counter(branch.worker for branch in branches)
    generated = sum(len(branch.tokens) for branch in branches)
    return Run(
        generated / seconds, dict(sorted(by_worker.items())), *(b - a for a, b in zip(before, after, strict=True))
    )


async def _totals(cluster: ClusterClient) -> tuple[int, int, int]:
    """Tokens computed by prefill, tokens moved, bytes moved, so far."""
    stats = cluster.replicator.stats
    return (await cluster.stats()).prefill_tokens, stats.tokens_moved, stats.bytes_moved


def run_case(case: str, load: Load, runs: int) -> tuple[list[Run], dict[str, Any]]:
    """The counted runs of a case, and what was measured of transfers and prefills."""
    workers, policy = CASES[case]
    with (
        actors.connect(
            "countdown", workers=workers, cpus_per_worker=1, device="cpu", kv_tokens=65_536, replication=policy
        ) as cluster,
        asyncio.Runner() as runner,
    ):
        made = [runner.run(measure(cluster, load, number)) for number in range(runs + 1)]
        rates = cluster.replicator.rates
        measured = {
            "transfer_bytes_per_s": rates.bytes_per_s,
            "transfer_latency_s": rates.latency_s,
            "prefill_tok_s": cluster._fleet.prefill_rate(workers - 1),
            "decisions": dict(cluster.replicator.decisions),
            "stats": asdict(cluster.replicator.stats),
        }
    return made[1:], measured


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=1_500)
    parser.add_argument("--expansions", type=int, default=640)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()
    load = Load(arguments.prompt, arguments.expansions, arguments.in_flight, arguments.children, arguments.tokens)
    metrics: dict[str, float] = {}
    raw: dict[str, Any] = {"load": asdict(load)}
    table = Table("case", "tok/s", "tokens avoided", "KiB moved", "tokens computed")
    for case in CASES:
        made, measured = run_case(case, load, arguments.runs)
        speed = spread([run.tok_s for run in made])
        raw[case] = {"tok_s": speed, "runs": [asdict(run) for run in made], "measured": measured}
        means = {
            name: sum(getattr(run, name) for run in made) / len(made)
            for name in ("tokens_avoided", "bytes_moved", "prefill_tokens")
        }
        metrics[f"replication.{case}.tok_s"] = speed["median"]
        metrics |= {f"replication.{case}.{name}": mean for name, mean in means.items()}
        avoided, moved, computed = means.values()
        table.add_row(case, f"{speed['median']:.0f}", f"{avoided:.0f}", f"{moved / 1024:.0f}", f"{computed:.0f}")
    metrics["replication.speedup"] = metrics["replication.auto.tok_s"] / metrics["replication.one_worker.tok_s"]
    Console().print(table, f"two workers over one: {metrics['replication.speedup']:.2f}")
    print(
        write_result(
            benchmark="replication", subject="countdown", hardware="cpu", metrics=metrics, raw=raw, packages=["ray"]
        )
    )


if __name__ == "__main__":
    main()
