"""The workloads do the work they claim, on the real engine; what fails is reported beside what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import goals, machine, models, tree_workloads
from benchmarks.common import spread
from benchmarks.peers import Transformers
from dendrite import Engine, EngineConfig
from dendrite.errors import InvalidArgument
from dendrite.model.decoder import Decoder
from dendrite.profiling import workloads
from tests.recompute import logits_by_recomputation

SIZES = replace(workloads.QUICK, w1_tokens=6, w2_branches=(8,), w3_expansions=9, w3_in_flight=(1, 4), w4_contexts=(40,))
WORK = {  # tokens decoded, the one for each prompt included
    "W1": 6 + 1,
    "W2.n8": 8 * 8 + 1,
    "W3.f1": 9 * 4 + 1,
    "W3.f4": 9 * 4 + 1,
    "W5": 2 * 8 * 3 * 4 + 2,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    config = EngineConfig(device="cpu", kv_tokens=8192, debug_checks=True)
    with Engine(Decoder.random(models.SHAPES["tiny"]), config=config) as engine:
        yield engine


@pytest.mark.parametrize("name", workloads.workloads(SIZES))
def test_a_workload_decodes_what_it_says_and_leaves_nothing(name: str, engine: Engine) -> None:
    before = engine.stats()
    prompts = workloads.random_prompts(257)
    found = workloads.workloads(SIZES)[name](engine, prompts, SIZES)
    after = engine.stats()
    assert all(metric.startswith(name) and value > 0 for metric, value in (found.metrics | found.aside).items())
    if name in WORK:
        assert after.decode_tokens - before.decode_tokens == WORK[name]
    assert after.pages_held == 0
    assert after.running == after.waiting == 0


def test_the_design_s_metrics_are_measured() -> None:
    names = workloads.workloads(workloads.Sizes())
    assert list(names) == ["W1", "W2.n8", "W2.n64", "W2.n256", "W3.f1", "W3.f16", "W4.c4096", "W4.c16000", "W5"]
    for shape, targets in goals.GOALS.items():
        assert shape in models.SHAPES
        assert all(any(metric.startswith(name) for name in names) for metric in targets)


def test_prompts_are_never_the_same() -> None:
    prompts = workloads.random_prompts(257)
    assert len({tuple(prompts(16)) for _ in range(50)}) == 50


def test_a_branch_of_the_wrong_length_is_no_figure(engine: Engine) -> None:
    root = engine.prefill([1, 2, 3])
    with pytest.raises(RuntimeError, match="0 tokens instead of 5"):
        workloads._expect(root.fork(), 5)
    root.release(subtree=True)


@pytest.mark.parametrize(
    ("metric", "median", "words"),
    [
        ("W1.ms_per_token", 0.65, ["0.650", "≤ 0.7", "met", "1.82"]),
        ("W1.ms_per_token", 0.75, ["missed"]),
        ("W2.n256.tok_s", 119_000.0, ["119,000", "≥ 120,000", "missed", "22,100"]),
        ("W2.n256.tok_s", 121_000.0, ["met"]),
    ],
)
def test_a_row_says_whether_the_goal_is_met(metric: str, median: float, words: list[str]) -> None:
    row = goals.table_row("tinyllama", metric, spread([median]))
    assert all(word in row.split() or word in row for word in words)
    assert ("met" in row.split()) == ("missed" not in words)


def test_weights_of_a_step_are_those_the_field_quotes() -> None:
    assert models.step_bytes(models.SHAPES["tinyllama"], 2) == pytest.approx(2.07e9, rel=0.01)
    assert models.step_bytes(models.SHAPES["llama3-8b"], 2) == pytest.approx(15.0e9, rel=0.01)
    assert models.token_bytes(models.SHAPES["tinyllama"], 2) == 22 << 10
    assert models.token_bytes(models.SHAPES["llama3-8b"], 2) == 128 << 10


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX 4090", "nvidia-rtx-4090"),
    ],
)
def test_hardware_names(name: str, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert machine.hardware_name(torch.device("cuda")) == short
    assert machine.hardware_name(torch.device("cpu")) == "cpu"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tree_workloads", "--shape", "tiny", "--device", "cpu", "--quick", *arguments])
    monkeypatch.setattr(tree_workloads, "QUICK", SIZES)
    monkeypatch.setattr(machine, "_COPIES", 1)
    return tree_workloads.main()


def test_the_command_writes_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--runs", "2", "--workloads", "W1,W3.f4", "--out", str(tmp_path)) == 0
    [path] = tmp_path.iterdir()
    assert path.name == "tree_workloads-cpu-tiny-quick.json"
    result = json.loads(path.read_text())
    assert set(result["metrics"]) == {"W1.ms_per_token", "W3.f4.ms_per_expansion"}
    raw = result["raw"]
    assert len(raw["runs"]["W1.ms_per_token"]["runs"]) == 2
    assert raw["engine"]["cached_tokens"] == 0
    assert raw["engine"]["pages_held"] == 0
    needed = models.step_bytes(models.SHAPES["tiny"], 4) + (16 + 3) * models.token_bytes(models.SHAPES["tiny"], 4)
    assert raw["W1_bytes_per_token"] == needed
    fraction = needed / (result["metrics"]["W1.ms_per_token"] * 1e6) / raw["copy_gb_s"]
    assert raw["W1_fraction_of_copy_bandwidth"] == pytest.approx(fraction, rel=1e-4)
    assert raw["startup_s"] > 0.1
    assert "W3.f4.ms_per_expansion" in capsys.readouterr().out


def test_a_workload_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(engine: workloads.TreeEngine, prompts: workloads.Prompts, sizes: workloads.Sizes) -> workloads.Figures:
        engine.prefill(prompts(40))
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(workloads, "w1", fail)
    assert run(monkeypatch, "--runs", "1", "--workloads", "W1,W5", "--out", str(tmp_path)) == 1
    result = json.loads(next(tmp_path.iterdir()).read_text())
    assert set(result["metrics"]) == {"W5.tok_s"}
    assert result["raw"]["errors"] == {"W1": "RuntimeError: out of luck"}
    assert result["raw"]["engine"]["pages_held"] == 0
    assert "W1 failed: RuntimeError: out of luck" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--workloads", "W9"], ["--workloads", "W2.n7"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.fixture(scope="module")
def plain_decoder() -> Decoder:
    """Its weights are left as they were given, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        return Decoder.random(models.SHAPES["tiny"], seed=1)


def test_transformers_is_the_same_model(plain_decoder: Decoder) -> None:
    prompt = workloads.random_prompts(257)(33)
    with torch.inference_mode():
        logits, _ = Transformers(plain_decoder)._prefilled(prompt)
    torch.testing.assert_close(logits[0], logits_by_recomputation(plain_decoder, prompt)[-1], rtol=1e-4, atol=1e-5)


def test_transformers_is_measured_beside(plain_decoder: Decoder) -> None:
    measured, kept = tree_workloads.Measured(), []
    tree_workloads.measure_peer(
        plain_decoder, ["W1", "W2", "W4", "W5"], 2, SIZES, measured, lambda: kept.append(len(measured.metrics))
    )
    assert measured.errors == {}
    assert kept == [1, 2, 3], "every figure is kept as soon as it is there"
    expected = {"W1.ms_per_token", "W2.n8.tok_s", "W4.c40.ms"}
    assert set(measured.metrics) == {f"transformers.{name}" for name in expected}
    assert all(value > 0 for value in measured.metrics.values())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN no weight is rearranged")
def test_transformers_refuses_rearranged_weights() -> None:
    with pytest.raises(InvalidArgument, match="packed"):
        Transformers(Decoder.random(models.SHAPES["tiny"]))
