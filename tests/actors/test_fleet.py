"""Members of a fleet come and go."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.fleet import Fleet, RecoveryOptions
from actors.rpc import ActorLost
from actors.worker_calls import WorkerCalls
from dendrite.errors import ClusterError
from tests.actors.in_process import LocalHandle


def test_a_worker_joins_once_and_in_its_turn() -> None:
    fleet = Fleet(["a"])
    fleet.join(2, "c")
    assert len(fleet) == 1
    fleet.join(1, "b")
    fleet.join(1, "other")
    assert (len(fleet), fleet.handle(1), fleet.up) == (2, "b", [0, 1])


def test_a_worker_of_which_nothing_is_known_may_join_later() -> None:
    fleet = Fleet(["a"])
    fleet.join(1, None)
    fleet.join(2, "c")
    fleet.join(2, None)
    assert (fleet.members, fleet.up, [fleet.knows(worker) for worker in range(4)]) == (
        [0, 2],
        [0, 2],
        [True, False, True, False],
    )
    fleet.join(1, "b")
    assert (fleet.members, fleet.up, fleet.handle(1)) == ([0, 1, 2], [0, 1, 2], "b")


class Manager:
    """Tells of workers, of which 1 was taken away."""

    async def handles(self, first: int, end: int) -> list[str | None]:
        return [f"worker {worker}" if worker != 1 else None for worker in range(first, end)]


async def test_a_worker_is_met_whatever_became_of_those_before_it() -> None:
    fleet = Fleet(["worker 0"])
    calls = WorkerCalls(LocalHandle(Manager()), 1, fleet)
    await calls.meet(1)
    assert len(fleet) == 1
    await calls.meet(3)
    assert (fleet.up, fleet.handle(3)) == ([0, 2, 3], "worker 3")


def test_a_retired_worker_keeps_its_number_and_has_lost_what_it_held() -> None:
    fleet = Fleet(["a", "b", "c"])
    epoch = fleet.epoch(1)
    fleet.retire(1)
    assert (fleet.members, fleet.up) == ([0, 2], [0, 2])
    assert fleet.epoch(1) > epoch
    assert fleet.handle(2) == "c"


def test_threads_that_tell_of_the_same_worker_add_it_once() -> None:
    fleet = Fleet(["a"])
    barrier = threading.Barrier(8)

    def join() -> None:
        barrier.wait()
        for worker in range(1, 200):
            fleet.join(worker, str(worker))

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [fleet.handle(worker) for worker in range(1, 200)] == [str(worker) for worker in range(1, 200)]
    assert len(fleet) == 200


class Restarting:
    """A worker that is away until it is `back`."""

    back = False

    async def health(self) -> None:
        if not self.back:
            raise ActorLost("worker 0", permanent=False)


def test_a_worker_comes_back_though_the_event_loop_that_lost_it_has_ended() -> None:
    away = Restarting()
    fleet = Fleet([LocalHandle(away), LocalHandle(Restarting())])

    async def lose() -> list[int]:
        fleet.lost(0, 0, ActorLost("worker 0", permanent=False))
        return await fleet.alive()

    async def find() -> None:
        async with asyncio.timeout(30):
            while await fleet.alive() != [0, 1]:
                await asyncio.sleep(0.01)

    assert asyncio.run(lose()) == [1]
    away.back = True
    asyncio.run(find())


async def test_who_is_left_is_told_without_those_that_were_taken_away() -> None:
    fleet = Fleet(["a", "b"])
    fleet.retire(0)
    fleet.lost(1, 0, ActorLost("worker 1", permanent=True))
    with pytest.raises(ClusterError, match=r"no worker is left: worker 1 is not alive$"):
        await fleet.alive()
    fleet.retire(1)
    with pytest.raises(ClusterError, match="no worker is left: all have been taken away"):
        await fleet.alive()


class Silent:
    """Stands still; what it was asked is answered when it goes on."""

    def __init__(self) -> None:
        self.on = asyncio.Event()

    async def make(self) -> str:
        await self.on.wait()
        return "a node"

    async def health(self) -> None:
        await self.on.wait()


async def test_a_silent_worker_is_given_up_and_what_it_makes_after_all_taken_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped, taken = Silent(), asyncio.Queue[str]()
    silent = LocalHandle(stopped)
    fleet = Fleet([silent], RecoveryOptions(silence_s=0.02))

    async def late(made: str) -> None:
        taken.put_nowait(made)
        raise ActorLost("worker 0", permanent=False)

    with pytest.raises(ActorLost, match="worker 0 is not alive, and may be restarted"):
        await fleet.watch(0, silent.make.remote(), late)
    stopped.on.set()
    async with asyncio.timeout(30):
        assert await taken.get() == "a node"
    assert not caplog.records
