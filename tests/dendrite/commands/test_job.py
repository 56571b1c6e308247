"""`dendrite job`, as a user runs it: killed, interrupted, taken up, and with problems that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dendrite.cli import app
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
PATIENCE_S = 120.0

TASK = """
import time
from pathlib import Path

from dendrite.search import Split

split = Split(max_tokens=8)
max_depth = 4


def reward(prompt: str, text: str, fails: bool) -> float:
    if Path("slow").exists():
        time.sleep(0.1)
    if fails and not Path("repaired").exists():
        raise ConnectionError("the judge is busy")
    return sum(letter in "aeiou" for letter in text) / (1 + len(text))
"""
COUNT = 8
FAILING = {3, 6}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    write_problems(tmp_path, FAILING)
    write_tiny_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_problems(folder: Path, failing: set[int]) -> None:
    problems = [{"prompt": f"number {number}\n", "fails": number in failing} for number in range(COUNT)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["job", *arguments])


BEGIN = ["run", "problems.jsonl", "--task", "task.py", "--out", "o.jsonl", "--local", "--model", "model"]
BEGIN += ["--budget-tokens", "40", "--option", "in_flight=1", "--concurrency", "2", "--attempts", "2", "--oracle"]


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def told(path: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0, "elapsed": 0} for line in lines(path)]


def test_a_job_with_failures(folder: Path) -> None:
    done = run(*BEGIN, "--sort")
    assert done.exit_code == 1
    assert "2 of 8 problems failed, the first with SearchFailed: ConnectionError: the judge is busy" in done.stderr
    assert "dendrite job resume o.jsonl --retry-failed" in done.stderr
    assert done.stdout.count("ETA") == COUNT
    assert all(word in done.stdout for word in ("[8/8]", "solved", "failed", "tokens/s", "time", "results: o.jsonl"))
    found = lines(folder / "o.jsonl")
    assert [line["index"] for line in found] == list(range(COUNT))
    assert {line["index"] for line in found if "error" in line} == FAILING
    assert [line["attempts"] for line in found] == [2 if index in FAILING else 1 for index in range(COUNT)]

    same = run("resume", "o.jsonl", "--json")
    assert same.exit_code == 1, "what failed is not forgotten"
    assert lines(folder / "o.jsonl") == found

    (folder / "repaired").touch()
    again = run("resume", "o.jsonl", "--retry-failed", "--json", "--concurrency", "1")
    assert again.exit_code == 0, again.stderr
    status = json.loads(again.stdout)
    repaired = lines(folder / "o.jsonl")
    assert status["tokens"] == sum(line["tokens"] for line in repaired)
    assert (status["problems"], status["done"], status["failed"], status["running"]) == (COUNT, COUNT, 0, False)
    assert [line["index"] for line in repaired] == list(range(COUNT))
    assert all(line == old or "error" in old for line, old in zip(repaired, found, strict=True))
    assert json.loads(run("status", "o.jsonl", "--json").stdout) == status
    assert sorted(path.name for path in folder.glob("o.*")) == ["o.jsonl", "o.jsonl.job.json"]


def test_every_built_in_kind_can_be_a_job(folder: Path) -> None:
    problem = {"schema": {"type": "integer"}, "instruction": "Numbers: 1 2. Target: 3."}
    (folder / "forms.jsonl").write_text(json.dumps(problem) + "\n")
    done = run("run", "forms.jsonl", "--task", "json_schema", "--out", "f.jsonl", "--local", "--budget-tokens", "20")
    assert done.exit_code == 0, done.stderr
    assert [line["index"] for line in lines(folder / "f.jsonl")] == [0]


def test_changes_are_refused_by_name(folder: Path) -> None:
    write_problems(folder, set())
    assert run(*BEGIN, "--json").exit_code == 0
    found = lines(folder / "o.jsonl")
    assert run(*BEGIN, "--json", "--concurrency", "3").exit_code == 0, "the same job again is the same job"
    other = run(*BEGIN, "--seed", "4")
    assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
    assert "seed=4: the job was begun with 0" in other.stderr
    assert "workers=2: cannot be given with --local" in run("resume", "o.jsonl", "--workers", "2").stderr
    write_problems(folder, {5})
    assert "problems" in (refused := run("resume", "o.jsonl")).stderr
    assert "line 6" in refused.stderr
    write_problems(folder, set())
    (folder / "task.py").write_text(TASK + "\n")
    assert "task" in run("resume", "o.jsonl").stderr
    assert lines(folder / "o.jsonl") == found


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*BEGIN, "--algorithm", "luck"], ["algorithm", "mcts"]),
        ([*BEGIN, "--option", "sea=1"], ["sea", "no option of mcts"]),
        ([*BEGIN, "--values", "luck"], ["values", "head, rule, logprob, judge"]),
        ([*BEGIN, "--attempts", "0"], ["--attempts"]),
        ([*BEGIN, "--workers", "2"], ["workers", "--local"]),
        ([*BEGIN, "--kv-mib", "0"], ["kv_mib"]),
        ([*BEGIN, "--checkpoint", "all"], ["--checkpoint", "searches"]),
        ([*BEGIN, "--count", "3"], ["count"]),
        (["run", "--task", "chess", "--out", "o.jsonl"], ["task", "countdown"]),
        (["run", "--task", "countdown"], ["--out"]),
        (["resume", "o.jsonl"], ["out", "holds no job"]),
        (["status", "o.jsonl"], ["out", "holds no job"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], named: list[str], folder: Path) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in named), result.stderr
    assert not list(folder.glob("o.*")), "nothing is begun"


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dendrite", "job", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_job_that_is_killed_and_interrupted_ends_as_one_that_is_not(folder: Path) -> None:
    write_problems(folder, set())
    arguments = [*BEGIN, "--sort", "--checkpoint", "searches"]
    arguments[arguments.index("40")] = "60"
    path, slow = folder / "o.jsonl", folder / "slow"
    slow.touch()
    killed = start(*arguments)
    wait_until(lambda: line_count(path) >= 2, killed)
    status = json.loads(run("status", "o.jsonl", "--json").stdout)
    refused = run("resume", "o.jsonl")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (status["running"], status["problems"]) == (True, COUNT)
    assert 0 < status["eta_s"] < PATIENCE_S
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"is being written by process {killed.pid}" in refused.stderr

    before = line_count(path)
    assert before < COUNT
    told_so = run("status", "o.jsonl").stdout
    assert "not running; go on with: dendrite job resume o.jsonl" in told_so
    ended = start("resume", "o.jsonl")
    wait_until(lambda: line_count(path) > before, ended)
    ended.send_signal(signal.SIGTERM)
    _, err = ended.communicate(timeout=PATIENCE_S)
    assert ended.returncode == 130, err
    assert f"{line_count(path)} of {COUNT} problems are in o.jsonl; go on with: dendrite job resume o.jsonl" in err
    assert err.count("\n") == 1

    slow.unlink()
    assert run("resume", "o.jsonl").exit_code == 0
    found = told(path)
    assert [line["index"] for line in found] == list(range(COUNT))
    arguments[arguments.index("o.jsonl")] = "whole.jsonl"
    assert run(*arguments).exit_code == 0
    assert told(folder / "whole.jsonl") == found
    for name in ("o", "whole"):
        traces = sorted(trace.name for trace in (folder / f"{name}.jsonl.traces").iterdir())
        assert traces == [f"{index:05}.jsonl" for index in range(COUNT)]
