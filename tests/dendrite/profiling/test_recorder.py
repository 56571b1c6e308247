"""The phases of a step are told to the engine's clock, and what the recorder makes of them adds up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine import core
from dendrite.engine.clock import Phase, StepClock
from dendrite.engine.engine import Engine
from dendrite.engine.plan import Plan
from dendrite.model.decoder import Decoder
from dendrite.profiling.recorder import ROWS, PhaseRecorder
from tests.dendrite.engine.host_loop import HostLoop
from tests.tiny_config import TINY

CPU = torch.device("cpu")


class Listener(StepClock):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self) -> None:
        self.told.append("begin")

    def enter(self, phase: Phase) -> None:
        self.told.append(phase)

    def end(self, plan: Plan) -> None:
        self.told.append("end")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.random(TINY, seed=3)


@pytest.fixture
def engine(decoder: Decoder) -> Iterator[Engine]:
    with Engine(decoder, config=EngineConfig(device="cpu", kv_tokens=4096)) as engine:
        yield engine


def test_a_step_tells_its_phases_in_order(engine: Engine) -> None:
    listener = Listener()
    engine.set_clock(listener)
    root = engine.prefill(range(1, 20))
    assert listener.told == ["begin", "launch", "launch", "model", "post", "end"]
    listener.told.clear()
    engine.decode(root.fork(2), max_tokens=1)
    assert listener.told == ["begin", "launch", "model", "sample", "launch", "model", "post", "end"]
    listener.told.clear()
    engine.set_clock(StepClock())
    engine.decode(root.fork(2), max_tokens=1)
    assert listener.told == []


def test_phases_sum_to_the_time_of_the_step(engine: Engine) -> None:
    recorder = PhaseRecorder(CPU)
    engine.set_clock(recorder)
    before = engine.stats()
    began = time.perf_counter_ns()
    root = engine.prefill(range(1, 30))
    engine.decode(root.fork(3), max_tokens=8)
    outside = time.perf_counter_ns() - began
    after = engine.stats()
    steps = recorder.steps()
    assert len(steps) == after.steps - before.steps == 9
    total = sum(sum(step.ns.values()) for step in steps)
    running = 1e9 * (after.seconds_running - before.seconds_running)
    assert running * 0.98 <= total <= outside
    assert all(step.ns.keys() == set(ROWS) and step.span_us is None for step in steps)


def test_kinds_and_rows_of_steps(engine: Engine) -> None:
    recorder = PhaseRecorder(CPU)
    engine.set_clock(recorder)
    root = engine.prefill(range(1, 30))
    engine.submit(root.fork(3), max_tokens=2)
    engine.step()
    engine.submit_prefill(range(40, 50))
    engine.step()
    engine.step()  # has nothing to do
    assert [(step.kind, step.burst, step.rows) for step in recorder.steps()] == [
        ("prefill", 1, 29),
        ("decode", 1, 3),
        ("mixed", 1, 3 + 10),
    ]
    prefill, decode, mixed = (step.ns for step in recorder.steps())
    assert prefill["sample"] == 0
    assert min(decode.values()) > 0
    assert min(mixed.values()) > 0


def test_a_burst_is_one_step_of_many_tokens(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "make_device_loop", HostLoop)
    recorder = PhaseRecorder(CPU)
    with Engine(decoder, config=EngineConfig(device="cpu", kv_tokens=4096)) as engine:
        engine.set_clock(recorder)
        root = engine.prefill(range(1, 30))
        engine.decode(root.fork(2), max_tokens=20, ignore_eos=True)
    bursts = [step.burst for step in recorder.steps() if step.kind == "decode"]
    assert sum(bursts) == 20
    assert len(bursts) < 20


def test_a_step_that_fails_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = PhaseRecorder(CPU)
    root = engine.prefill(range(1, 30))
    engine.set_clock(recorder)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.decode(root.fork(), max_tokens=1)
    assert recorder.steps() == []
    engine.decode(root.fork(), max_tokens=1)
    assert len(recorder.steps()) == 1
