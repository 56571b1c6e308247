"""A torch profile of engine steps, with their phases as ranges."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.model.decoder import Decoder
from dendrite.profiling.tracing import STEP_RANGE, added, trace
from tests.tiny_config import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(Decoder.random(TINY, seed=3), config=EngineConfig(device="cpu", kv_tokens=4096)) as engine:
        yield engine


def generate(engine: Engine) -> None:
    root = engine.prefill(range(1, 30))
    engine.decode(root.fork(3), max_tokens=8)
    root.release(subtree=True)


def ranges(path: Path) -> Counter[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_every_phase_is_a_range_of_the_trace(engine: Engine, tmp_path: Path) -> None:
    engine.cache.clear_cache()
    path = tmp_path / "trace.json.gz"
    traced = trace(lambda: generate(engine), engine.set_clock, CPU, most_steps=100, path=path)
    assert traced.steps == {"prefill": 1, "decode": 8}
    assert ranges(path) == {
        STEP_RANGE: 9,
        "dendrite.schedule": 9,
        "dendrite.launch": 9 + 9,
        "dendrite.model": 9 + 8,
        "dendrite.sample": 8,
        "dendrite.post": 9,
    }


def test_operators_are_told_apart_by_kind(engine: Engine) -> None:
    engine.cache.clear_cache()
    traced = trace(lambda: generate(engine), engine.set_clock, CPU, most_steps=100, path=None)
    assert {operator.kind for operator in traced.operators} == {"prefill", "decode"}
    assert not any(operator.name.startswith("dendrite.") for operator in traced.operators)
    times = [operator.us for operator in traced.operators]
    assert times == sorted(times, reverse=True)
    calls = {(operator.name, operator.kind): operator.calls for operator in traced.operators}
    assert calls["aten::searchsorted", "decode"] == 8
    assert ("aten::searchsorted", "prefill") not in calls


def test_the_trace_ends_after_so_many_steps_and_the_work_goes_on(engine: Engine, tmp_path: Path) -> None:
    engine.cache.clear_cache()
    before = engine.stats().steps
    path = tmp_path / "trace.json.gz"
    traced = trace(lambda: generate(engine), engine.set_clock, CPU, most_steps=3, path=path)
    assert traced.steps == {"prefill": 1, "decode": 2}
    assert ranges(path)[STEP_RANGE] == 3
    assert engine.stats().steps == before + 9


def test_work_that_fails_ends_the_profile(engine: Engine) -> None:
    def fail() -> None:
        generate(engine)
        raise ValueError("the work's own")

    with pytest.raises(ValueError, match="own"):
        trace(fail, engine.set_clock, CPU, most_steps=100, path=None)
    assert trace(lambda: generate(engine), engine.set_clock, CPU, most_steps=1, path=None).steps


def test_a_kernel_that_waits_for_the_one_before_counts_from_its_end() -> None:
    assert added([(0, 10), (6, 14), (2, 6), (20, 21)]) == [10, 4, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=12))
def test_what_kernels_add_sums_to_the_time_in_which_any_runs(spans: list[tuple[int, int]]) -> None:
    ends = [(start, start + length) for start, length in spans]
    covered = {tick for start, end in ends for tick in range(start, end)}
    assert sum(added(ends)) == len(covered)
