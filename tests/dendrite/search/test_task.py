from __future__ import annotations

import pytest

from dendrite.search.task import Task


class Echo(Task):
    """The least a task may be: say the word."""

    name = "echo"
    prompt = "Say yes: "
    stop = ()
    max_step_tokens = 3
    max_depth = 1

    def is_terminal(self, text: str) -> bool:
        return len(text) >= 3

    def reward(self, text: str) -> float:
        return float(text == "yes")

    def answer(self, text: str) -> str | None:
        return text or None


def test_a_task_may_state_its_problem_as_plain_attributes() -> None:
    task = Echo()
    assert task.prompt == "Say yes: "
    assert task.reward("yes") == 1.0
    assert task.answer("") is None


def test_a_task_that_leaves_something_out_cannot_be_made() -> None:
    class Half(Task):
        name = "half"

    with pytest.raises(TypeError, match="reward"):
        Half()  # type: ignore[abstract]
