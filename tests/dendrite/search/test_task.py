from __future__ import annotations

from typing import Any

import pytest

from dendrite.errors import InvalidArgument
from dendrite.search.task import Split, Task


class Echo(Task):
    """The least a task may be: say the word."""

    name = "echo"
    prompt = "Say yes: "
    split = Split(3, stop=())
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


class Least(Task):
    prompt = "?"

    def is_terminal(self, text: str) -> bool:
        return text.endswith("!")

    def reward(self, text: str) -> float:
        return 1.0


def test_the_rest_has_defaults() -> None:
    task = Least()
    assert (task.name, task.split, task.max_depth, task.oracle) == ("least", Split(256, ("\n",)), 64, False)
    assert (task.answer(" yes!"), task.answer("yes")) == ("yes!", None)
    assert task.actions("") is task.value("") is task.reflect("!") is None


@pytest.mark.parametrize(
    ("field", "settings"), [("max_tokens", {"max_tokens": 0}), ("stop", {"stop": ("",)}), ("stop", {"stop": "\n"})]
)
def test_a_split_that_makes_no_sense_is_refused(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"split.{field}"):
        Split(**settings)
