"""Searches on a Ray of two machines, of which one goes away. A process of its own, for it needs a Ray of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster as Machines

import actors
from actors import Cluster
from benchmarks.chaos import Job, calm, leaked

JOB = Job(8, tokens=400)
MACHINE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


async def lose_a_machine(cluster: Cluster, machines: Machines, other: Any) -> dict[str, Any]:
    """Compare searches undisturbed with those that lose a machine, and see what is left when there is one again."""
    expected = await calm(cluster, JOB)
    searching = asyncio.create_task(calm(cluster, JOB))
    async with asyncio.timeout(60):
        while not all(worker.live_nodes for worker in await cluster.worker_stats()):
            await asyncio.sleep(0.01)
    machines.remove_node(other, allow_graceful=False)
    in_time = not searching.done()
    found = await searching
    async with asyncio.timeout(60):  # the searches may find out, and end, before Ray itself does
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            await asyncio.sleep(0.1)
    machines.add_node(**MACHINE)
    return {
        "in_time": in_time,
        "errors": [each for each in found.results if "error" in each],
        "equal": found.results == expected.results,
        "workers": [worker.worker for worker in await cluster.worker_stats()],
        "leaked": await leaked(cluster),
    }


def main() -> None:
    """Write what became of it, as JSON, to the file that the argument names: Ray prints what it likes."""
    head = {**MACHINE, "include_dashboard": False}
    machines = Machines(initialize_head=True, head_node_args=head)
    try:
        other = machines.add_node(**MACHINE)
        ray.init(machines.address, log_to_driver=False, logging_level=logging.ERROR)
        with actors.connect("countdown", workers=2, cpus_per_worker=1, kv_tokens=32_768) as cluster:
            found = asyncio.run(lose_a_machine(cluster, machines, other))
        Path(sys.argv[1]).write_text(json.dumps(found))
        ray.shutdown()
    finally:
        machines.shutdown()


if __name__ == "__main__":
    main()
