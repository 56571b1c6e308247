"""When a pool of workers grows and when it shrinks. Pure decisions: times are given, nothing is done."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from dendrite.errors import InvalidArgument
from dendrite.limits import check_positive_seconds, check_whole

MAX_WORKERS = 1_024


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Bounds of a pool and how fast it follows the load; times in seconds.

    Attributes:
        min_workers, max_workers: the pool stays within these.
        delay_s: calls should not wait longer than this for a worker.
        grow_after_s: how long they must have waited longer before a worker is added.
        shrink_after_s: how long a worker must have been idle before it is taken away.
        cooldown_s: from one change to the next, so that the effect of the first can be seen.
        place_timeout_s: the longest wait for a machine with room for a new worker.
        period_s: from one look at the workers to the next.

    Raises:
        InvalidArgument: a number is out of range.
    """

    min_workers: int
    max_workers: int
    delay_s: float = 0.5
    grow_after_s: float = 5.0
    shrink_after_s: float = 60.0
    cooldown_s: float = 15.0
    place_timeout_s: float = 600.0
    period_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_workers", "max_workers"):
            check_whole(name, getattr(self, name), 1, MAX_WORKERS)
        if self.max_workers < self.min_workers:
            raise InvalidArgument("max_workers", self.max_workers, f"must be at least min_workers={self.min_workers}")
        for name in ("delay_s", "place_timeout_s", "period_s"):
            check_positive_seconds(name, getattr(self, name))
        for name in ("grow_after_s", "shrink_after_s", "cooldown_s"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument(name, getattr(self, name), "must be a number of seconds that is not negative")

    @property
    def varies(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers < self.max_workers


@dataclass(frozen=True, slots=True)
class Observation:
    """The pool at one time: its workers, those without a call under way, and how long calls wait at the best one."""

    workers: Collection[int]
    idle: Collection[int]
    delay_s: float


@dataclass(frozen=True, slots=True)
class Grow:
    """Add a worker."""


@dataclass(frozen=True, slots=True)
class Shrink:
    """Take a worker away."""

    worker: int


Decision: TypeAlias = Grow | Shrink | None


class PoolPolicy:
    """Decides from one observation to the next.

    It grows where calls have waited too long at even the least busy worker, all the time for `grow_after_s`; one short
    moment in which they did not begins that time anew. It shrinks by a worker that was idle all the time for
    `shrink_after_s`, unless calls wait. After a change it waits for `cooldown_s`, but to replace a lost worker below
    `min_workers` it does not.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._slow_since: float | None = None
        self._idle_since: dict[int, float] = {}
        self._changed_at: float | None = None

    def decide(self, now: float, seen: Observation) -> Decision:
        """What to do now. The decision is taken to be carried out."""
        options, count = self._options, len(seen.workers)
        slow = seen.delay_s > options.delay_s
        if not slow:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = now
        idle = set(seen.idle) & set(seen.workers)
        self._idle_since = {worker: self._idle_since.get(worker, now) for worker in idle}
        if count < options.min_workers:
            return self._change(now, Grow())
        if self._changed_at is not None and now - self._changed_at < options.cooldown_s:
            return None
        if self._slow_since is not None:
            long = now - self._slow_since >= options.grow_after_s
            return self._change(now, Grow()) if long and count < options.max_workers else None
        if count > options.min_workers and self._idle_since:
            worker = min(self._idle_since, key=lambda each: (self._idle_since[each], -each))
            if now - self._idle_since[worker] >= options.shrink_after_s:
                return self._change(now, Shrink(worker))
        return None

    def _change(self, now: float, decision: Decision) -> Decision:
        self._changed_at, self._slow_since = now, None
        return decision
