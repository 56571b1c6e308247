from __future__ import annotations

import os

from benchmarks.search_points import Search
from benchmarks.search_pool import Job, cores, measure_all
from dendrite.search import Budget
from dendrite.search.tasks import countdown


def test_cores_are_those_that_this_process_may_use() -> None:
    assert cores(whole=False) == sorted(os.sched_getaffinity(0))
    assert set(cores(whole=True)) <= set(cores(whole=False))
    assert cores(whole=True)


def test_points_come_with_their_places() -> None:
    tasks = countdown.problems(2, 0, "validation")
    jobs = [
        Job("countdown", tasks, Search("greedy", "greedy", {}), Budget(tokens=tokens), range(1), 2)
        for tokens in (16, 64)
    ]
    points = dict(measure_all(jobs, 2))
    assert [points[index].budget for index in (0, 1)] == [{"tokens": 16}, {"tokens": 64}]
    assert points[0].tokens <= 16 < points[1].tokens
