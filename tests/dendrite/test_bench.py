"""`dendrite bench` hands its arguments to a benchmark of the checkout, and its exit code back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dendrite import bench, cli
from dendrite.errors import MissingDependency

ROOT = Path(__file__).parents[2]
_ECHO = "import sys\nprint(sys.argv[1:])\nsys.exit(3)\n"


def dendrite(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "dendrite", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_benchmark_of_the_checkout_runs_from_anywhere(tmp_path: Path) -> None:
    done = dendrite("bench", "fork", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--calls" in done.stdout


def test_arguments_and_exit_code_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "kernels.py").write_text(_ECHO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "dendrite" / "bench.py"))
    result = CliRunner().invoke(cli.app, ["bench", "kernels", "--shape", "tiny", "-x", "--help", "--", "y"])
    assert result.exit_code == 3
    assert "['--shape', 'tiny', '-x', '--help', '--', 'y']" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["flight"],
            ["name='flight'", "tree_workloads, attention, decode, fork, search, parallel_search, grammar, kernels"],
        ),
        ([], ["'name'"]),
    ],
)
def test_an_unknown_benchmark_is_one_line(arguments: list[str], named: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in named), result.stderr


def test_without_a_checkout_there_is_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "dendrite" / "bench.py"))
    result = CliRunner().invoke(cli.app, ["bench", "fork"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in ("benchmarks.fork is missing", "checkout", "pip install -e ."))
    with pytest.raises(MissingDependency):
        bench.run_benchmark("fork", [])
