"""Cores for model workers: real processes, and where the system lets them run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors import cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)

# A process with a second thread, which may be a worker, and then a child of its own that it starts when told to.
PROGRAM = """
import os, subprocess, sys, threading
from actors import cores
more = threading.Event()
threading.Thread(target=more.wait, daemon=True).start()
if sys.argv[1] == "worker":
    cores.take()
print("ready", flush=True)
sys.stdin.readline()
allowed = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
ask = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
below = subprocess.run(ask, capture_output=True, text=True)
print([*map(str, allowed), below.stdout.strip()])
"""


@pytest.fixture
def own() -> Iterator[set[int]]:
    """This process's cores, which it gets back."""
    own = os.sched_getaffinity(0)
    yield own
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), own)


def start(kind: str, apart: frozenset[int]) -> subprocess.Popen[str]:
    environment = {**os.environ, cores.VARIABLE: cores.written(apart)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_workers_keep_to_their_cores_and_all_others_to_the_rest(own: set[int]) -> None:
    apart = cores.choose(1)
    assert len(apart) == 1
    processes = {kind: start(kind, apart) for kind in ("worker", "other")}
    cores.confine(apart)
    processes["late"] = start("other", apart)
    processes["restarted"] = start("worker", apart)
    told = {kind: process.communicate("go\n")[0].strip() for kind, process in processes.items()}
    assert told["worker"] == told["restarted"] == str([str(set(apart))] * 3)
    assert told["other"] == told["late"] == str([str(own - apart)] * 3)


def test_one_core_is_left_to_the_others(own: set[int]) -> None:
    assert cores.choose(len(own) - 1) < own
    assert cores.choose(len(own)) == cores.choose(0) == frozenset()


def test_a_worker_where_nothing_is_set_apart_stays_where_it_is(own: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cores.VARIABLE, raising=False)
    cores.take()
    assert os.sched_getaffinity(0) == own
