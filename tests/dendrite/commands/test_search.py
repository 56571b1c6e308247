"""`dendrite search`, as a user with a problem file and a reward function runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dendrite.cli import app

REWARD = """
from dendrite.search import Split

split = Split(max_tokens=20)
max_depth = 3


def reward(prompt: str, text: str) -> float:
    lines = text.splitlines()
    return sum("7" in line for line in lines) / len(lines) if lines else 0.0
"""
PROMPTS = ["Numbers: 3 7 8 25. Target: 92.\n", "Numbers: 2 7 9 11. Target: 50.\n"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_task.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["search", "prompts.jsonl", "--task", "my_task.py", *arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda line: int(line["index"]))


def told(path: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0.0} for line in lines(path)]


def test_own_problems_are_searched_traced_and_taken_up(folder: Path) -> None:
    arguments = ["--local", "--budget-tokens", "150", "--option", "in_flight=1", "--traces", "traces"]
    done = run(*arguments, "--out", "first.jsonl", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "my_task"
    first = told(folder / "first.jsonl")
    assert [line["index"] for line in first] == [0, 1]
    assert all(0 < line["tokens"] <= 150 for line in first)
    assert sorted(path.name for path in (folder / "traces").iterdir()) == ["00000.jsonl", "00001.jsonl"]

    trace = folder / "traces" / "00001.jsonl"
    whole = trace.read_text()
    trace.write_text(whole[: len(whole) // 2])
    again = run(*arguments, "--out", "again.jsonl", "--resume")
    assert again.exit_code == 0, again.stderr
    assert told(folder / "again.jsonl") == first

    other = run(*arguments, "--out", "other.jsonl", "--resume", "--seed", "1")
    assert other.exit_code == 1
    assert "seed" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--algorithm", "luck"], ["algorithm", "mcts"]),
        (["--option", "c"], ["option", "NAME=VALUE"]),
        (["--option", "sea=1"], ["sea", "no option of mcts"]),
        (["--option", "in_flight=0"], ["in_flight"]),
        (["--values", "luck"], ["values", "head, rule, logprob, judge"]),
        (["--resume"], ["resume", "--traces"]),
        (["--kv-mib", "0"], ["kv_mib", "positive"]),
        (["--seconds", "0"], ["seconds", "positive"]),
        (["--expansions", "0"], ["--expansions", "1"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], named: list[str], folder: Path) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert all(name in result.stderr for name in named), result.stderr
    assert not list(folder.glob("runs/*")), "nothing is begun"


def test_texts_can_be_held_to_a_schema(folder: Path) -> None:
    (folder / "schema.json").write_text('{"enum": [77, 1234]}')
    arguments = ["--algorithm", "best_of_n", "--local", "--budget-tokens", "60", "--out", "out.jsonl"]
    done = run(*arguments, "--json-schema", "schema.json")
    assert done.exit_code == 0, done.stderr
    assert {line["text"] for line in lines(folder / "out.jsonl")} == {"77"}, "the better of the two"


@pytest.mark.parametrize(
    ("schema", "named", "code"),
    [
        ('{"properties": {"a": {"not": {}}}}', "$.properties.a", 1),
        ("[", "json_schema", 2),
        (None, "cannot be read", 2),
    ],
)
def test_a_schema_that_cannot_be_used_is_one_line(folder: Path, schema: str | None, named: str, code: int) -> None:
    if schema is not None:
        (folder / "schema.json").write_text(schema)
    result = run("--local", "--json-schema", "schema.json")
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert named in result.stderr


def test_wrong_files_are_one_line(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\n')
    result = run("--local")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "line 2" in result.stderr
    (folder / "my_task.py").write_text("def reward(\n")
    result = run("--local")
    assert result.exit_code == 1
    assert "my_task.py" in result.stderr
    (folder / "prompts.jsonl").write_text("")
    (folder / "my_task.py").write_text(REWARD)
    result = run("--local")
    assert (result.exit_code, "at least one problem" in result.stderr) == (2, True)


def test_built_in_tasks_need_no_file(folder: Path) -> None:
    (folder / "games.jsonl").write_text('{"numbers": [2, 3, 7, 12]}\n{"numbers": [1, 2, 3, 4]}\n')
    command = ["search", "games.jsonl", "--task", "game24", "--local", "--budget-tokens", "60", "--out", "out.jsonl"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert [line["task"] for line in lines(folder / "out.jsonl")] == ["game24 2 3 7 12", "game24 1 2 3 4"]
    (folder / "games.jsonl").write_text('{"numbers": [2, 3, 7, 12]}\n{"numbers": [1, 2, 3]}\n')
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "games.jsonl, line 2: numbers=" in result.stderr
