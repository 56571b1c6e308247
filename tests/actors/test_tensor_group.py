"""Workers of two processes on Ray: what they answer, and what becomes of them when one dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

import actors
from actors import Cluster
from actors.actor_group import ActorGroup
from actors.placement import WorkerShare
from actors.refs import ClusterNode
from actors.reservations import Reservations
from actors.tensor_group import RayFollowers
from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine.engine import Engine
from dendrite.errors import ClusterError, InvalidArgument
from tests.actors.killing import assert_nothing_held, pid

PROMPT = "Numbers: 3 7 8 25. Target: 99.\n"
PARAMS = SamplingParams(max_tokens=12, seed=1, ignore_eos=True)


@pytest.fixture(scope="module")
def pairs(ray_here: None, tiny_model: Path) -> Iterator[Cluster]:
    """Two workers of two ranks each."""
    settings = {"kv_tokens": 8_192, "tensor_parallel": 2, "replication": "never"}
    with actors.connect(tiny_model, 2, cpus_per_worker=1, **settings) as cluster:
        yield cluster


@pytest.fixture
async def cluster(pairs: Cluster) -> AsyncIterator[Cluster]:
    yield pairs
    await assert_nothing_held(pairs)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def followers(near: int) -> list[int]:
    """The processes of ranks above 0 on the Ray that runs process `near`."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            is_one = folder.name.isdigit() and "Follower" in (folder / "cmdline").read_text()
            if is_one and parent(int(folder.name)) == parent(near):
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


async def test_workers_of_two_ranks_answer_as_one_engine_does(cluster: Cluster, tiny_model: Path) -> None:
    with Engine.from_pretrained(tiny_model, device="cpu", kv_tokens=8_192) as engine:
        root = engine.prefill(PROMPT)
        kids = root.fork(3)
        engine.decode(kids, PARAMS)
        expected, score = [tuple(kid.tokens) for kid in kids], engine.score(root, "12 + 7")
    for _ in range(2):  # a tree on each worker
        node = await cluster.prefill(PROMPT)
        branches = await cluster.expand(node, 3, PARAMS)
        assert [branch.tokens for branch in branches] == expected
        assert await cluster.score(node, await cluster.tokenize("12 + 7")) == pytest.approx(score, rel=1e-4)
        await cluster.release(node, subtree=True)
    stats = await cluster.worker_stats(fresh=True)
    assert [worker.engine.tensor_parallel for worker in stats] == [2, 2]
    assert len(followers(await pid(cluster, 0))) == 2


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_group_that_loses_a_rank_is_restarted_as_a_whole(cluster: Cluster, rank: int) -> None:
    root = await cluster.prefill(PROMPT, seed=4)
    assert isinstance(root, ClusterNode)
    expected = await cluster.expand(root, 2, PARAMS)
    leaders = [await pid(cluster, worker) for worker in (0, 1)]
    before = followers(leaders[0])
    # Whose follower is whose cannot be seen from here, so both workers lose theirs.
    for process in [leaders[root.worker]] if rank == 0 else before:
        os.kill(process, signal.SIGKILL)

    again = await cluster.expand(root, 2, PARAMS)
    assert [branch.tokens for branch in again] == [branch.tokens for branch in expected]
    await cluster.worker_stats()  # answered when both are back
    assert await pid(cluster, root.worker) != leaders[root.worker]
    async with asyncio.timeout(60):
        while len(now := followers(await pid(cluster, root.worker))) != 2:
            await asyncio.sleep(0.1)
    assert set(now) != set(before)
    await cluster.release(root, subtree=True)


def test_a_model_that_cannot_be_divided_is_refused(ray_here: None, tiny_model: Path) -> None:
    with pytest.raises(InvalidArgument, match="2 key-value heads"):
        actors.connect(tiny_model, 1, cpus_per_worker=1, kv_tokens=8_192, tensor_parallel=4)


def test_a_group_that_fits_no_machine_is_refused_with_what_there_is(ray_here: None) -> None:
    reservations = Reservations()
    with pytest.raises(ClusterError, match=r"2 times 9 CPU .* CPU free"):
        reservations.place(0, WorkerShare("cpu", 9.0, 0, 1), 2, 0.5)
    reservations.end()
    reservations.end()


def test_a_worker_that_is_taken_away_leaves_its_place_to_others(ray_here: None) -> None:
    group = ActorGroup()
    group.workers = ["no actor any more"]
    options = group._reservations.place(0, WorkerShare("cpu", 0.01, 0, 1), 2, 60.0)
    place = options["scheduling_strategy"].placement_group
    group.end_worker(0)
    group.end_worker(0)
    assert placement_group_table(place)["state"] == "REMOVED"


def test_followers_start_in_a_placement_group_alone(ray_here: None, tiny_model: Path) -> None:
    assert ray.is_initialized()
    followers = RayFollowers(str(tiny_model), EngineConfig(device="cpu", tensor_parallel=2), 1)
    with pytest.raises(ClusterError, match="placement group"):
        Engine.from_pretrained(tiny_model, device="cpu", tensor_parallel=2, followers=followers)
