from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dendrite.commands.problems import load_problems, parse_budget, parse_options
from dendrite.errors import DendriteError, InvalidArgument
from dendrite.search.budget import Budget
from dendrite.search.tasks import Arithmetic, Countdown, Game24
from dendrite.search.tasks.custom import PromptError

REWARD = "def reward(prompt: str, text: str, word: str) -> float:\n    return float(word in text)\n"


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_problems_are_drawn() -> None:
    drawn = load_problems(None, "countdown", 3, 5)
    assert len(drawn.tasks) == len(set(drawn.inputs)) == 3
    assert drawn == load_problems(None, "countdown", 3, 5)
    assert drawn.inputs != load_problems(None, "countdown", 3, 6).inputs
    assert drawn.task_digest is None
    assert len(load_problems(None, "game24", None, 0).tasks) == 20


@pytest.mark.parametrize(
    ("kind", "fields", "task"),
    [
        ("countdown", {"numbers": [3, 7, 8, 25], "target": 92}, Countdown((3, 7, 8, 25), 92)),
        ("game24", {"numbers": [1, 2, 3, 4]}, Game24((1, 2, 3, 4))),
        ("arithmetic", {"a": 34, "b": 27, "operator": "*"}, Arithmetic(34, 27, "*")),
    ],
)
def test_lines_make_problems_of_a_kind(kind: str, fields: dict[str, Any], task: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "problems.jsonl", fields)
    assert list(load_problems(file, kind, None, 0).tasks) == [task]
    with pytest.raises(PromptError, match=r"problems\.jsonl, line 2: "):
        load_problems(written(file, fields, {"numbers": "many"}), kind, None, 0)


def test_a_file_of_the_users_judges(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(REWARD)
    lines = [{"prompt": "Say it.\n", "word": word} for word in ("one", "two", "one")]
    file = written(tmp_path / "problems.jsonl", *lines)
    problems = load_problems(file, str(tmp_path / "task.py"), None, 0)
    assert [task.reward("one") for task in problems.tasks] == [1.0, 0.0, 1.0]
    assert problems.inputs[0] == problems.inputs[2] != problems.inputs[1]
    (tmp_path / "task.py").write_text(REWARD + "\n")
    assert load_problems(file, str(tmp_path / "task.py"), None, 0).task_digest != problems.task_digest


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "problems.jsonl", {"numbers": [3, 4], "target": 7})
    wrong: list[tuple[Path | None, str, int | None, str]] = [
        (None, "chess", None, "task='chess'.*countdown"),
        (file, "countdown", 3, "count=3"),
        (file, str(tmp_path / "none.py"), None, "none.py"),
        (tmp_path / "none.jsonl", "countdown", None, "none.jsonl"),
        (written(tmp_path / "empty.jsonl"), "countdown", None, "problems=.*at least one"),
    ]
    for path, task, count, named in wrong:
        with pytest.raises(DendriteError, match=named):
            load_problems(path, task, count, 0)


def test_budgets_and_options() -> None:
    assert parse_budget(None, None, None, None, None) == Budget(tokens=4096)
    assert parse_budget(None, 2.5, None, None, 0.5) == Budget(seconds=2.5, kv_bytes=1 << 19)
    for kv_mib in (0.0, math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="kv_mib"):
            parse_budget(None, None, None, None, kv_mib)
    assert parse_options(["in-flight=16", "c=0.5", "rule=uct"]) == {"in_flight": 16, "c": 0.5, "rule": "uct"}
    with pytest.raises(InvalidArgument, match="NAME=VALUE"):
        parse_options(["c"])
