"""Whole searches on the cluster's drivers, each under a lease of its own; one whose driver is lost starts again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from actors.leases import Lease
from actors.recovery import RecoveryFailed, RecoveryStats
from actors.refs import worker_name
from actors.rpc import ActorLost, Handle, call, longer
from actors.search_driver import SearchJob
from actors.worker_calls import WorkerCalls
from dendrite.logs import log_event
from dendrite.search.result import SearchResult

DRIVER = "the search driver"
_log = logging.getLogger("dendrite.cluster")


class DriverPool:
    """Gives the drivers searches in turn."""

    def __init__(self, drivers: Sequence[Handle], calls: WorkerCalls, recovery: RecoveryStats) -> None:
        self._drivers, self._calls, self._recovery = tuple(drivers), calls, recovery
        self._options = calls.fleet.options
        self._next = 0

    async def solve(self, job: SearchJob) -> SearchResult:
        """Search on a driver, and on another one where it is lost: with its trace, from where the trace ends.

        Raises:
            RecoveryFailed: as many drivers as `attempts` allows were lost over it.
            ActorLost: no driver is left.
        """
        tried: list[str] = []
        [driver] = self._in_turn(1)
        while True:
            try:
                return await self._solve_once(driver, job)
            except ActorLost as lost:
                tried.append(str(lost))
            fields = {"event": "driver_lost", "task": job.task.name, "try": len(tried)}
            log_event(_log, logging.WARNING, fields, tried[-1])
            if len(tried) >= self._options.attempts:
                raise RecoveryFailed(f"the search of {job.task.name}", tried)
            driver = await self._living()
            self._recovery.searches += 1
            job = replace(job, resume=job.resume or job.trace is not None)

    async def recovery_stats(self) -> list[RecoveryStats]:
        """What the drivers that are alive have recovered from since they were started."""
        calls = [call(driver.recovery_stats.remote(), DRIVER) for driver in self._drivers]
        replies = await asyncio.gather(*calls, return_exceptions=True)
        return [reply for reply in replies if isinstance(reply, RecoveryStats)]

    def _in_turn(self, count: int) -> list[Handle]:
        """The next drivers, in the order of the circle."""
        start, self._next = self._next, (self._next + 1) % len(self._drivers)
        return [self._drivers[(start + step) % len(self._drivers)] for step in range(count)]

    async def _living(self) -> Handle:
        """The next driver that answers; where none does, wait for one to be restarted.

        Raises:
            ActorLost: none is alive, or none was back in time.
        """
        deadline, pause = time.monotonic() + self._options.restart_timeout_s, 0.0
        while True:
            lost: list[ActorLost] = []
            for driver in self._in_turn(len(self._drivers)):
                try:
                    await call(driver.recovery_stats.remote(), DRIVER)
                except ActorLost as error:
                    lost.append(error)
                else:
                    return driver
            if all(error.permanent for error in lost) or time.monotonic() > deadline:
                raise lost[-1]
            pause = longer(pause)
            await asyncio.sleep(pause)

    async def _solve_once(self, driver: Handle, job: SearchJob) -> SearchResult:
        """Search on one driver, under a lease that ends with the search.

        Raises:
            ActorLost: the driver is dead; what the search held is released.
        """
        manager = self._calls.manager
        lease: Lease = await self._calls.ask_manager(lambda: manager.open_lease.remote())
        call_id = self._calls.new_id()

        def cancel() -> None:
            driver.cancel.remote(call_id)

        lost = False
        try:
            return await self._calls.cancellable(driver.solve.remote(call_id, lease.id, job), DRIVER, cancel=cancel)
        except asyncio.CancelledError:
            await self._calls.settle()
            raise
        except ActorLost:
            lost = True
            cancel()  # should it be alive after all
            raise
        finally:
            await asyncio.shield(asyncio.ensure_future(self._end(lease, lost)))

    async def _end(self, lease: Lease, lost: bool) -> None:
        """End a search's lease, and where its driver is lost have all workers release what was held under it."""
        manager, fleet = self._calls.manager, self._calls.fleet
        await self._calls.ask_manager(lambda: manager.close_lease.remote(lease.id))
        if lost:
            replies = {worker: fleet.handle(worker).reclaim.remote(lease.id, True) for worker in fleet.members}
            calls = (call(fleet.watch(worker, reply), worker_name(worker)) for worker, reply in replies.items())
            await asyncio.gather(*calls, return_exceptions=True)  # a worker that is lost has nothing to release
