"""How many node events a shard of the tree manager takes in a second, and what a manager that stands still costs.

*Throughput.* Four workers report 64 searches each that run at once. A search begins with a prompt of 256 tokens, makes
60 expansions of four children with 8 to 32 tokens below any node that it holds, gives up every third node on the way,
and releases all that is left when it ends, after which another one begins. Their events come in packs of at least 256,
as the workers send them. Timed is what the manager's process does with a message: unpickling it, taking it in with the
worker's status, and the lineage of one held node for every hundred events, each asked right after the pack; all nodes
that a search leaves behind are gone at the end, which is checked. Ray's own transport is not in it. Seconds are of the
process's CPU time (it has one thread), for other programs may run on the machine; those of the clock are in `raw`. The
figure is the median of several runs.

*Standing still.* On a Ray cluster with one worker, expansions of four tokens follow one another; in every other period
of two seconds the manager's process is stopped (SIGSTOP). Compared are the 99th percentiles of an expansion's latency.

Run it with `python -m benchmarks.manager [--runs N] [--events N] [--periods N]`; 0 periods leave Ray out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pickle
import random
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from actors.deltas import Added, Batch, EventLog, Load, Released, Status
from actors.outbox import MAX_EVENTS
from actors.refs import unique_id
from actors.topology import HeldTrees
from actors.tree_manager import TreeManager
from benchmarks.common import Spread, spread, write_result

WORKERS, SEARCHES = 4, 64
PROMPT, EXPANSIONS, CHILDREN = 256, 60, 4
SHORTEST, LONGEST = 8, 32
LOOKUP_EVERY = 100
PERIOD_S = 2.0
EPOCH = 1
"""Of the manager: a later incarnation takes in the leases that it hears of."""


@dataclass
class Search:
    """One tree: its held nodes with the lengths of their paths."""

    tree: int
    held: dict[int, int] = field(default_factory=dict)
    nodes: int = 0
    expansions: int = 0


@dataclass
class Message:
    """A pickled batch, how many events it has, and the nodes that are asked for after it."""

    data: bytes
    events: int
    lookups: list[tuple[int, int]]


@dataclass(frozen=True)
class Throughput:
    """Events a second: taken in by the manager, by CPU time and by the clock, and packed by a worker."""

    taken: Spread
    clocked: Spread
    packed: Spread
    counts: dict[str, float]


class Worker:
    """A worker's side: searches that take turns, and their events as messages."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._random = random.Random(index)
        self._log, self._held = EventLog(), HeldTrees()
        self._number = self._trees = 0
        self._searches: list[Search] = []
        self.packing_s = 0.0

    def run(self, events: int) -> list[Message]:
        """Messages of so many events and more: the searches that were begun are all ended with the last."""
        messages, made = [self._message(report=True)], 0
        self._searches = [self._begin() for _ in range(SEARCHES)]
        while self._searches:
            at = self._random.randrange(len(self._searches))
            search = self._searches[at]
            if search.expansions < EXPANSIONS:
                self._expand(search)
            else:
                for node in search.held:
                    self._log.add(Released(search.tree, node))
                search.held.clear()
                if made < events:
                    self._searches[at] = self._begin()
                else:
                    self._searches.pop(at)
            if self._log.events >= MAX_EVENTS or not self._searches:
                messages.append(self._message())
                made += messages[-1].events
        return messages

    def _begin(self) -> Search:
        self._trees += 1
        search = Search(unique_id(1 + self.index + WORKERS * self._trees, 0))
        self._add(search, None, PROMPT)
        return search

    def _expand(self, search: Search) -> None:
        search.expansions += 1
        parent = self._random.choice(list(search.held))
        for _ in range(CHILDREN):
            self._add(search, parent, self._random.randint(SHORTEST, LONGEST))
        if search.expansions % 3 == 0:
            for node in self._random.sample(list(search.held), CHILDREN):
                del search.held[node]
                self._log.add(Released(search.tree, node))

    def _add(self, search: Search, parent: int | None, tokens: int) -> None:
        base = search.held[parent] if parent is not None else 0
        span = tuple(self._random.choices(range(32_000), k=tokens))
        self._log.add(Added(search.tree, search.nodes, parent, base, span))
        search.held[search.nodes] = base + tokens
        search.nodes += 1

    def _message(self, report: bool = False) -> Message:
        events = self._log.events
        began = time.process_time()
        pack = self._log.pack()
        begun, ended = self._held.apply(pack)
        load, none = Load(self._held.live, 0), np.zeros(0, np.int64)
        status = Status(load, False, np.array(begun, np.int64), np.array(ended, np.int64), none)
        batch = Batch(self.index, 0, None if report else EPOCH, self._number, (pack,), status)
        data = pickle.dumps(batch, 5)
        self.packing_s += time.process_time() - began
        self._number += 1
        alive = [search for search in self._searches if search.held]
        asked = [self._random.choice(alive) for _ in range(round(events / LOOKUP_EVERY)) if alive]
        return Message(data, events, [(search.tree, self._random.choice(list(search.held))) for search in asked])


async def take(messages: list[list[Message]]) -> tuple[int, float, float]:
    """Events, CPU seconds and seconds of a manager that takes the workers' messages in turn, and answers."""
    manager = TreeManager(3600.0, WORKERS, epoch=EPOCH)
    for worker in messages:
        await manager.report(pickle.loads(worker[0].data), None)
    events = 0
    began, began_cpu = time.perf_counter(), time.process_time()
    for at in range(1, max(map(len, messages))):
        for worker in messages:
            if at < len(worker):
                message = worker[at]
                await manager.apply(pickle.loads(message.data))
                events += message.events
                for tree, node in message.lookups:
                    await manager.lineage(tree, node)
    cpu_s, seconds = time.process_time() - began_cpu, time.perf_counter() - began
    stats = await manager.stats()
    assert (stats.trees, stats.records, sum(stats.live_nodes)) == (0, 0, 0)
    return events, cpu_s, seconds


def throughput(runs: int, events: int) -> Throughput:
    """Events a second of the manager, and of a worker that packs them. A first round warms up and is not kept."""
    taken, clocked, packed = [], [], []
    for _ in range(runs + 1):
        workers = [Worker(index) for index in range(WORKERS)]
        messages = [worker.run(events // WORKERS) for worker in workers]
        made, cpu_s, seconds = asyncio.run(take(messages))
        taken.append(made / cpu_s)
        clocked.append(made / seconds)
        packed.append(made / sum(worker.packing_s for worker in workers))
    counts = {
        "events": float(made),
        "messages": float(sum(map(len, messages))),
        "bytes": float(sum(len(message.data) for worker in messages for message in worker)),
        "lookups": float(sum(len(message.lookups) for worker in messages for message in worker)),
    }
    return Throughput(spread(taken[1:]), spread(clocked[1:]), spread(packed[1:]), counts)


async def latencies(periods: int) -> dict[str, list[list[float]]]:
    """Latencies of expansions in seconds, by whether the manager stood still, a list for each period."""
    from ray._private import state

    import actors
    from dendrite.config import SamplingParams

    params = SamplingParams(max_tokens=4, ignore_eos=True)
    taken: dict[str, list[list[float]]] = {"running": [], "stopped": []}
    with actors.connect("countdown", workers=1) as cluster:
        pid: int = state.actors(cluster.actors.manager._actor_id.hex())["Pid"]
        root = await cluster.prefill("Numbers: 3 7 8 25. Target: 99.\n")
        for period in range(-1, 2 * periods):  # one to warm up
            stop = period % 2 == 1 and period > 0
            os.kill(pid, signal.SIGSTOP if stop else signal.SIGCONT)
            found = []
            end = time.perf_counter() + PERIOD_S
            try:
                while (began := time.perf_counter()) < end:
                    [branch] = await cluster.expand(root, 1, params)
                    found.append(time.perf_counter() - began)
                    await cluster.release(branch.node)
            finally:
                os.kill(pid, signal.SIGCONT)
            if period >= 0:
                taken["stopped" if stop else "running"].append(found)
    return taken


def p99_ms(seconds: list[float]) -> float:
    """The 99th percentile in ms."""
    return 1000 * statistics.quantiles(seconds, n=100)[98]


def show(metrics: dict[str, float]) -> None:
    """Print a table of the metrics."""
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.6g}")
    Console().print(table)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time the tree manager, and expansions without it.")
    parser.add_argument("--runs", type=int, default=7, help="runs that are kept (at least 5 for a result)")
    parser.add_argument("--events", type=int, default=400_000, help="events of a run")
    parser.add_argument("--periods", type=int, default=5, help="periods of each kind on a Ray cluster; 0 for none")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.events < MAX_EVENTS or arguments.periods < 0:
        parser.error(f"--runs must be at least 1, --events at least {MAX_EVENTS} and --periods not negative")
    try:
        fast = throughput(arguments.runs, arguments.events)
        found = asyncio.run(latencies(arguments.periods)) if arguments.periods else {}
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    metrics = {"manager.events_per_s": fast.taken["median"], "worker.packed_events_per_s": fast.packed["median"]}
    pooled = {name: [each for period in periods for each in period] for name, periods in found.items()}
    if pooled:
        p99 = {name: p99_ms(values) for name, values in pooled.items()}
        metrics |= {f"expand.{name}_p99_ms": value for name, value in p99.items()}
        metrics |= {f"expand.{name}_p50_ms": 1000 * statistics.median(values) for name, values in pooled.items()}
        metrics["expand.stopped_added_p99_ms"] = p99["stopped"] - p99["running"]
    show(metrics)
    each = {name: [p99_ms(period) for period in periods] for name, periods in found.items()}
    expansions = {name: len(values) for name, values in pooled.items()}
    raw = {**asdict(fast), "p99_ms": each, "expansions": expansions}
    path = write_result(
        benchmark="manager",
        subject="topology",
        hardware="cpu",
        metrics=metrics,
        raw=raw,
        packages=("numpy", "ray"),
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
