"""Measuring points in several processes at once, each with one thread on a core of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.search_points import Kept, Point, Search, measure, show
from dendrite.search import Budget, Task

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Job:
    """A point to measure; the fields are the arguments of `measure`."""

    model: str
    tasks: Sequence[Task]
    search: Search
    budget: Budget
    seeds: Sequence[int]
    concurrency: int


def cores(*, whole: bool) -> list[int]:
    """The processors that this process may use; of those that share a core only one if `whole`, for timing (Linux)."""
    allowed = sorted(os.sched_getaffinity(0))
    if not whole:
        return allowed
    first: dict[str, int] = {}
    for cpu in allowed:
        siblings = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        first.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return sorted(first.values())


def measure_all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[int, Point]]:
    """Measure points with at most `processes` at once; yields each with its place in `jobs` when it is there.

    Points at equal time should be measured apart from others: each then has a whole core.
    """
    if not jobs:
        return
    timed = any(job.budget.seconds is not None for job in jobs)
    context = multiprocessing.get_context("spawn")
    free: SimpleQueue[int] = context.SimpleQueue()
    places = cores(whole=timed)[:processes]
    for core in places:
        free.put(core)
    with ProcessPoolExecutor(len(places), context, _settle, (free,)) as pool:
        order = sorted(range(len(jobs)), key=lambda index: -(jobs[index].budget.tokens or 0))  # the longest first
        futures = {pool.submit(_measure, jobs[index]): index for index in order}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def measure_missing(jobs: Sequence[Job], kept: Kept, processes: int, console: Console) -> list[Point]:
    """The points of `jobs` in their order, each shown when it is there; those that are kept are not measured again."""
    missing = [job for job in jobs if kept.find(job.search, job.budget) is None]
    for _, point in measure_all(missing, processes):
        kept.add(point)
        show([point], console)
    found = (kept.find(job.search, job.budget) for job in jobs)
    return [point for point in found if point is not None]


def _settle(free: SimpleQueue[int]) -> None:
    os.sched_setaffinity(0, {free.get()})
    torch.set_num_threads(1)


def _measure(job: Job) -> Point:
    return measure(job.model, job.tasks, job.search, job.budget, job.seeds, job.concurrency)
