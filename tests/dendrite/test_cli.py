"""The command line, run the way a shell runs it wherever that matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from dendrite import cli
from dendrite.commands import running
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


class Command:
    """A `dendrite` process and all that descends from it, known by a mark in their environment."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.mark = uuid4().hex
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DENDRITE_TEST_MARK": self.mark}
        environment.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dendrite", *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a signal to the group is a Ctrl-C that spares the test
        )

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def relatives(self) -> list[str]:
        """Command lines of the living processes that carry the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue  # it ended in the meantime
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands in the test's folder; each must leave no process behind."""
    commands: list[Command] = []

    def run(*arguments: str) -> Command:
        commands.append(Command(*arguments, cwd=tmp_path))
        return commands[-1]

    yield run
    for command in commands:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()
        wait_until(partial(is_gone, command), "processes are left")


def is_gone(command: Command) -> bool:
    return not command.relatives()


def wait_until(true: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines, each a complete JSON value."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workers", "0"], ["--workers", "1"]),
        (["--workers", "many"], ["--workers", "integer"]),
        (["--workers", "2", "--local"], ["workers", "2", "--local"]),
        (["--problems", "0"], ["--problems", "1"]),
        (["--concurrency", "0"], ["--concurrency", "1"]),
        (["--in-flight", "0"], ["--in-flight", "1"]),
        (["--budget-tokens", "0"], ["--budget-tokens", "1"]),
        (["--seconds", "-2"], ["seconds", "positive"]),
        (["--seed", "-1"], ["--seed", "0"]),
        (["--task", "chess"], ["task", "countdown"]),
        (["--algorithm", "luck"], ["algorithm", "mcts, best_of_n, greedy"]),
        (["--algorithm", "greedy", "--in-flight", "2"], ["in_flight", "greedy"]),
        (["--numbers", "3,x", "--target", "4"], ["numbers", "whole numbers"]),
        (["--numbers", "3", "--target", "4"], ["numbers", "2 to 6"]),
        (["--numbers", "3,4"], ["target", "go together"]),
        (["--target", "4"], ["numbers", "go together"]),
        (["--target", "4", "--task", "game24"], ["target=4", "countdown"]),
        (["--numbers", "3,4", "--task", "game24"], ["numbers='3,4'", "countdown"]),
        (["--out", "/"], ["out", "cannot be written"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
def test_wrong_arguments_are_one_line_that_names_field_and_limit(arguments: list[str], named: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["solve", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in named), result.stderr


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    for place in ([], ["--local"]):
        result = CliRunner().invoke(cli.app, ["solve", "--model", "nowhere", "--out", out, *place])
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "nowhere" in result.stderr


def test_without_a_cluster_package_there_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "entry_points", lambda group: [])
    result = CliRunner().invoke(cli.app, ["solve", "--out", str(tmp_path / "out.jsonl")])
    assert result.exit_code == 1
    assert "pip install" in result.stderr
    assert "--local" in result.stderr


def test_version_and_help() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout.split()[0]) == (0, "dendrite")
    assert CliRunner().invoke(cli.app, ["solve", "--help"]).exit_code == 0


def test_local_solves_without_ray(model: str, tmp_path: Path) -> None:
    program = f"""
import sys
from dendrite.cli import app
try:
    app(["solve", "--local", "--model", {model!r}, "--problems", "3", "--budget-tokens", "200", "--out", "o.jsonl"])
finally:
    assert "torch" in sys.modules
    assert not [name for name in sys.modules if name.split(".")[0] in ("ray", "actors")]
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[3/3] countdown" in done.stdout
    assert sorted(line["index"] for line in lines(tmp_path / "o.jsonl")) == [0, 1, 2]


def test_one_problem_and_a_summary_for_programs(model: str, tmp_path: Path, start: Callable[..., Command]) -> None:
    arguments = ["--local", "--model", model, "--numbers", "3,7,8,25", "--target", "92", "--seconds", "1", "--json"]
    code, out, err = start("solve", *arguments, "--in-flight", "2", "--seed", "5").result()
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["problems"], summary["done"], summary["algorithm"]) == (1, 1, "mcts")
    [line] = lines(tmp_path / summary["out"])
    assert (line["task"], line["seed"]) == ("countdown 3 7 8 25 = 92", 5)
    assert summary["out"].startswith("runs/solve-")


def test_failed_problems_are_told(model: str, tmp_path: Path, start: Callable[..., Command]) -> None:
    (tmp_path / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):  # and no tokenizer
        (tmp_path / "mute" / name).write_bytes((Path(model) / name).read_bytes())
    code, _, err = start("solve", "--local", "--model", "mute", "--problems", "2", "--out", "o.jsonl").result()
    assert code == 1
    assert err.count("\n") == 1
    assert "2 of 2 problems failed" in err
    assert "tokenizer" in err
    assert all("error" in line for line in lines(tmp_path / "o.jsonl"))


def test_the_main_job_starts_ray_and_leaves_nothing(model: str, tmp_path: Path, start: Callable[..., Command]) -> None:
    arguments = ["--task", "countdown", "--problems", "6", "--algorithm", "mcts", "--workers", "2"]
    code, out, err = start("solve", *arguments, "--model", model, "--budget-tokens", "300", "--out", "o.jsonl").result()
    assert code == 0, err
    assert "[6/6]" in out
    assert all(word in out for word in ("solved", "tokens/s", "forks", "KV shared", "results: o.jsonl"))
    assert sorted(line["index"] for line in lines(tmp_path / "o.jsonl")) == list(range(6))


@pytest.mark.parametrize("moment", ["ray starts", "problems are solved"])
def test_ctrl_c_leaves_whole_lines_and_no_process(
    moment: str, model: str, tmp_path: Path, start: Callable[..., Command]
) -> None:
    path = tmp_path / "o.jsonl"
    command = start("solve", "--model", model, "--problems", "500", "--budget-tokens", "500", "--out", "o.jsonl")
    if moment == "ray starts":
        wait_until(lambda: any("gcs_server" in name for name in command.relatives()), "no gcs_server")
    else:
        wait_until(lambda: path.exists() and path.read_text().count("\n") >= 2, "no problem was solved")
        assert any("raylet" in name for name in command.relatives())
    os.killpg(command.process.pid, signal.SIGINT)
    code, _, err = command.result()
    assert code == cli.INTERRUPTED, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert len(lines(path)) < 500
