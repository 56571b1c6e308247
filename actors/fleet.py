"""What a process knows of the workers: which are alive, and how fast they have been."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from actors.background import Background
from actors.line_fit import LineFit
from actors.rates import Rates
from actors.refs import worker_name
from actors.rpc import ActorLost, Handle, call, longer
from actors.signs import answer
from dendrite.errors import ClusterError, DendriteError, WorkerDraining
from dendrite.limits import check_positive_seconds, check_whole

T = TypeVar("T")

_CROWD_KEEP, _CROWD_ORIGIN = 0.98, 0.2
"""See `LineFit`."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How much trouble a client takes: times in seconds.

    Raises:
        InvalidArgument: a number is out of range.
    """

    attempts: int = 5
    """Most tries of one call, or of one search on its drivers."""
    restart_timeout_s: float = 120.0
    """The longest wait for a worker, or a driver, where none is alive but one may be restarted."""
    manager_timeout_s: float = 60.0
    """The longest wait for the tree manager to be restarted."""
    silence_s: float = 30.0
    """A worker that gives no sign of life for so long, while a call waits for it, is taken for dead."""

    def __post_init__(self) -> None:
        check_whole("attempts", self.attempts, 1)
        for name in ("restart_timeout_s", "manager_timeout_s", "silence_s"):
            check_positive_seconds(name, getattr(self, name))


@dataclass(slots=True, eq=False)
class _Worker:
    handle: Handle
    rates: Rates
    epoch: int = 0
    state: Literal["up", "away", "dead"] = "up"  # dead: gone, or going, for good
    in_flight: int = 0
    call_seconds: float = 0.0  # of all calls so far, up to `changed`
    changed: float = 0.0
    retired: bool = False
    probe: asyncio.Task[None] | None = None


class Fleet:
    """The workers as one process sees them. Its clients share it; a worker that one has lost, all have lost.

    A worker's epoch goes up whenever it is found to have lost what it held.
    """

    def __init__(self, workers: Sequence[Handle], options: RecoveryOptions | None = None) -> None:
        self.options = options or RecoveryOptions()
        self._crowd = LineFit(keep=_CROWD_KEEP, origin=_CROWD_ORIGIN)
        self._workers = [_Worker(handle, Rates(self._crowd)) for handle in workers]
        self._late = Background()
        self._joining = threading.Lock()

    def __len__(self) -> int:
        return len(self._workers)

    def join(self, worker: int, handle: Handle | None) -> None:
        """A worker is there, whose number follows the last one's; or (None) there was one of which nothing is known.

        One that is known is known. From any thread.
        """
        with self._joining:
            if worker > len(self._workers) or self.knows(worker):
                return
            new = _Worker(handle, Rates(self._crowd))
            new.retired, new.state = handle is None, "dead" if handle is None else "up"
            self._workers[worker : worker + 1] = [new]

    def knows(self, worker: int) -> bool:
        """Whether a worker has joined, and more than its number is known."""
        return worker < len(self._workers) and self._workers[worker].handle is not None

    def retire(self, worker: int) -> None:
        """A worker has been taken away for good, as was meant."""
        found = self._workers[worker]
        found.retired, found.state, found.epoch = True, "dead", found.epoch + 1

    @property
    def members(self) -> list[int]:
        """The workers that belong to the cluster, alive or not."""
        return [index for index, worker in enumerate(self._workers) if not worker.retired]

    def handle(self, worker: int) -> Handle:
        """The actor's handle."""
        return self._workers[worker].handle

    def epoch(self, worker: int) -> int:
        """How often the worker has lost what it held, as far as this process knows."""
        return self._workers[worker].epoch

    def rates(self, worker: int) -> Rates:
        """What has been measured of the worker."""
        return self._workers[worker].rates

    def in_flight(self, worker: int) -> int:
        """Calls of this process at trees and nodes of the worker that it has not answered."""
        return self._workers[worker].in_flight

    @contextlib.contextmanager
    def under_way(self, worker: int) -> Iterator[None]:
        """Counts as a call at a worker, from when that is decided, be it that it waits for something else first."""
        found = self._workers[worker]
        self.call_seconds(worker)
        found.in_flight += 1
        try:
            yield
        finally:
            self.call_seconds(worker)
            found.in_flight -= 1

    def call_seconds(self, worker: int) -> float:
        """Seconds that calls have been under way there, all together: twice as many where two were at once."""
        found, now = self._workers[worker], time.monotonic()
        found.call_seconds += found.in_flight * (now - found.changed)
        found.changed = now
        return found.call_seconds

    def queue_delay(self, worker: int) -> float:
        """Seconds that a call is likely to wait there: as the last ones did, and none if nothing is under way."""
        found = self._workers[worker]
        return found.rates.waited_s if found.in_flight else 0.0

    def crowd_delay(self, worker: int) -> float:
        """Seconds that a call is likely to take longer there for the other calls of this process that are under way."""
        found = self._workers[worker]
        return found.rates.step_per_call * found.in_flight * found.rates.steps

    def next_step(self, worker: int) -> float:
        """Seconds that a decode step is likely to take there with one call more.

        It tells replicas of a node apart. What calls have waited does not: it is known too late, so that all calls
        would go to one worker and then all to another.
        """
        found = self._workers[worker]
        return found.rates.step_with(found.in_flight + 1)

    def prefill_rate(self, worker: int) -> float | None:
        """Tokens a second of a prefill, as measured there or else on the slowest of the others; None if never."""
        own = self._workers[worker].rates.prefill_rate
        others = [each.rates.prefill_rate for each in self._workers if each.rates.prefill_rate is not None]
        return own if own is not None else min(others, default=None)

    @property
    def up(self) -> list[int]:
        """The workers that are alive, as far as this process knows."""
        return [index for index, worker in enumerate(self._workers) if worker.state == "up"]

    def lost(self, worker: int, epoch: int, error: DendriteError) -> bool:
        """Note that what a worker held at an epoch is gone: since the worker is, or is being emptied, or was restarted.

        Returns whether that is news: all calls that were under way there find out.
        """
        found = self._workers[worker]
        if found.epoch != epoch:
            return False
        found.epoch += 1
        if isinstance(error, WorkerDraining) or (isinstance(error, ActorLost) and error.permanent):
            found.state = "dead"
        elif isinstance(error, ActorLost):
            found.state = "away"
            self._probe(worker)
        return True

    async def alive(self) -> list[int]:
        """The workers that are alive; where none is, wait for the first to be restarted.

        Raises:
            ClusterError: none will be, or none was in time.
        """
        deadline = time.monotonic() + self.options.restart_timeout_s
        while True:
            # Also where others are up: the event loop that has looked for one may have ended.
            probes = [self._probe(index) for index, worker in enumerate(self._workers) if worker.state == "away"]
            if up := self.up:
                return up
            left = deadline - time.monotonic()
            if not probes or left <= 0:
                dead = ", ".join(f"{worker_name(index)} is not alive" for index in self.members)
                raise ClusterError(f"no worker is left: {dead or 'all have been taken away'}")
            await asyncio.wait(probes, timeout=left, return_when="FIRST_COMPLETED")

    def _probe(self, worker: int) -> asyncio.Task[None]:
        """The task that waits for a worker to be back."""
        found, loop = self._workers[worker], asyncio.get_running_loop()
        if found.probe is None or found.probe.done() or found.probe.get_loop() is not loop:
            found.probe = loop.create_task(self._until_back(worker))
        return found.probe

    async def _until_back(self, worker: int) -> None:
        found, pause = self._workers[worker], 0.0
        while found.state == "away":
            try:
                async with asyncio.timeout(self.options.silence_s):
                    await call(found.handle.health.remote(), worker_name(worker))
                found.state = "up"
            except ActorLost as lost:
                if lost.permanent:
                    found.state = "dead"
            except (ClusterError, TimeoutError):
                pass
            pause = longer(pause)
            if found.state == "away":
                await asyncio.sleep(pause)

    async def watch(self, worker: int, reply: Awaitable[T], late: Callable[[T], Awaitable[None]] | None = None) -> T:
        """Await a worker's reply for as long as the worker gives signs of life.

        Raises:
            ActorLost: it is dead, or silent. Should the reply come after all, `late` takes it back.
        """
        waiting = asyncio.ensure_future(reply)
        try:
            return await answer(waiting, self.handle(worker), worker_name(worker), self.options.silence_s)
        except ActorLost:
            if late is not None and not waiting.done():
                self._late.start(_take_back(waiting, late))
            raise


async def _take_back(waiting: asyncio.Future[T], late: Callable[[T], Awaitable[None]]) -> None:
    try:
        result = await waiting
    except Exception:  # nothing was made
        return
    await late(result)
