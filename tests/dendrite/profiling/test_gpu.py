"""A profile on a GPU: host phases, the time on the device, and its kernels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from dendrite.engine.engine import Engine
from dendrite.profiling.load import Load
from dendrite.profiling.run import Effort, profile_engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def test_a_profile_on_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    device = torch.device("cuda")
    with Engine.from_pretrained("countdown", device="cuda") as engine:
        assert engine.stats().device_loop
        load = Load.of("W2", {"prompt": 200, "tokens": 100, "branches": 8}, engine.longest_context)
        found = profile_engine(engine, load, model="countdown", device=device, effort=Effort(runs=2), trace_file=path)
    decode, prefill = found.kinds["decode"], found.kinds["prefill"]
    assert decode.steps == 2 * 101
    assert decode.calls < decode.steps
    assert decode.phases["sample"].mean_us == 0  # the device draws
    assert min(decode.phases[row].mean_us for row in ("schedule", "launch", "device", "post")) > 0
    assert sum(phase.mean_us for phase in decode.phases.values()) == pytest.approx(decode.whole.mean_us)
    for times in (decode, prefill):
        assert times.gpu is not None
        assert 0 < times.gpu.mean_us <= 2 * times.whole.mean_us
    # What the kernels take by themselves is about what the GPU is busy for.
    kernels = sum(row.us_per_step for row in found.operators["decode"])
    assert 0 < kernels <= 1.5 * decode.gpu.mean_us
    categories = {event.get("cat") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {"kernel", "user_annotation"} <= categories
