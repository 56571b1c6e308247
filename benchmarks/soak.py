"""Half an hour of random operations on a server and its cluster: memory has to stay flat, and nothing may be left.

    python -m benchmarks.soak --minutes 30

On one Ray: a server with two model workers, and this process, which works on the same workers by messages as well. Some
callers each do one operation after the other, drawn at random: trees that are grown, scored and released, calls and
searches that are cancelled, completions and streams that their clients leave in the middle, grammars, trees whose lease
runs out (`benchmarks.soak_cluster`, `benchmarks.soak_http`). One more keeps letting a lease of the cluster expire.

Every few seconds the memory of each process is noted, and what is held. Memory is what a process has for itself alone,
so without mapped files and Ray's object store, and of that what its allocators have given out, in MB of 10^6 bytes. The
same operations go on for `--warm-up` minutes before the run, by three times as many callers: libraries keep buffers and
kernels for the largest and the rarest batches that they have seen (MKL 4 MB at once), and those are to come before the
run. Slopes are those of robust lines over the second half of the run (`benchmarks.trend`). For that what a server keeps
for a while after its end (searches, answers) is kept for seconds only, so that it does not follow the machine's speed,
few compiled grammars are kept, and all KV pages have been used before the run.

A process has grown where a slope's whole 95 % interval is above zero and what it comes to within the second half is
above `--noise`; of memory, which heaps take and return in steps of several MB and keep where it is in pieces, also
above a fiftieth of it. Ray's own processes are measured beside, but not judged.

`soak.unexpected` counts errors other than those that an operation is meant to come to. The exit code is 1 where there
are such, where a process grows or is another one at the end, or where pages, nodes or leases are left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from actors.leases import Lease
from actors.ray_session import RaySession
from actors.rpc import Handle
from benchmarks.common import RESULTS, write_result
from benchmarks.soak_cluster import ClusterOperations
from benchmarks.soak_http import HttpOperations
from benchmarks.soak_tally import Operation, Tally
from benchmarks.soak_watch import Sample, Watch, growing, replaced, trends
from dendrite.config import EngineConfig
from dendrite.search.tasks.countdown import problems
from serve_apps.args import ServeArgs
from serve_apps.desk import Contacts
from serve_apps.ray_settings import prefer_direct
from serve_apps.services import ServeSettings

_KEPT_S = 20.0
_KEPT_GRAMMARS = 8  # fewer than there are, so that grammars are dropped all the time
_WARM_UP_CALLERS = 3
"""Times as many callers as in the run."""
_SETTLED_WITHIN_S = 90.0
_APPLICATION = "dendrite"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how much at once."""

    minutes: float = 30.0
    warm_up_minutes: float = 10.0
    callers: int = 8
    every_s: float = 5.0
    noise_mb: float = 2.0
    workers: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test: where it is, the cluster below it, and the leases that it has there itself."""

    url: str
    contacts: Contacts
    own_leases: int


@contextlib.contextmanager
def server(plan: Plan, port: int) -> Iterator[Server]:
    """Serve the packaged model on this process's Ray, or on one that is started."""
    prefer_direct(os.environ)
    from ray import serve  # reads the environment

    from serve_apps.app import build

    settings = ServeSettings(keep_searches_s=_KEPT_S, keep_answers_s=_KEPT_S)
    engine = EngineConfig(device="cpu", kv_tokens=16_384, grammar_cache=_KEPT_GRAMMARS)
    args = ServeArgs(workers=plan.workers, min_ingresses=1, max_ingresses=1, engine=engine, settings=settings)
    session = RaySession()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(args), name=_APPLICATION)
        contacts: Contacts = serve.get_deployment_handle("Desk", _APPLICATION).contacts.remote().result()
        leases = ray.get(contacts.manager.stats.remote()).leases
        yield Server(f"http://127.0.0.1:{port}", contacts, leases)
        serve.delete(_APPLICATION)
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        session.close()


async def soak(place: Server, plan: Plan, tally: Tally) -> list[Sample]:
    """Do operations for so long, then release everything; returns the samples, the last one from the very end."""
    manager: Handle = place.contacts.manager
    leases: list[Lease] = [await manager.open_lease.remote() for _ in range(2)]
    cluster = ClusterOperations(manager, place.contacts.workers, *leases)
    tasks = problems(50, plan.seed)
    cluster.tasks = tasks
    await cluster.warm_up(random.Random(plan.seed))
    http = HttpOperations(place.url, tasks)
    operations = cluster.operations + http.operations
    watch = Watch(cluster.client, place.own_leases, [manager, *place.contacts.workers, *cluster.drivers, *_replicas()])
    warm = time.monotonic() + 60 * plan.warm_up_minutes
    end = warm + 60 * plan.minutes

    async def caller(name: str, choices: list[Operation], until: float) -> None:
        draws = random.Random(f"{plan.seed} {name}")
        weights = [operation.weight for operation in choices]
        while time.monotonic() < until:
            [operation] = draws.choices(choices, weights)
            await tally.run(operation, draws)

    ends = [end] * plan.callers + [warm] * (_WARM_UP_CALLERS - 1) * plan.callers
    callers = [caller(str(number), operations, until) for number, until in enumerate(ends)]
    callers.append(caller("leases", [Operation("expire", cluster.expire, 1)], end))
    try:
        async with asyncio.TaskGroup() as group:  # where samples cannot be taken, it all ends at once
            watching = group.create_task(watch.run(plan.every_s))
            await asyncio.gather(*map(group.create_task, callers))
            watching.cancel()
    finally:
        await http.close()
        await cluster.close()
    await _until_nothing_is_held(watch)
    samples = [*watch.samples, await watch.note()]
    cluster.end()
    return samples


def _replicas() -> list[Handle]:
    """The actors of the server's deployments."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    return [
        ray.get_actor(name, namespace="serve") for name in names if name.startswith(f"SERVE_REPLICA::{_APPLICATION}#")
    ]


async def _until_nothing_is_held(watch: Watch) -> None:
    deadline = time.monotonic() + _SETTLED_WITHIN_S
    while not (await watch.held()).nothing and time.monotonic() < deadline:
        await asyncio.sleep(0.5)


def report(samples: list[Sample], tally: Tally, plan: Plan) -> tuple[dict[str, float], dict[str, Any], list[str]]:
    """Metrics, what they were made from, and what is wrong."""
    during, end = samples[:-1], samples[-1]
    warm_up_s = 60 * plan.warm_up_minutes
    slopes, grown = trends(during, warm_up_s), growing(during, warm_up_s, plan.noise_mb)
    metrics = {
        "soak.minutes": during[-1].seconds / 60 - plan.warm_up_minutes,
        "soak.warm_up_minutes": plan.warm_up_minutes,
        "soak.operations": float(tally.operations.total()),
        "soak.errors": float(tally.errors.total()),
        "soak.unexpected": float(tally.unexpected_count),
        "soak.growing": float(len(grown)),
        **{f"soak.{name}_left": float(count) for name, count in asdict(end.held).items()},
        **{f"soak.{name}.mb_h": trend.slope for name, trend in slopes.private.items()},
        **{f"soak.{name}.allocated_mb_h": trend.slope for name, trend in slopes.allocated.items()},
    }
    raw = {
        "plan": asdict(plan),
        "operations": dict(tally.operations),
        "errors": dict(tally.errors),
        "unexpected": tally.unexpected,
        "slopes_mb_h": asdict(slopes),
        "memory_mb": {
            name: {
                "first": during[0].memory[name].private,
                "last": during[-1].memory[name].private,
                "end": taken.private,
            }
            for name, taken in end.memory.items()
            if name in during[0].memory and name in during[-1].memory
        },
        "samples": [asdict(sample) for sample in samples],
    }
    rates = {name: max(metrics[f"soak.{name}.mb_h"], metrics.get(f"soak.{name}.allocated_mb_h", 0.0)) for name in grown}
    wrong = [f"{name} grows by {rate:.1f} MB/h" for name, rate in rates.items()]
    wrong += [f"{name} was not there all the time" for name in sorted(replaced(samples))]
    wrong += [f"{tally.unexpected_count} errors were not expected"] if tally.unexpected_count else []
    wrong += [] if end.held.nothing else [f"something is left: {end.held}"]
    return metrics, raw, wrong


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Random operations on a server and its cluster, for long.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, default=10.0, help="minutes of the same before those")
    parser.add_argument("--callers", type=int, default=8, help="operations at once")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--noise", type=float, default=2.0, help="MB by which memory may seem to grow in half the time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0, help="of the server; 0 is any free one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if given.minutes <= 0 or given.warm_up < 0 or given.every <= 0 or given.callers < 1:
        parser.error("--minutes and --every must be positive, --warm-up not negative, --callers at least 1")
    return given


def main() -> int:
    """Soak, print and write the result; 1 where something is wrong."""
    given = arguments()
    plan = Plan(given.minutes, given.warm_up, given.callers, given.every, given.noise, seed=given.seed)
    tally = Tally()
    with server(plan, given.port or _free_port()) as place:
        samples = asyncio.run(soak(place, plan, tally))
    metrics, raw, wrong = report(samples, tally, plan)
    for name, value in metrics.items():
        print(f"{name:28} {value:12.2f}")
    for each in (*tally.unexpected[:3], *wrong):
        print(each, file=sys.stderr)
    packages = ("ray", "fastapi", "uvicorn")
    path = write_result(
        benchmark="soak",
        subject="countdown",
        hardware="cpu",
        metrics=metrics,
        raw={**raw, "wrong": wrong},
        packages=packages,
        folder=given.out,
    )
    print(f"written to {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
