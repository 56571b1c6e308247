"""Which problems are accepted, and what their rewards are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dendrite.errors import InvalidArgument
from dendrite.search.tasks.countdown import Countdown
from serve_apps.problems import Problem, task_in, task_of


def problem(**fields: Any) -> Any:
    return TypeAdapter(Problem).validate_python(fields)


def test_built_in_kinds() -> None:
    assert task_of(problem(kind="countdown", numbers=[3, 4, 50], target=62)) == Countdown((3, 4, 50), 62)
    assert task_of(problem(kind="game24", numbers=[1, 2, 3, 4])).name.startswith("game24")
    assert "3+4" in task_of(problem(kind="arithmetic", a=3, b=4, operator="+")).prompt
    schema = {"type": "object", "properties": {"pattern_of": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}
    assert task_of(problem(kind="json_schema", schema=schema, instruction="Say it.")).reward("{}") == 1.0


@pytest.mark.parametrize(
    ("reward", "text", "value"), [("contains", "a 42!", 1.0), ("equals", " 42\n", 1.0), ("equals", "420", 0.0)]
)
def test_declared_rewards(reward: str, text: str, value: float) -> None:
    task = task_of(problem(kind="text", prompt="p", reward=reward, text="42"))
    assert task.reward(text) == value
    assert task.is_terminal(text) == (value == 1.0)
    assert task.oracle


def test_a_problem_in_words_that_is_out_of_range_names_the_messages() -> None:
    with pytest.raises(InvalidArgument, match=r"^messages="):
        task_in("Numbers: 0 1. Target: 5.")


@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.integers(0, 999_999))
def test_a_problem_in_words_is_the_one_that_its_prompt_states(numbers: list[int], target: int) -> None:
    task = Countdown(tuple(numbers), target)
    assert task_in(task.prompt) == task
    assert task_in(task.prompt.strip()) == task
