"""Cores for model workers: real processes, and where the system lets them run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from actors import cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)

# A worker with a second thread, and then a process that it starts.
PROGRAM = """
import os, subprocess, sys, threading
from actors import cores
more = threading.Event()
threading.Thread(target=more.wait, daemon=True).start()
cores.take()
allowed = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
ask = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
print([*map(str, allowed), subprocess.run(ask, capture_output=True, text=True).stdout.strip()])
"""


@pytest.mark.parametrize("count", [0, 1])
def test_a_worker_and_what_it_starts_keep_to_the_workers_cores(count: int) -> None:
    apart = cores.choose(count)
    assert len(apart) == count
    environment = {**os.environ, cores.VARIABLE: cores.written(apart)}
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.strip() == str([str(set(apart) or os.sched_getaffinity(0))] * 3)


def test_one_core_is_left_to_the_others() -> None:
    own = os.sched_getaffinity(0)
    assert cores.choose(len(own) - 1) < own
    assert cores.choose(len(own)) == frozenset()
