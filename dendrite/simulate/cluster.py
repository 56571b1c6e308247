"""A discrete-event simulation of a cluster: workers that batch, a sharded tree manager, placement and transfer.

What is aggregated, as the real system does it: a worker's event is a whole batch, a manager's event a message with all
that has happened since the last one. What is simplified: an expansion of a search waits for the one before it; a batch
runs until its longest generation ends, and all are equally long; each expansion gives up as many nodes as it makes, so
that a search holds equally many all the time; a transfer takes none of the workers' time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TypeAlias

import numpy as np
import simpy
from numpy.typing import NDArray

from dendrite.errors import InvalidArgument
from dendrite.simulate.costs import Costs
from dendrite.simulate.placement import Choice, Placement
from dendrite.simulate.report import Report
from dendrite.simulate.shards import Counts, Couriers, Shards
from dendrite.simulate.tally import Tally
from dendrite.simulate.workload import Workload

Trees: TypeAlias = NDArray[np.intp]
Process: TypeAlias = Generator[simpy.Event, None, None]

LEAD = 0
"""The shard that places new trees."""


class _Worker:
    """Searches whose next expansion waits here: groups of them, with the time from which on they wait."""

    def __init__(self, env: simpy.Environment, couriers: Couriers) -> None:
        self.env, self.couriers = env, couriers
        self.groups: deque[tuple[float, Trees]] = deque()
        self.prefill = 0  # tokens to compute in the next batch
        self.wake = env.event()

    def put(self, ready_at: float, trees: Trees) -> None:
        """Let searches wait, in the order in which they are ready."""
        at = len(self.groups)
        while at and self.groups[at - 1][0] > ready_at:
            at -= 1
        self.groups.insert(at, (ready_at, trees))
        if not self.wake.triggered:
            self.wake.succeed()

    def take(self, most: int, waits: Tally) -> Trees:
        """The searches that are ready, at most so many, the longest waiting ones first."""
        taken: list[Trees] = []
        while most and self.groups and self.groups[0][0] <= self.env.now:
            ready_at, trees = self.groups.popleft()
            if len(trees) > most:
                self.groups.appendleft((ready_at, trees[most:]))
                trees = trees[:most]
            waits.add(self.env.now - ready_at, len(trees))
            taken.append(trees)
            most -= len(trees)
        return np.concatenate(taken) if taken else np.empty(0, np.intp)


class Simulation:
    """One cluster under one workload. Runs once."""

    def __init__(self, workload: Workload, costs: Costs, seed: int = 0) -> None:
        """Set the cluster up.

        Raises:
            InvalidArgument: batches would be larger than what was measured.
        """
        if workload.max_rows > costs.step.most_rows:
            limit = f"must be at most {costs.step.most_rows}, the most rows that were measured"
            raise InvalidArgument("max_rows", workload.max_rows, limit)
        self._load, self._costs, self._random = workload, costs, np.random.default_rng(seed)
        self._env = simpy.Environment()
        self._shards = Shards(workload.shards, costs.message_s, costs.event_s)
        self._placement = Placement(workload, costs)
        self._waits, self._placed = Tally(), Tally()
        self._lead_lags, self._lags = Tally(), Tally()
        self._workers = [
            _Worker(self._env, Couriers(self._shards, costs.round_trip_s, self._lead_lags, self._lags))
            for _ in range(workload.workers)
        ]
        self._popularity = np.cumsum(1.0 / np.arange(1, workload.prompts + 1))
        self._left = np.zeros(workload.trees, np.int64)
        self._on = np.zeros(workload.trees, np.intp)
        self._shard = np.zeros(workload.trees, np.intp)
        self._events = np.zeros(workload.shards, np.int64)
        self._expansions = self._begun = self._prefilled = 0
        self._busy_s = 0.0
        self._choices: dict[Choice, int] = {"prefix": 0, "transferred": 0, "computed": 0}

    def run(self, seconds: float, warm_up_s: float) -> Report:
        """Simulate, and tell of the `seconds` that follow `warm_up_s`."""
        for index in range(self._load.workers):
            self._env.process(self._work(index))
        self._fill()
        self._env.run(warm_up_s)
        self._forget()
        untold = self._untold()
        self._env.run(warm_up_s + seconds)
        return self._report(seconds, untold)

    # ---------------------------------------------------------------- what goes on

    def _fill(self) -> None:
        """Put the first searches on their workers, somewhere in their course, so that they do not all end together.

        With pauses between searches all begin in one: the system fills by itself.
        """
        load = self._load
        if load.pause_s:
            for tree in range(load.trees):
                self._env.process(self._search(tree))
            return
        self._on[:] = np.arange(load.trees) % load.workers
        self._shard[:] = self._random.integers(load.shards, size=load.trees)
        self._left[:] = self._random.integers(1, load.expansions + 1, size=load.trees)
        for index, worker in enumerate(self._workers):
            trees = np.flatnonzero(self._on == index)
            self._placement.fill(index, [self._draw_prompt() for _ in trees])
            worker.put(0.0, trees)

    def _draw_prompt(self) -> int:
        return int(np.searchsorted(self._popularity, self._random.random() * self._popularity[-1], side="right"))

    def _search(self, tree: int) -> Process:
        """Begin a search in a place of the system: pause, ask the manager for a worker, and queue there."""
        load, costs, env = self._load, self._costs, self._env
        if load.pause_s:
            yield env.timeout(self._random.exponential(load.pause_s))
        asked_at = env.now
        answered = self._shards.ask(env.now + costs.round_trip_s / 2, LEAD) + costs.round_trip_s / 2
        yield env.timeout(answered - env.now)
        self._placed.add(env.now - asked_at)
        worker, choice = self._placement.choose(self._draw_prompt(), env.now)
        self._choices[choice] += 1
        self._begun += 1
        self._left[tree] = load.expansions
        self._on[tree] = worker
        self._shard[tree] = self._random.integers(load.shards)
        if choice == "transferred":
            yield env.timeout(costs.transfer_s(load.prompt))
        elif choice == "computed":
            self._workers[worker].prefill += load.prompt
        self._placement.queue(worker, 1)
        self._workers[worker].put(env.now, np.array([tree], np.intp))

    def _work(self, index: int) -> Process:
        """A worker: one batch after the other, of all that waits."""
        load, costs, env, worker = self._load, self._costs, self._env, self._workers[index]
        most = load.max_rows // load.children
        while True:
            trees = worker.take(most, self._waits)
            if not len(trees):
                worker.wake = env.event()
                soonest = worker.groups[0][0] - env.now if worker.groups else None
                yield worker.wake if soonest is None else worker.wake | env.timeout(soonest)
                continue
            rows = len(trees) * load.children
            seconds = costs.prefill_s(worker.prefill) + load.tokens * costs.step.of(rows)
            self._prefilled += worker.prefill
            worker.prefill = 0
            self._placement.start(index, len(trees), env.now, seconds)
            yield env.timeout(seconds)
            self._busy_s += seconds
            self._end_batch(index, trees)

    def _end_batch(self, index: int, trees: Trees) -> None:
        """Tell the manager what was made, and let the searches go on."""
        load, worker = self._load, self._workers[index]
        self._expansions += len(trees)
        events = 2 * load.children * np.bincount(self._shard[trees], minlength=load.shards)
        self._events += events
        worker.couriers.put(self._env.now, events)
        self._left[trees] -= 1
        going_on = self._left[trees] > 0
        if going_on.any():
            self._placement.queue(index, int(going_on.sum()))
            worker.put(self._env.now + self._costs.round_trip_s, trees[going_on])
        for tree in trees[~going_on].tolist():
            self._placement.end(index)
            self._env.process(self._search(tree))

    # ---------------------------------------------------------------- what is told of it

    def _untold(self) -> Counts:
        untold = np.zeros(self._load.shards, np.int64)
        for worker in self._workers:
            untold += worker.couriers.untold(self._env.now)
        return untold

    def _forget(self) -> None:
        self._shards.forget(self._env.now)
        for tally in (self._waits, self._placed, self._lead_lags, self._lags):
            tally.clear()
        self._events[:] = 0
        self._expansions = self._begun = self._prefilled = 0
        self._busy_s = 0.0
        self._choices = dict.fromkeys(self._choices, 0)

    def _report(self, seconds: float, untold_before: Counts) -> Report:
        load, costs, shards = self._load, self._costs, self._shards
        calls = self._expansions + 2 * self._begun
        behind = np.maximum(self._untold() - untold_before, 0) / np.maximum(self._events, 1)
        behind_others = behind[1:] if load.shards > 1 else behind
        return Report(
            seconds=seconds,
            expansions_s=self._expansions / seconds,
            tokens_s=self._expansions * load.children * load.tokens / seconds,
            events_s=int(self._events.sum()) / seconds,
            untold_share=float(behind_others.max()),
            lead_untold_share=float(behind[LEAD]),
            events_of_message=float(shards.events.sum() / max(1, shards.messages.sum())),
            shard_load=tuple((shards.busy_s(self._env.now) / seconds).tolist()),
            lag_p99_s=(self._lags if load.shards > 1 else self._lead_lags).quantile_s(0.99),
            lead_lag_p99_s=self._lead_lags.quantile_s(0.99),
            message_wait_mean_s=shards.waits.mean_s,
            place_p50_s=self._placed.quantile_s(0.5),
            place_p99_s=self._placed.quantile_s(0.99),
            worker_load=self._busy_s / seconds / load.workers,
            wait_mean_s=self._waits.mean_s,
            wait_p99_s=self._waits.quantile_s(0.99),
            driver_cores=calls * (costs.call_s + costs.message_s) / seconds,
            searches_s=self._begun / seconds,
            choices={choice: count / max(1, self._begun) for choice, count in self._choices.items()},
            moved_bytes_s=self._choices["transferred"] * load.prompt * costs.kv_bytes / seconds,
            prefill_tokens_s=self._prefilled / seconds,
        )
