from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import pressure
from dendrite.profiling.workloads import Sizes

TINY = Sizes(w5_trees=2, w5_prompt=20, w5_leaves=8, w5_kept=2, w5_levels=3)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pressure", *arguments])
    monkeypatch.setattr(pressure, "SMALL", TINY)
    return pressure.main()


def test_half_the_pages_are_used_well_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--runs", "1", "--out", str(tmp_path)) == 0
    [path] = tmp_path.iterdir()
    assert path.name == "pressure-cpu-tiny-quick.json"
    result = json.loads(path.read_text())
    metrics = {name.removeprefix("pressure."): value for name, value in result["metrics"].items()}
    assert metrics["equal"] == 1.0
    assert metrics["pages"] == metrics["demand_pages"] // 2
    assert 0.5 < metrics["utilisation"] <= 1.0, "each step's time is its weight, so it is not the same in each run"
    assert 0.3 < metrics["needed"] <= metrics["utilisation"]
    assert metrics["preemptions"] > 0
    assert metrics["dropped_pages"] > 0
    assert metrics["recomputed_tokens"] > 0
    assert metrics["tok_s"] > 0
    enough = result["raw"]["enough_counts"][0]
    assert (enough["preemptions"], enough["dropped_pages"], enough["recomputed_tokens"]) == (0, 0, 0)


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--tokens", "0"], ["--share", "0"], ["--share", "1.5"]])
def test_wrong_arguments_are_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
