"""Which driver a search goes to, where some are dead: the pool with drivers that only answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from actors.driver_pool import DriverPool
from actors.fleet import Fleet, RecoveryOptions
from actors.leases import Lease
from actors.recovery import RecoveryFailed, RecoveryStats
from actors.rpc import ActorLost
from actors.search_driver import SearchJob
from actors.worker_calls import WorkerCalls
from dendrite.search.budget import Budget
from dendrite.search.tasks.countdown import problems
from tests.actors.in_process import LocalHandle

JOB = SearchJob(problems(1, seed=1)[0], "mcts", Budget(tokens=1), 0)


class Leases:
    """Of the manager, what a pool needs: counts the open leases."""

    def __init__(self) -> None:
        self.opened, self.open = 0, set[int]()

    async def open_lease(self) -> Lease:
        self.opened += 1
        self.open.add(self.opened)
        return Lease(self.opened, 60.0)

    async def close_lease(self, lease: int) -> None:
        self.open.remove(lease)


class Driver:
    """Notes the jobs that it is given. One is dead for good, another loses its first searches only."""

    def __init__(self, *, dead: bool = False, failures: int = 0) -> None:
        self.dead, self.failures = dead, failures
        self.jobs: list[SearchJob] = []

    async def recovery_stats(self) -> RecoveryStats:
        if self.dead:
            raise ActorLost("the search driver", permanent=True)
        return RecoveryStats()

    async def solve(self, call_id: int, lease: int, job: SearchJob) -> int:
        await asyncio.sleep(0)
        if self.dead or self.failures:
            self.failures -= 1
            raise ActorLost("the search driver", permanent=self.dead)
        self.jobs.append(job)
        return lease

    async def cancel(self, call_id: int) -> None:
        pass


def pool(*drivers: Driver, attempts: int = 5) -> tuple[DriverPool, Leases, RecoveryStats]:
    leases, stats = Leases(), RecoveryStats()
    calls = WorkerCalls(LocalHandle(leases), 1, Fleet([], RecoveryOptions(attempts=attempts)))
    return DriverPool([LocalHandle(driver) for driver in drivers], calls, stats), leases, stats


async def test_searches_that_lose_their_driver_together_all_find_the_living_one() -> None:
    alive = Driver()
    searches, leases, stats = pool(Driver(dead=True), alive)
    assert len(await asyncio.gather(*(searches.solve(JOB) for _ in range(6)))) == 6
    assert len(alive.jobs) == 6
    assert stats.searches == 3, "those whose turn it was on the dead one"
    assert leases.opened == 9
    assert not leases.open


@pytest.mark.parametrize("trace", [None, Path("trace.jsonl")])
async def test_a_search_that_starts_again_resumes_its_trace_if_it_has_one(trace: Path | None) -> None:
    driver = Driver(failures=1)
    searches, _, _ = pool(driver)
    await searches.solve(replace(JOB, trace=trace))
    assert [job.resume for job in driver.jobs] == [trace is not None]


async def test_without_a_living_driver_the_search_fails_at_once() -> None:
    searches, leases, _ = pool(Driver(dead=True), Driver(dead=True))
    with pytest.raises(ActorLost):
        await searches.solve(JOB)
    assert not leases.open


async def test_a_search_that_loses_every_driver_says_how_often(caplog: pytest.LogCaptureFixture) -> None:
    searches, leases, _ = pool(Driver(failures=9), attempts=3)
    with pytest.raises(RecoveryFailed, match="failed 3 times") as caught:
        await searches.solve(JOB)
    assert len(caught.value.tries) == 3
    assert not leases.open
