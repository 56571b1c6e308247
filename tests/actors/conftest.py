"""Clusters on the Ray of the run: one for all tests that leave it as it was, one to kill actors of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import actors
from actors import Cluster
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shared_cluster(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    settings = {"kv_tokens": 16_384, "debug_checks": True}
    # Copies of nodes that have a queue would come and go with the load of the machine; they have tests of their own.
    with actors.connect(tiny_model, workers=2, cpus_per_worker=1, replication="never", **settings) as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared_cluster: Cluster) -> AsyncIterator[Cluster]:
    """The shared cluster; a test must leave nothing on it."""
    yield shared_cluster
    await shared_cluster.settle()
    stats = await shared_cluster.manager_stats()
    assert stats.live_nodes == (0, 0)
    assert [load.pages_held for load in stats.loads] == [0, 0]
    assert [worker.live_nodes for worker in await shared_cluster.worker_stats()] == [0, 0]
    await shared_cluster.check()


@pytest.fixture(scope="session")
def mortal_cluster(ray_here: None) -> Iterator[Cluster]:
    """A cluster to kill actors of: Ray restarts them."""
    settings = {"kv_tokens": 32_768, "replication": "never"}
    with actors.connect("countdown", workers=2, drivers=2, cpus_per_worker=1, **settings) as cluster:
        yield cluster
