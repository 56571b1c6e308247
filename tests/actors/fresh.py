"""What a test asserts of the workers' engines has to be from after what it did."""

from __future__ import annotations

import asyncio

from actors.cluster_client import ClusterClient
from actors.worker_stats import WorkerStats


async def fresh_stats(client: ClusterClient) -> list[WorkerStats]:
    """Statistics of all workers, none of which is an old answer given since the engine was in the middle of a step."""
    while True:
        found = await client.worker_stats()
        if not any(worker.age_s for worker in found):
            return list(found)
        await asyncio.sleep(0.05)
