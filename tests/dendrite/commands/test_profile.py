"""`dendrite profile` on the packaged model."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from dendrite.cli import app

PHASES = ["schedule", "launch", "device", "sample", "post"]
SMALL = ["--device", "cpu", "--prompt", "20", "--tokens", "4", "--runs", "2"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


@dataclass(frozen=True)
class Profiled:
    """One run of the command: what it printed and wrote."""

    text: str
    report: dict[str, Any]
    trace: dict[str, Any]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    folder = tmp_path_factory.mktemp("profile")
    trace, report = folder / "trace.json.gz", folder / "profile.json"
    sizes = [*SMALL, "--expansions", 6, "--in-flight", 3, "--top", 4]
    result = run("W3", *sizes, "--trace", trace, "--json", report)
    assert result.exit_code == 0, result.stderr
    return Profiled(result.stdout, json.loads(report.read_text()), json.loads(gzip.decompress(trace.read_bytes())))


def test_the_tables_name_all_phases_and_both_kinds(profiled: Profiled) -> None:
    assert "W3 (prompt 20, tokens 4, expansions 6, in flight 3) of countdown on cpu" in profiled.text
    for kind in ("prefill", "decode"):
        table = profiled.text.partition(f"{kind}: ")[2].partition("whole step")[0]
        for phase in ("schedule", "launch", "device", "sample", "post-process"):
            assert f"│ {phase} " in table
    assert "decode: longest operators" in profiled.text
    assert profiled.text.count("written to ") == 2


def test_the_report_holds_the_same_figures(profiled: Profiled) -> None:
    report = profiled.report
    assert set(report) == {
        *("workload", "model", "device", "sizes", "runs", "seconds"),
        *("seconds_outside", "kinds", "traced", "operators"),
    }
    assert report["sizes"] == {"prompt": 20, "tokens": 4, "expansions": 6, "in_flight": 3}
    assert set(report["kinds"]) == {"prefill", "decode"}
    for times in report["kinds"].values():
        assert set(times) == {"steps", "calls", "rows", "phases", "whole", "gpu"}
        assert list(times["phases"]) == PHASES
        for quantity in (*times["phases"].values(), times["whole"]):
            assert set(quantity) == {"mean_us", "p50_us", "p99_us", "share"}
        assert sum(phase["mean_us"] for phase in times["phases"].values()) == pytest.approx(times["whole"]["mean_us"])
        assert f"{times['whole']['mean_us']:,.1f}" in profiled.text
    inside = sum(times["whole"]["mean_us"] * times["steps"] for times in report["kinds"].values()) / 1e6
    assert inside + report["seconds_outside"] == pytest.approx(report["seconds"])
    assert 0 <= report["seconds_outside"] < report["seconds"]
    for rows in report["operators"].values():
        assert 0 < len(rows) <= 4
        assert set(rows[0]) == {"name", "us_per_step", "calls_per_step", "share"}


def test_the_trace_is_one_that_chrome_reads(profiled: Profiled) -> None:
    complete = [event for event in profiled.trace["traceEvents"] if event.get("ph") == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= set(event) for event in complete)
    names = {event["name"] for event in complete if event["cat"] == "user_annotation"}
    assert names == {f"dendrite.{name}" for name in ("step", "schedule", "launch", "model", "sample", "post")}


@pytest.mark.parametrize("workload", ["W1", "W2"])
def test_the_other_workloads(workload: str) -> None:
    sizes = ["--branches", "2"] if workload == "W2" else []
    result = run(workload, *SMALL, *sizes, "--runs", "1", "--traced-steps", "2")
    assert result.exit_code == 0, result.stderr
    assert "1 steps traced" in result.stdout
    assert "written to" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["W9"], "workload='W9': must be one of W1, W2, W3"),
        (["W1", "--branches", "3"], "branches=3: is no size of W1"),
        (["W1", "--tokens", "5000"], "tokens=5000: at most"),
        (["W1", "--runs", "0"], "--runs"),
        (["W1", "--device", "tpu"], "--device"),
        (["W1", "--trace", "trace.txt"], "trace='trace.txt': must end in .json or .json.gz"),
        (["W1", "--trace", "/no/such/trace.json"], "there is no folder /no/such"),
        (["W1", "--json", "/no/such/profile.json"], "json='/no/such/profile.json': there is no folder /no/such"),
        ([], "workload"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert told.lower() in result.stderr.lower()


def test_an_unknown_model_is_one_line() -> None:
    result = run("W1", "--model", "/no/such/model")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no model folder" in result.stderr
