from __future__ import annotations

from typing import Any

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.tasks import Arithmetic, Countdown, Game24
from dendrite.search.tasks.custom import PromptError
from dendrite.search.tasks.kinds import KINDS, tasks_of

LINES: dict[str, dict[str, Any]] = {
    "countdown": {"numbers": [3, 7, 8, 25], "target": 92},
    "game24": {"numbers": [1, 2, 3, 4]},
    "arithmetic": {"a": 12, "b": 30, "operator": "*"},
    "json_schema": {"schema": {"type": "integer"}, "instruction": "A whole number: "},
}


def test_each_kind_is_made_of_its_fields() -> None:
    assert set(LINES) == set(KINDS)
    made = {kind: tasks_of(kind, [fields, fields])[1] for kind, fields in LINES.items()}
    assert made["countdown"] == Countdown((3, 7, 8, 25), 92)
    assert made["game24"] == Game24((1, 2, 3, 4))
    assert made["arithmetic"] == Arithmetic(12, 30, "*")
    assert made["json_schema"].reward("7") == 1.0


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("countdown", {"numbers": [3, 7]}, "target"),
        ("countdown", {"numbers": 3, "target": 9}, "numbers=3: must be 2 to 6 whole numbers"),
        ("game24", {"numbers": 3}, "numbers=3: must be 4 whole numbers"),
        ("countdown", {"numbers": [3, 7], "target": 9, "hint": 1}, "hint"),
        ("arithmetic", {"a": -1, "b": 2, "operator": "+"}, "a=-1"),
        ("json_schema", {"schema": {"type": "nothing"}, "instruction": "A thing: "}, "type"),
    ],
)
def test_a_line_that_does_not_fit_is_named(kind: str, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PromptError, match=rf"line 2: .*{named}"):
        tasks_of(kind, [LINES[kind], fields])


def test_other_kinds_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="countdown, game24, arithmetic, json_schema"):
        tasks_of("chess", [])
