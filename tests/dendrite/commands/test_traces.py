"""`dendrite replay`, `view` and `export`, on the trace of a real search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dendrite.cli import app
from dendrite.engine.engine import Engine
from dendrite.search import Budget, run_search
from dendrite.search.packed import PackedTrees
from dendrite.search.tasks import Countdown
from dendrite.search.trace_file import read_trace
from tests.dendrite.search.frontier import Distinct
from tests.dendrite.search.synthetic import Puzzle


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    with Engine.from_pretrained("countdown", device="cpu") as engine:
        run_search(Countdown((3, 7, 8, 25), 99), engine, budget=Budget(tokens=200), trace=path)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_replay_prints_the_tree_and_agrees(trace: Path) -> None:
    before = trace.read_bytes()
    result = run("replay", trace)
    assert result.exit_code == 0, result.stderr
    assert "prompt" in result.stdout
    assert "the replay agrees with the trace" in result.stdout
    assert run("replay", trace, "--nodes", 0).stdout.count("\n") == 2
    assert trace.read_bytes() == before


def test_a_replay_prints_the_tree_of_each_prompt(tmp_path: Path) -> None:
    world = Distinct({"": {"a\n": 1.0}}, {"": 0.5})
    task = Puzzle({"a\n": 0.2})
    path = tmp_path / "several.jsonl"
    run_search(task, world, "lats", Budget(tokens=60), trace=path, failures=1)
    assert len(read_trace(path).roots) > 1
    result = run("replay", path, "--nodes", 1_000)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("prompt") == len(read_trace(path).roots)


def test_a_replay_that_differs_is_an_error(trace: Path, tmp_path: Path) -> None:
    *lines, last = trace.read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(lines) + json.dumps({**json.loads(last), "nodes": 1}) + "\n")
    result = run("replay", changed)
    assert result.exit_code == 1
    assert "differs from the trace in nodes" in result.stderr


def test_a_replay_of_half_a_search_says_so(trace: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.jsonl"
    half.write_bytes(trace.read_bytes()[: trace.stat().st_size // 2])
    result = run("replay", half)
    assert result.exit_code == 0
    assert "the trace ends before its search does" in result.stdout


def test_a_page_is_written(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = run("view", trace, "--out", out)
    assert (result.exit_code, str(out) in result.stdout) == (0, True)
    assert out.read_text().startswith("<!doctype html>")


def test_exports(trace: Path, tmp_path: Path) -> None:
    assert run("export", trace, "--format", "dot", "--out", tmp_path / "tree.dot", "--top", 5).exit_code == 0
    assert (tmp_path / "tree.dot").read_text().startswith("digraph")
    assert run("export", trace, trace, "--format", "npz", "--out", tmp_path / "trees.npz").exit_code == 0
    assert len(PackedTrees.load(tmp_path / "trees.npz")) == 2


def test_wrong_use_is_one_line(trace: Path, tmp_path: Path) -> None:
    wrong = [
        (run("export", trace, trace, "--format", "dot", "--out", tmp_path / "x.dot"), 2, "one trace"),
        (run("export", trace, "--format", "npz", "--top", 3, "--out", tmp_path / "x.npz"), 2, "--format dot"),
        (run("export", trace, "--format", "png", "--out", tmp_path / "x.png"), 2, "--format"),
        (run("view", trace, "--out", tmp_path / "no" / "x.html"), 2, "no folder"),
        (run("view", tmp_path / "none.jsonl", "--out", tmp_path / "x.html"), 1, "none.jsonl"),
        (run("replay", tmp_path / "none.jsonl"), 1, "none.jsonl"),
    ]
    for result, code, named in wrong:
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.stderr
        assert named in result.stderr
