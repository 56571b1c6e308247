"""The load of the replication benchmark, on two workers in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster_client import ClusterClient
from actors.fleet import Fleet
from actors.replication import Replicator
from actors.routing import Router
from benchmarks.replication import Load, measure
from tests.actors.in_process import cluster_of
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_run_counts_what_it_has_made_and_leaves_nothing(tmp_path: Path, workers: int) -> None:
    load = Load(prompt=64, expansions=40, in_flight=8, children=2, tokens=4)
    async with cluster_of(write_tiny_model(tmp_path), workers=workers) as (manager, handles):
        lease = await manager.open_lease.remote()
        fleet = Fleet(handles)
        replicator = Replicator(fleet, "transfer" if workers > 1 else "never")
        client = ClusterClient(manager, handles, lease.id, fleet=fleet, router=Router(fleet, replicator))
        for number in range(2):
            run = await measure(client, load, number)
            assert sum(run.by_worker.values()) == 40 * 2
            assert run.tok_s > 0
            assert run.prefill_tokens == 64, "another prompt each time, computed once"
            assert (run.bytes_moved > 0) == (run.tokens_avoided > 0)
            assert run.tokens_avoided in (0, 64)
            assert (len(run.by_worker) == 2) == (run.tokens_avoided == 64)
        await client.settle()
        assert [worker.live_nodes for worker in await client.worker_stats()] == [0] * workers
        await manager.close_lease.remote(lease.id)
