"""The benchmark measures what it says; the bounds on time are loose enough for any machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import common, fork


def test_times_and_ratios_come_from_every_run() -> None:
    runs = fork.measure(runs=2, calls=200)
    assert set(runs.ratios) == {"fork.context_ratio", "fork.depth_ratio", "fork.sibling_ratio"}
    for spread in (runs.latency | runs.ratios).values():
        assert len(spread["runs"]) == 2
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert runs.latency["fork.p50_us"]["min"] < 200
    assert runs.latency["fork.n64_us"]["min"] < 50
    for spread in runs.ratios.values():  # a fork that walked or copied anything would be a hundredfold slower
        assert spread["min"] < 5


def test_a_fork_holds_little_memory_and_no_page() -> None:
    found = fork.memory()
    assert found["fork.new_pages"] == 0
    assert 0 < found["fork.metadata_bytes_siblings"] <= found["fork.metadata_bytes"] <= 512
    assert found["fork.kv_overhead_percent"] < 0.1


def test_a_result_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fork", "--runs", "5"])
    raw = {"times": common.spread([3.0, 1.0, 2.0])}
    path = common.write_result(
        benchmark="fork", subject="x", hardware="cpu", metrics={"fork.a": 1.23456789}, raw=raw, folder=tmp_path
    )
    assert path.name == "fork-cpu-x.json"
    assert list(tmp_path.iterdir()) == [path]
    result = json.loads(path.read_text())
    assert set(result) == {"benchmark", "subject", "hardware", "commit", "command", "versions", "metrics", "raw"}
    assert result["command"] == "python -m benchmarks.fork --runs 5"
    assert result["metrics"] == {"fork.a": 1.23457}
    assert result["raw"]["times"] == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": [3.0, 1.0, 2.0]}


def test_a_number_that_json_has_no_form_for_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        common.write_result(
            benchmark="fork", subject="x", hardware="cpu", metrics={"fork.a": float("nan")}, raw={}, folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--calls", "1"], ["--speed", "9"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fork", *arguments])
    with pytest.raises(SystemExit) as ended:
        fork.main()
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
