"""Metrics on a real Ray: what its endpoint tells is what the actors say of themselves."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

import actors
from actors import Cluster
from actors.metrics import METRICS, Growth, Recorder, endpoints
from actors.rpc import Handle
from dendrite.config import SamplingParams
from dendrite.search.budget import Budget
from dendrite.search.tasks.countdown import problems

EXPORTED_WITHIN_S = 40.0  # a report every 5 s, and Ray's own every 10 s
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape() -> Samples:
    """All of Dendrite's samples on this Ray: (series, labels) to value."""
    found: Samples = {}
    for url in endpoints():
        with urllib.request.urlopen(url, timeout=10) as reply:
            text = reply.read().decode()
        for line in text.splitlines():
            if line.startswith("ray_dendrite_"):
                name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
                found[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
    return found


def process(actor: Handle) -> tuple[str, str]:
    """The label by which Ray tells an actor's process from others."""
    return "WorkerId", ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_worker_id()))


def of(samples: Samples, name: str, *labels: tuple[str, str]) -> float | None:
    """The value of the one series of a process that has these labels; None if there is none yet."""
    values = [value for (series, tags), value in samples.items() if series == name and set(labels) <= tags]
    assert len(values) <= 1, (name, labels)
    return values[0] if values else None


async def eventually(holds: Callable[[Samples], bool]) -> Samples:
    """The endpoint's samples once they are as expected."""
    deadline = time.monotonic() + EXPORTED_WITHIN_S
    while not holds(samples := await asyncio.to_thread(scrape)):
        assert time.monotonic() < deadline, samples
        await asyncio.sleep(0.5)
    return samples


@pytest.fixture
def cluster(ray_here: None, tiny_model: Path) -> Cluster:
    return actors.connect(tiny_model, workers=1, cpus_per_worker=1, kv_tokens=16_384)


async def search(cluster: Cluster) -> None:
    """Work of every kind: a search on a driver, and calls of this process."""
    outcomes = cluster.solve_many(problems(1, seed=3), "best_of_n", Budget(tokens=100), n=3)
    assert [outcome.error async for outcome in outcomes] == [None]
    root = await cluster.prefill(list(range(1, 40)))
    again = await cluster.prefill(list(range(1, 40)))
    await cluster.expand(root, 3, SamplingParams(max_tokens=6, seed=1, ignore_eos=True))
    await cluster.release(again)


async def test_the_endpoint_tells_what_the_actors_do(cluster: Cluster) -> None:
    with cluster:
        assert endpoints(), "this Ray exports no metrics: pip install 'ray[default]'"
        await search(cluster)
        [worker] = await cluster.worker_stats(fresh=True)
        of_worker = ("worker", "0"), process(cluster.actors.workers[0])
        samples = await eventually(
            lambda samples: (
                of(samples, "ray_dendrite_decode_tokens_total", *of_worker) == worker.engine.decode_tokens > 0
                and of(samples, "ray_dendrite_leases", process(cluster.actors.manager)) == 1
                and of(
                    samples,
                    "ray_dendrite_placement_decisions_total",
                    process(cluster.actors.drivers[0]),
                    ("decision", "balanced"),
                )
                is not None
            )
        )
        for name in ("prefill_tokens", "cached_tokens", "prompts", "prompt_hits", "forks"):
            assert of(samples, f"ray_dendrite_{name}_total", *of_worker) == getattr(worker.engine, name) > 0, name
        for name in ("pages_free", "pages_held", "pages_cached"):
            assert of(samples, f"ray_dendrite_{name}", *of_worker) == getattr(worker.engine, name), name
        assert of(samples, "ray_dendrite_live_nodes", *of_worker) == worker.live_nodes == 4
        assert 0 < of(samples, "ray_dendrite_pages_shared", *of_worker) <= worker.engine.pages_held  # type: ignore[operator]
        assert of(samples, "ray_dendrite_calls_in_flight", *of_worker) == 0
        assert of(samples, "ray_dendrite_recomputed_tokens_total", *of_worker) is None
        assert of(samples, "ray_dendrite_manager_restarts", process(cluster.actors.manager)) == 0
        [decisions] = [await driver.decisions.remote() for driver in cluster.actors.drivers]
        for decision, count in decisions.items():
            labels = process(cluster.actors.drivers[0]), ("decision", decision)
            assert of(samples, "ray_dendrite_placement_decisions_total", *labels) == count
        known = {series for metric in METRICS.values() for series in metric.series}
        assert {name for name, _ in samples} <= known


def test_a_counter_gets_what_was_added() -> None:
    growth = Growth()
    assert [growth.since_last("forks", total) for total in (0, 5, 5, 12)] == [0, 5, 0, 7]
    assert growth.since_last("other", 2) == 2


@given(st.lists(st.floats(0, 1e9)))
def test_what_was_added_makes_up_the_highest_total(totals: list[float]) -> None:
    growth = Growth()
    added = [growth.since_last("forks", total) for total in totals]
    assert min(added, default=0) >= 0
    assert sum(added) == pytest.approx(max(totals, default=0))


def test_a_label_that_is_lacking_is_no_series() -> None:
    with pytest.raises(KeyError, match="worker"):
        Recorder().level("dendrite_live_nodes", 1)
    with pytest.raises(KeyError, match="dendrite_bogus"):
        Recorder().level("dendrite_bogus", 1)
