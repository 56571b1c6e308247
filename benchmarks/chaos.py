"""A job on a cluster whose processes are killed all the time, beside the same job left in peace.

    python -m benchmarks.chaos                     rounds of 40 Countdown problems for 10 minutes, a kill every 5 s

In each round workers are killed in turn (SIGKILL, as a crash would), every few seconds if more than one is alive, the
tree manager once a third of the results is there, and a search driver once half of them is. The searches are ordered,
so that all rounds have to come to the same results as the calm one: `chaos.equal` is the share of problems where they
do, `chaos.lost` counts those without a result, and `chaos.leaked` the nodes, pages and leases that are left in the end.
`chaos.slowdown` is the median round's time by the calm one's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

import actors
from actors import Cluster
from actors.fleet import RecoveryOptions
from actors.rpc import Handle, call
from actors.worker_stats import WorkerHealth
from benchmarks.common import write_result
from dendrite.errors import ClusterError
from dendrite.jobs import Outcome
from dendrite.search.budget import Budget
from dendrite.search.tasks.countdown import problems

_ALIVE_WITHIN_S = 1.0
SEED = 7
IN_FLIGHT = 4


@dataclass(frozen=True)
class Job:
    """So many Countdown problems, and the tokens that each may take."""

    problems: int
    tokens: int
    traces: Path | None = None
    """Where the searches write theirs, so that one whose driver dies goes on and does not start again."""


@dataclass
class Round:
    """What became of the problems, in their order and without their times, and what was done to the cluster."""

    results: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)


async def calm(cluster: Cluster, job: Job) -> Round:
    """Search the problems on a cluster that is left in peace."""
    done = Round()
    await _solve(cluster, job, [], done)
    return done


async def disturbed(cluster: Cluster, job: Job, every_s: float) -> Round:
    """Search them while a worker is killed every `every_s`, and the tree manager and a driver once each."""
    done, outcomes = Round(), list[Outcome]()
    manager, driver = cluster.actors.manager, cluster.actors.drivers[-1]
    killers = [
        asyncio.create_task(_kill_workers(cluster, every_s, done.kills)),
        asyncio.create_task(_kill_after(outcomes, job.problems // 3, "manager", manager, done.kills)),
        asyncio.create_task(_kill_after(outcomes, job.problems // 2, "driver", driver, done.kills)),
    ]
    try:
        await _solve(cluster, job, outcomes, done)
    finally:
        for killer in killers:
            killer.cancel()
        await asyncio.gather(*killers, return_exceptions=True)
    return done


async def leaked(cluster: Cluster) -> int:
    """Nodes and pages on the workers, what the manager has on record, and leases besides the cluster's own."""
    await cluster.settle()
    workers = await cluster.worker_stats(fresh=True)
    held = sum(worker.live_nodes + worker.engine.pages_held for worker in workers)
    stats = await cluster.manager_stats()
    return held + stats.trees + stats.records + max(0, stats.leases - 1)  # a new manager may not have heard of it yet


async def _solve(cluster: Cluster, job: Job, outcomes: list[Outcome], into: Round) -> None:
    began = time.monotonic()
    tasks = problems(job.problems, seed=11)
    budget = Budget(tokens=job.tokens)
    solving = cluster.solve_many(tasks, "mcts", budget, SEED, ordered=True, in_flight=IN_FLIGHT, traces=job.traces)
    async for outcome in solving:
        outcomes.append(outcome)  # noqa: PERF401  # the killers watch it grow
    into.seconds = time.monotonic() - began
    found = (outcome.to_dict() for outcome in sorted(outcomes, key=lambda outcome: outcome.index))
    into.results = [{key: value for key, value in each.items() if key != "seconds"} for each in found]


async def _kill_workers(cluster: Cluster, every_s: float, kills: Counter[str]) -> None:
    """Kill one worker after the other, until cancelled, but not the last one that is alive."""
    for turn in itertools.count():
        await asyncio.sleep(every_s)
        pids = await asyncio.gather(*map(_pid, cluster.actors.workers))
        alive = [pid for pid in pids[turn % len(pids) :] + pids[: turn % len(pids)] if pid is not None]
        if len(alive) > 1:
            os.kill(alive[0], signal.SIGKILL)
            kills["worker"] += 1


async def _pid(worker: Handle) -> int | None:
    """The process of a worker; None if it does not answer, since it is being restarted."""
    with contextlib.suppress(ClusterError, TimeoutError):
        async with asyncio.timeout(_ALIVE_WITHIN_S):
            health: WorkerHealth = await call(worker.health.remote(), "a worker")
            return health.pid
    return None


async def _kill_after(outcomes: list[Outcome], count: int, kind: str, actor: Handle, kills: Counter[str]) -> None:
    while len(outcomes) < count:
        await asyncio.sleep(0.005)
    ray.kill(actor, no_restart=False)
    kills[kind] += 1


async def compare(
    cluster: Cluster, job: Job, every_s: float, seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of rounds for so long, one at least, and what they were made from."""
    expected = await calm(cluster, job)
    rounds: list[Round] = []
    end = time.monotonic() + seconds
    while not rounds or time.monotonic() < end:
        rounds.append(await disturbed(cluster, job, every_s))
    pairs = [pair for each in rounds for pair in zip(expected.results, each.results, strict=True)]
    kills = sum((each.kills for each in rounds), Counter[str]())
    metrics = {
        "chaos.equal": sum(one == other for one, other in pairs) / len(pairs),
        "chaos.lost": float(sum("error" in found for _, found in pairs)),
        "chaos.leaked": float(await leaked(cluster)),
        "chaos.slowdown": statistics.median(each.seconds for each in rounds) / expected.seconds,
        "chaos.kills": float(kills.total()),
        "chaos.problems": float(len(pairs)),
    }
    raw = {
        "kills": dict(kills),
        "recovery": asdict(await cluster.recovery_stats()),
        "calm_s": expected.seconds,
        "chaos_s": [each.seconds for each in rounds],
        "unequal": [found for wanted, found in pairs if wanted != found],
    }
    return metrics, raw


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=2_000, help="budget of a problem")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills of workers")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long rounds are begun")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--drivers", type=int, default=2)
    arguments = parser.parse_args()
    recovery = RecoveryOptions(attempts=50)
    job = Job(arguments.problems, arguments.tokens)
    with actors.connect(workers=arguments.workers, drivers=arguments.drivers, recovery=recovery) as cluster:
        metrics, raw = asyncio.run(compare(cluster, job, arguments.every, 60 * arguments.minutes))
    raw["settings"] = vars(arguments)
    print(
        write_result(benchmark="chaos", subject="countdown", hardware="cpu", metrics=metrics, raw=raw, packages=["ray"])
    )


if __name__ == "__main__":
    main()
