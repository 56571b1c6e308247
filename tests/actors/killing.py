"""Ways to kill a cluster's actors, and to see that nothing is left of what they held."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from actors import Cluster


async def pid(cluster: Cluster, worker: int) -> int:
    """The process of a worker."""
    health = await cluster.actors.workers[worker].health.remote()
    return int(health.pid)


async def kill_worker(cluster: Cluster, worker: int) -> None:
    """Kill a worker's process, as a crash would, and return when it is gone. Ray restarts it."""
    doomed = await pid(cluster, worker)
    os.kill(doomed, signal.SIGKILL)
    status = Path(f"/proc/{doomed}/stat")
    async with asyncio.timeout(10):
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.01)


async def assert_nothing_held(cluster: Cluster) -> None:
    """No node, page or call on any worker, and no lease but the cluster's own."""
    await cluster.settle()
    for worker in await cluster.worker_stats(fresh=True):
        assert (worker.live_nodes, worker.engine.pages_held, worker.in_flight) == (0, 0, 0)
    await cluster.check()
    stats = await cluster.manager_stats()
    assert (stats.trees, stats.records, set(stats.live_nodes)) == (0, 0, {0})
    assert stats.leases <= 1, "a manager that was just restarted may not have heard of the cluster's own yet"
