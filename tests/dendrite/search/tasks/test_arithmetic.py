from __future__ import annotations

import pickle
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.task import Task
from dendrite.search.tasks.arithmetic import OPERATORS, Arithmetic, problems

TASK = Arithmetic(34, 27, "*")
STEPS = "34*20=680\n34*7=238\n680+238=918\n"

operands = st.integers(0, 10**18 - 1)
tasks = st.builds(Arithmetic, operands, operands, st.sampled_from(OPERATORS))
texts = st.text(alphabet="0123456789+-*= \nAnswer:Calcto", max_size=40) | st.text(max_size=20)


def expected(task: Arithmetic) -> Fraction:
    a, b = Fraction(task.a), Fraction(task.b)
    return {"+": a + b, "-": a - b, "*": a * b}[task.operator]


def test_the_prompt_ends_with_the_calculation_and_its_examples_are_right() -> None:
    assert TASK.prompt.endswith("\nCalculation: 34*27=\n")
    examples = re.findall(r"Calculation: (\d+)([-+*])(\d+)=\n((?:.+\n)+)\n", TASK.prompt)
    assert {operator for _, operator, _, _ in examples} == set(OPERATORS)
    for a, operator, b, steps in examples:
        task = Arithmetic(int(a), int(b), operator)
        assert task.reward(steps) == 1.0
        assert task.is_terminal(steps)
        for line in steps.splitlines()[:-1]:
            left, sign, right, result = re.fullmatch(r"(-?\d+)([-+*])(\d+)=(-?\d+)", line).groups()  # type: ignore[union-attr]
            assert expected(Arithmetic(int(left), int(right), sign)) == int(result)
        assert steps.count("\n") <= task.max_depth
        assert max(map(len, steps.splitlines(keepends=True))) <= task.split.max_tokens
    assert "Calculation: 34*27" not in TASK.prompt.removesuffix("Calculation: 34*27=\n")


def test_a_thought_is_a_line_and_the_reward_an_oracles() -> None:
    assert TASK.split.stop == ("\n",)
    assert TASK.oracle
    assert TASK.name == "arithmetic 34*27"
    assert isinstance(TASK, Task)


@given(tasks)
def test_the_right_answer_earns_1_and_any_other_0(task: Arithmetic) -> None:
    right = int(expected(task))
    assert task.reward(f"Answer: {right}\n") == 1.0
    assert task.answer(f"Answer: {right}\n") == str(right)
    for wrong in (right + 1, right - 1, -right - 1):
        assert task.reward(f"Answer: {wrong}\n") == 0.0
        assert task.answer(f"Answer: {wrong}\n") == str(wrong)
    assert len(f"{task.a}{task.operator}{task.b}={right}\n") <= task.split.max_tokens


@pytest.mark.parametrize(
    ("text", "terminal", "answer"),
    [
        ("", False, None),
        (STEPS, False, None),
        (STEPS + "Answer", False, None),
        (STEPS + "Answer: ", False, None),
        (STEPS + "Answer: 918", False, "918"),
        (STEPS + "Answer: 918\n", True, "918"),
        (STEPS + "Answer:918 \r\n", True, "918"),
        (STEPS + "Answer: 0918\n", True, "918"),
        (STEPS + "Answer: -918\n", True, "-918"),
        (STEPS + "Answer: 917\nAnswer: 918\n", True, "917"),
        (STEPS + "Answer: 918\nAnswer: 917\n", True, "918"),
        (STEPS + "Answer: 918 or so\nAnswer: 918\n", True, None),
        (STEPS + "Answer: ٩١٨\n", True, None),
        (STEPS + "Answer: " + "9" * 5_000 + "\n", True, None),
        (STEPS + "The Answer: 918\n", False, None),
        ("\nCalculation: 900+18=\nAnswer: 918\n", True, None),
        ("\nCalculation: 900+18=\n", True, None),
        ("\nCalculation: 900+18=", False, None),
    ],
)
def test_what_ends_a_text_and_what_it_answers(text: str, terminal: bool, answer: str | None) -> None:
    assert TASK.is_terminal(text) is terminal
    assert TASK.answer(text) == answer
    assert TASK.reward(text) == float(answer == "918")


@given(tasks, texts, texts)
def test_rewards_are_in_range_and_a_terminal_text_keeps_its_own(task: Arithmetic, text: str, more: str) -> None:
    for start in (text, f"{text}\nAnswer: {expected(task)}\n"):
        assert task.reward(start) in (0.0, 1.0)
        if task.is_terminal(start):
            assert task.is_terminal(start + more)
            assert task.reward(start + more) == task.reward(start)
            assert task.answer(start + more) == task.answer(start)


@given(tasks)
def test_the_task_is_a_value(task: Arithmetic) -> None:
    copy = pickle.loads(pickle.dumps(task))
    assert copy == task
    assert hash(copy) == hash(task)
    assert copy.prompt == task.prompt


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 2, "+"), "a"),
        ((10**18, 2, "+"), "a"),
        ((1.0, 2, "+"), "a"),
        ((True, 2, "+"), "a"),
        (("1", 2, "+"), "a"),
        ((1, None, "+"), "b"),
        ((1, 2, "/"), "operator"),
        ((1, 2, ""), "operator"),
        ((1, 2, []), "operator"),
    ],
)
def test_bad_problems_are_refused(arguments: tuple[object, ...], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Arithmetic(*arguments)  # type: ignore[arg-type]
    assert caught.value.field == name


@pytest.mark.parametrize("digits", [1, 2, 18])
@pytest.mark.parametrize("operators", [("+",), ("*", "-"), OPERATORS])
def test_a_draw_has_the_digits_and_operators_asked_for(digits: int, operators: tuple[str, ...]) -> None:
    drawn = problems(60, seed=1, digits=digits, operators=operators)  # type: ignore[arg-type]
    assert len(set(drawn)) == 60
    assert {len(str(operand)) for task in drawn for operand in (task.a, task.b)} == {digits}
    assert {task.operator for task in drawn} == set(operators)


def test_all_problems_of_a_kind_can_be_drawn() -> None:
    assert len(set(problems(243, digits=1))) == 243


def test_a_draw_is_deterministic_and_a_longer_one_starts_with_the_shorter() -> None:
    assert problems(40, seed=5) == problems(80, seed=5)[:40]
    assert problems(40, seed=5) != problems(40, seed=6)
    assert problems(9, operators=("*", "+")) == problems(9, operators=("+", "*"))


def test_a_draw_is_the_same_everywhere() -> None:
    # Figures that were published rest on this: a change of the draw makes them incomparable.
    assert [task.name for task in problems(3)] == ["arithmetic 896-489", "arithmetic 296-573", "arithmetic 635-597"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": 100_001}, "n"),
        ({"n": 244, "digits": 1}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 1, "seed": -1}, "seed"),
        ({"n": 1, "seed": "0"}, "seed"),
        ({"n": 1, "digits": 0}, "digits"),
        ({"n": 1, "digits": 19}, "digits"),
        ({"n": 1, "digits": "3"}, "digits"),
        ({"n": 1, "operators": ()}, "operators"),
        ({"n": 1, "operators": ("+", "+")}, "operators"),
        ({"n": 1, "operators": ("+", "/")}, "operators"),
        ({"n": 1, "operators": ([],)}, "operators"),
        ({"n": 1, "operators": None}, "operators"),
    ],
)
def test_bad_draws_are_refused(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        problems(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == name
