"""What a soak does and how it is judged, without Ray; and, slow, a short one on it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.process_memory import Memory, allocated
from benchmarks.soak import Plan, report
from benchmarks.soak_http import HttpOperations
from benchmarks.soak_tally import Operation, Tally
from benchmarks.soak_watch import Held, Sample, growing, replaced, trends
from dendrite.search.tasks.countdown import problems
from tests.serve_apps.serving import Served, serve

ROOT = Path(__file__).parents[2]
NOTHING = Held(0, 0, 0, 0)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


def test_every_request_is_answered_as_it_should_be(served: Served) -> None:
    tally = Tally()

    async def each_twice() -> list[str]:
        http = HttpOperations(served.url, problems(5, 0))
        draws = random.Random(3)
        await asyncio.gather(*(tally.run(operation, draws) for operation in 2 * http.operations))
        await http.close()
        return [operation.name for operation in http.operations]

    names = asyncio.run(each_twice())
    assert tally.unexpected == []
    assert tally.errors == {}
    assert tally.operations == dict.fromkeys(names, 2)
    served.wait_for_pages(0, 10.0)


def test_errors_are_counted_and_only_some_are_expected() -> None:
    async def fail(draws: random.Random) -> None:
        raise KeyError("x")

    async def run(tally: Tally) -> None:
        await tally.run(Operation("meant", fail, 1, (KeyError,)), random.Random())
        await tally.run(Operation("not meant", fail, 1, (ValueError,)), random.Random())

    tally = Tally()
    asyncio.run(run(tally))
    assert tally.errors == {"meant: KeyError": 1, "not meant: KeyError": 1}
    assert tally.unexpected_count == 1
    assert "not meant" in tally.unexpected[0]
    assert "KeyError: 'x'" in tally.unexpected[0]


def samples(**rises: float) -> list[Sample]:
    """An hour of samples, a minute each, of processes whose memory rises by so many MB an hour, with some noise."""
    draws = random.Random(0)
    return [
        Sample(
            60.0 * minute,
            {name: Memory(500.0, 100.0 + rise * minute / 60 + draws.gauss(0, 0.3)) for name, rise in rises.items()},
            NOTHING,
        )
        for minute in range(61)
    ]


def test_a_process_of_ours_that_grows_is_told() -> None:
    found = samples(worker0=40.0, worker1=0.0, raylet=40.0, driver=-10.0, search_driver0=5.0)
    assert growing(found, 0.0, noise_mb=2.0) == ["worker0", "search_driver0"]
    assert growing(found, 0.0, noise_mb=3.0) == ["worker0"]
    assert trends(found, 0.0).private["raylet"].slope == pytest.approx(40.0, abs=2.0)


def test_what_has_grown_before_does_not_count() -> None:
    found = [
        Sample(each.seconds, {"manager0": Memory(500.0, min(each.seconds, 1_500.0))}, NOTHING)
        for each in samples(manager0=0.0)
    ]
    assert growing(found, 0.0, noise_mb=2.0) == []


def test_the_warm_up_does_not_count() -> None:
    found = samples(manager0=60.0)
    found[56:] = [Sample(each.seconds, {"manager0": Memory(500.0, 156.0)}, NOTHING) for each in found[56:]]
    assert growing(found, 0.0, noise_mb=2.0) == ["manager0"]
    assert growing(found, 60.0 * 52, noise_mb=2.0) == []


def test_what_is_allocated_is_judged_more_strictly_than_heaps() -> None:
    flat, rising = samples(worker0=0.0), samples(worker0=6.0)
    large = [Memory(900.0, 800.0 + each.memory["worker0"].private) for each in rising]
    heaps = [Sample(each.seconds, {"worker0": taken}, NOTHING) for each, taken in zip(flat, large, strict=True)]
    assert growing(heaps, 0.0, noise_mb=2.0) == []
    leaking = [
        Sample(each.seconds, each.memory, NOTHING, {"worker0": leak.memory["worker0"].private})
        for each, leak in zip(flat, rising, strict=True)
    ]
    assert growing(flat, 0.0, noise_mb=2.0) == []
    assert growing(leaking, 0.0, noise_mb=2.0) == ["worker0"]


def test_what_is_allocated_rises_and_falls() -> None:
    before = allocated()
    kept = [bytearray(2_000_000) for _ in range(10)]
    during = allocated()
    del kept
    assert during - before == pytest.approx(20.0, abs=2.0)
    assert allocated() - before < 5.0


def test_a_process_that_was_replaced_is_told() -> None:
    found = samples(worker0=0.0, proxy0=0.0)
    found[-1] = Sample(3_600.0, {"worker1": Memory(1.0, 1.0)}, NOTHING)
    assert replaced(found) == {"worker0", "worker1"}


def test_a_report_says_what_is_wrong() -> None:
    good = samples(worker0=0.0, driver=0.0)
    metrics, raw, wrong = report(good, Tally(), Plan(warm_up_minutes=0.0))
    assert wrong == []
    assert metrics["soak.pages_left"] == metrics["soak.growing"] == metrics["soak.unexpected"] == 0.0
    assert set(raw["memory_mb"]["worker0"]) == {"first", "last", "end"}
    json.dumps(raw, allow_nan=False)
    bad = samples(worker0=40.0, driver=0.0)
    bad[-1] = Sample(3_600.0, {**bad[-1].memory, "worker1": Memory(1.0, 1.0)}, Held(3, 0, 0, 1))
    tally = Tally(unexpected_count=2)
    _, _, wrong = report(bad, tally, Plan(warm_up_minutes=20.0))
    told = " | ".join(wrong)
    assert all(each in told for each in ("worker0 grows by 4", "worker1 was not", "2 errors", "pages=3", "leases=1"))


@pytest.mark.slow
def test_half_a_minute_of_it(tmp_path: Path) -> None:
    """Too short to tell whether memory is flat: caches still fill. But nothing fails, and nothing is left."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.soak",
        "--minutes",
        "0.6",
        "--warm-up",
        "0",
        "--every",
        "2",
        "--noise",
        "1000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [*command, "--port", "0", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    result = json.loads((tmp_path / "soak-cpu-countdown.json").read_text())
    metrics = result["metrics"]
    assert metrics["soak.operations"] > 50
    left = ("unexpected", "growing", "pages_left", "nodes_left", "trees_left", "leases_left")
    assert [metrics[f"soak.{name}"] for name in left] == [0.0] * 6
    assert metrics.keys() >= {f"soak.{name}.allocated_mb_h" for name in ("worker0", "manager0", "desk0", "ingress0")}
    ours = {"worker0", "worker1", "manager0", "search_driver0", "desk0", "ingress0", "driver"}
    assert ours <= set(result["raw"]["memory_mb"])
    assert set(result["raw"]["operations"]) >= {"fork", "cancel", "expire", "http_stream_left", "http_search_cancelled"}
