"""The decode benchmark of a model shape, on the CPU with a shape small enough."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import decode, machine, models, steps


def test_a_shape_s_steps_are_measured_and_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode, "BATCHES", (1, 4))
    monkeypatch.setattr(machine, "_COPIES", 1)
    lengths = steps.Lengths(prompt=10, tokens=4)
    decode.measure_steps("tiny", torch.device("cpu"), 2, True, tmp_path, lengths)
    result = json.loads((tmp_path / "decode-cpu-tiny.json").read_text())
    metrics, raw = result["metrics"], result["raw"]
    assert set(metrics) == {
        f"decode.b{batch}.{name}" for batch in (1, 4) for name in ("ms_per_token", "tok_s", "copy_fraction")
    }
    assert metrics["decode.b4.tok_s"] == pytest.approx(4e3 / metrics["decode.b4.ms_per_token"], rel=1e-4)
    assert len(raw["runs"]["decode.b1.ms_per_token"]["runs"]) == 2
    for found, batch in zip(raw["profile"], (1, 4), strict=True):
        times = [row["us_per_step"] for row in found["kernels"]]
        assert found["batch"] == batch
        assert 0 < len(times) <= 15
        assert times == sorted(times, reverse=True)
        assert sum(times) <= found["us_per_step"] * 1.001
    assert raw["engine"]["pages_held"] == 0
    assert "decode.b1.ms_per_token" in capsys.readouterr().out


def test_the_least_bytes_of_a_step() -> None:
    shape = models.SHAPES["tinyllama"]
    one, many = (steps.least_bytes(shape, 2, batch, steps.Lengths(64, 128)) for batch in (1, 256))
    assert one == models.step_bytes(shape, 2) + (64 + 64) * (22 << 10)
    assert many - one == 255 * 64 * (22 << 10)


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--device", "cuda"], ["--profile"], ["--shape", "gpt"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decode", *arguments])
    with pytest.raises(SystemExit) as ended:
        decode.main()
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
