from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors import outbox
from actors.cluster_client import ClusterClient
from dendrite.errors import UnknownNode
from tests.actors.in_process import cluster_of, lent


@pytest.fixture
async def client(tiny_model: Path) -> AsyncIterator[ClusterClient]:
    async with cluster_of(tiny_model, workers=2) as (manager, workers):
        lease = await manager.open_lease.remote()
        made = ClusterClient(manager, workers, lease.id)
        async with lent(made, manager, lease.id):
            yield made


async def test_the_lineage_of_a_node_is_known_at_once(client: ClusterClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_DELAY_S", 60.0)
    root = await client.prefill(list(b"abc"))
    assert await client.lineage(root) == tuple(b"abc")
    [branch] = await client.append(root, [[7]])
    assert await client.lineage(branch.node) == (*b"abc", 7)
    await client.release(root, subtree=True)
    await client.manager_stats()  # which lets the manager hear of it
    with pytest.raises(UnknownNode):
        await client.lineage(root)
