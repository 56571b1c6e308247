"""The profile benchmark on a tiny shape: its figures, and their comparison with an older result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import profile

CASES = (
    profile.Case("W1", "W1", {"prompt": 10, "tokens": 4}),
    profile.Case("W2_n64", "W2", {"prompt": 10, "tokens": 3, "branches": 3}),
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(profile, "SMALL", CASES)
    monkeypatch.setattr(sys, "argv", ["profile", "--shape", "tiny", "--runs", "2", *arguments])
    profile.main()


def test_figures_and_their_ratios_to_older_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "--out", str(tmp_path / "old"))
    before = tmp_path / "old" / "profile-cpu-tiny.json"
    run(monkeypatch, "--out", str(tmp_path), "--before", str(before))
    old, new = json.loads(before.read_text()), json.loads((tmp_path / before.name).read_text())
    phases = ("schedule", "launch", "device", "sample", "post", "host", "whole")
    names = {f"profile.{case.name}.{phase}_us" for case in CASES for phase in phases}
    assert set(old["metrics"]) == names
    assert set(new["metrics"]) == names | {f"profile.{case.name}.host_ratio" for case in CASES}
    for case in CASES:
        host = f"profile.{case.name}.host"
        ratio = new["metrics"][host + "_us"] / old["metrics"][host + "_us"]
        assert new["metrics"][host + "_ratio"] == pytest.approx(ratio, rel=1e-3)
        found = new["raw"]["cases"][case.name]
        assert found["phases"]["post"]["min"] == min(found["phases"]["post"]["runs"])
        assert found["operators"]["decode"]
    assert new["raw"]["before"]["metrics"] == old["metrics"]
    assert "before" not in old["raw"]


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--shape", "gpt"], ["--before", "/no/such/file.json"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
