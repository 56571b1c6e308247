"""What a message from one process of a cluster to another costs, on Ray alone.

An actor like those of `actors` (its methods run on one event loop) is sent messages of the size of a worker's report of
a few events, 64 of them under way. `messages.callee_us` is the CPU time that the actor's process spends on one, its
threads for the transport included, and `messages.caller_us` that of the caller. `messages.round_trip_us` is from a call
to its reply, one at a time. `messages.transfer_bytes_s` is the rate at which an actor gets an array from another one
through the object store and copies it to where it belongs; both are on one machine, so a network makes it slower.

Run it with `python -m benchmarks.messages [--runs N] [--calls N]`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import numpy as np
import ray

from benchmarks.common import Spread, spread, write_result

UNDER_WAY = 64
MESSAGE_BYTES = 2_048
TRANSFER_BYTES = 64 * 2**20


class Callee:
    """Takes messages, and gives and gets arrays."""

    def __init__(self) -> None:
        self._array = np.ones(TRANSFER_BYTES, np.uint8)
        self._room = np.empty(TRANSFER_BYTES, np.uint8)

    async def take(self, message: bytes) -> int:
        """Receive a message."""
        return len(message)

    async def cpu_s(self) -> float:
        """CPU time of the process so far."""
        return time.process_time()

    async def give(self) -> list[Any]:
        """An array in the object store, as a reference in a list, which Ray leaves alone."""
        return [ray.put(self._array)]

    async def get_from(self, other: Any) -> float:
        """Get another actor's array; returns the seconds that this takes."""
        began = time.perf_counter()
        [reference] = await other.give.remote()
        np.copyto(self._room, await reference)
        return time.perf_counter() - began


async def throughput(actor: Any, calls: int) -> tuple[float, float]:
    """CPU seconds of a message for the callee and for the caller."""
    message = bytes(MESSAGE_BYTES)
    callee, caller = await actor.cpu_s.remote(), time.process_time()
    for _ in range(calls // UNDER_WAY):
        await asyncio.gather(*(actor.take.remote(message) for _ in range(UNDER_WAY)))
    spent = time.process_time() - caller
    sent = calls // UNDER_WAY * UNDER_WAY
    return (await actor.cpu_s.remote() - callee) / sent, spent / sent


async def round_trip(actor: Any, calls: int) -> float:
    """Median seconds of a call that nothing else is under way with."""
    message, seconds = bytes(MESSAGE_BYTES), []
    for _ in range(calls):
        began = time.perf_counter()
        await actor.take.remote(message)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


async def measure(runs: int, calls: int) -> dict[str, Spread]:
    """All metrics. A first round warms up and is not kept."""
    actors: list[Any] = [ray.remote(Callee).options(max_concurrency=1_024, num_cpus=0).remote() for _ in range(2)]
    first, second = actors
    found: dict[str, list[float]] = {}
    for run in range(runs + 1):
        callee_s, caller_s = await throughput(first, calls)
        values = {
            "messages.callee_us": 1e6 * callee_s,
            "messages.caller_us": 1e6 * caller_s,
            "messages.round_trip_us": 1e6 * await round_trip(first, calls // 10),
            "messages.transfer_bytes_s": TRANSFER_BYTES / await second.get_from.remote(first),
        }
        for name, value in values.items() if run else ():
            found.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in found.items()}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Time messages between Ray actors.")
    parser.add_argument("--runs", type=int, default=7, help="runs that are kept (at least 5 for a result)")
    parser.add_argument("--calls", type=int, default=4_096, help="messages of a run")
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.calls < 10 * UNDER_WAY:
        parser.error(f"--runs must be at least 1, and --calls at least {10 * UNDER_WAY}")
    ray.init("local", include_dashboard=False, log_to_driver=False, object_store_memory=4 * TRANSFER_BYTES)
    try:
        found = asyncio.run(measure(arguments.runs, arguments.calls))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    finally:
        ray.shutdown()
    metrics = {name: each["median"] for name, each in found.items()}
    for name, value in metrics.items():
        print(f"{name:28} {value:,.6g}")
    raw = {**found, "under_way": UNDER_WAY, "message_bytes": MESSAGE_BYTES, "transfer_bytes": TRANSFER_BYTES}
    path = write_result(benchmark="messages", subject="ray", hardware="cpu", metrics=metrics, raw=raw, packages=["ray"])
    print(f"written to {path}")


if __name__ == "__main__":
    main()
