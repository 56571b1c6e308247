"""Where a new search goes: what the tree manager suggests, and what its client makes of that."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dendrite.simulate.costs import Costs
from dendrite.simulate.workload import Workload

Choice: TypeAlias = Literal["prefix", "transferred", "computed"]
"""A worker that has the prompt's KV; one that gets it from such a worker; one that computes it."""


class Placement:
    """The load of each worker, and the prompts whose KV it has."""

    def __init__(self, workload: Workload, costs: Costs) -> None:
        workers = workload.workers
        self._most = workload.max_rows // workload.children
        self._keeps = workload.cached_prompts
        self._prefill_s = costs.prefill_s(workload.prompt)
        self._transfer_s = costs.transfer_s(workload.prompt)
        self._trees = np.zeros(workers, np.int64)
        self._queued = np.zeros(workers, np.int64)
        self._batch_s = np.zeros(workers)
        self._ends_at = np.zeros(workers)
        self._cached: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(workers)]
        self._holds = np.zeros((workload.prompts, workers), np.bool_)

    def fill(self, worker: int, prompts: list[int]) -> None:
        """Searches of these prompts wait at a worker, which has the KV of them."""
        self._trees[worker] += len(prompts)
        self._queued[worker] += len(prompts)
        for prompt in prompts:
            self._remember(worker, prompt)

    def queue(self, worker: int, searches: int) -> None:
        """So many more searches wait at a worker."""
        self._queued[worker] += searches

    def start(self, worker: int, searches: int, now: float, seconds: float) -> None:
        """A worker has begun a batch of so many searches, which takes so long."""
        self._queued[worker] -= searches
        self._batch_s[worker], self._ends_at[worker] = seconds, now + seconds

    def end(self, worker: int) -> None:
        """A search has ended."""
        self._trees[worker] -= 1

    def choose(self, prompt: int, now: float) -> tuple[int, Choice]:
        """The worker for a new search: the one on which its first batch can begin soonest.

        The manager suggests the one with the fewest searches. It is compared with the least busy of those that have the
        prompt's KV: go there, have the KV moved from there, or compute it again.
        """
        suggested = int(self._trees.argmin())
        holders = np.flatnonzero(self._holds[prompt])
        delays = np.maximum(self._ends_at - now, 0.0) + self._queued // self._most * self._batch_s
        worker, choice = suggested, self._cheapest(suggested, holders, delays)
        if choice == "prefix" and not self._holds[prompt, suggested]:
            worker = int(holders[delays[holders].argmin()])
        self._trees[worker] += 1
        self._remember(worker, prompt)
        return worker, choice

    def _cheapest(self, suggested: int, holders: NDArray[np.intp], delays: NDArray[np.float64]) -> Choice:
        if not len(holders):
            return "computed"
        delay = float(delays[suggested])
        ready_s: dict[Choice, float] = {
            "prefix": delay if suggested in holders else float(delays[holders].min()),
            "transferred": max(delay, self._transfer_s),
            "computed": delay + self._prefill_s,
        }
        return min(ready_s, key=lambda choice: ready_s[choice])

    def _remember(self, worker: int, prompt: int) -> None:
        if not self._keeps:
            return
        cached = self._cached[worker]
        cached[prompt] = None
        cached.move_to_end(prompt)
        self._holds[prompt, worker] = True
        if len(cached) > self._keeps:
            oldest, _ = cached.popitem(last=False)
            self._holds[oldest, worker] = False
