from __future__ import annotations

import pickle
import re
from fractions import Fraction
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.task import Task
from dendrite.search.tasks import countdown
from dendrite.search.tasks.countdown import Countdown, draw, problems, split_of

SOLVED = "7-3=4 (4 8 25)\n25*4=100 (8 100)\n100-8=92 (92)\n"
PROBLEM = Countdown((3, 7, 8, 25), 92)

rngs = st.integers(0, 2**32).map(Random)


def test_the_prompt_is_the_one_the_model_knows() -> None:
    assert PROBLEM.prompt == "Numbers: 3 7 8 25. Target: 92.\n"
    assert PROBLEM.split.stop == ("\n",)
    assert PROBLEM.max_depth == 3
    assert PROBLEM.name == "countdown 3 7 8 25 = 92"


def test_numbers_are_kept_in_order_and_the_task_is_a_value() -> None:
    assert Countdown((25, 3, 8, 7), 92) == PROBLEM
    assert hash(Countdown([8, 7, 3, 25], 92)) == hash(PROBLEM)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(PROBLEM)) == PROBLEM
    assert isinstance(PROBLEM, Task)


def test_a_solved_derivation() -> None:
    assert PROBLEM.is_terminal(SOLVED)
    assert PROBLEM.reward(SOLVED) == 1.0
    assert PROBLEM.answer(SOLVED) == "(25*(7-3))-8"


def test_a_complete_derivation_that_misses_has_an_answer_and_no_reward() -> None:
    other = Countdown((3, 7, 8, 25), 93)
    assert other.is_terminal(SOLVED)
    assert other.reward(SOLVED) == 0.0
    assert other.answer(SOLVED) == "(25*(7-3))-8"


@pytest.mark.parametrize("cut", range(len(SOLVED)))
def test_no_part_of_a_derivation_is_terminal(cut: int) -> None:
    assert not PROBLEM.is_terminal(SOLVED[:cut])
    assert PROBLEM.reward(SOLVED[:cut]) == 0.0
    assert PROBLEM.answer(SOLVED[:cut]) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "7-3=4",
        "7-3=4 ()",
        "7-3=4 (4 8 25) ",
        " 7-3=4 (4 8 25)",
        "7-3=4 (4  8 25)",
        "7 - 3 = 4 (4 8 25)",
        "7-3=4 (4 8)",
        "7-3=4 (4 8 8 25)",
        "7-3=4 (3 4 7 8 25)",
        "7-3=4 (04 8 25)",
        "07-3=4 (4 8 25)",
        "7-3=5 (5 8 25)",
        "3-7=-4 (-4 8 25)",
        "7/3=2 (2 8 25)",
        "25/3=8 (7 8 8)",
        "7+7=14 (3 8 14 25)",
        "9-2=7 (3 7 8 25)",
        "7^3=343 (8 25 343)",
        "٧-3=4 (4 8 25)",
        "7-3=4 (4 8 25)\r",
        "7-3=" + "9" * 5_000 + " (4 8 25)",
        "9" * 5_000 + "-3=4 (4 8 25)",
        "7-3=4 (" + "9" * 5_000 + " 8 25)",
    ],
)
def test_a_line_that_breaks_the_rule_ends_it(line: str) -> None:
    assert PROBLEM.is_terminal(line + "\n")
    assert PROBLEM.is_terminal(line + "\n" + SOLVED)
    assert PROBLEM.reward(line + "\n" + SOLVED) == 0.0
    assert PROBLEM.answer(line + "\n" + SOLVED) is None
    assert not PROBLEM.is_terminal(line), "an incomplete last line is not judged"


def test_the_numbers_left_may_stand_in_any_order_and_the_smaller_operand_first() -> None:
    text = "25+8=33 (33 3 7)\n3+7=10 (33 10)\n10+33=43 (43)\n"
    assert Countdown((3, 7, 8, 25), 43).reward(text) == 1.0


def test_zero_is_a_number_that_division_by_is_illegal() -> None:
    task = Countdown((5, 5, 8), 0)
    assert task.reward("5-5=0 (0 8)\n0/8=0 (0)\n") == 1.0
    assert task.reward("5-5=0 (0 8)\n8*0=0 (0)\n") == 1.0
    assert task.is_terminal("5-5=0 (0 8)\n8/0=0 (0)\n")
    assert task.answer("5-5=0 (0 8)\n8/0=0 (0)\n") is None


@given(rngs)
def test_a_drawn_derivation_passes(rng: Random) -> None:
    numbers, target, lines = draw(rng)
    task = Countdown(numbers, target)
    assert task.numbers == numbers
    assert task.is_terminal(lines)
    assert task.reward(lines) == 1.0
    assert task.max_depth == lines.count("\n")
    assert max(map(len, lines.splitlines(keepends=True))) <= task.split.max_tokens
    low, high = countdown.TARGETS
    assert low <= target <= high
    assert all(1 <= number <= countdown.MAX_NUMBER for number in numbers)


@given(rngs)
def test_the_answer_is_an_expression_over_exactly_the_numbers(rng: Random) -> None:
    numbers, target, lines = draw(rng)
    answer = Countdown(numbers, target).answer(lines)
    assert answer is not None
    assert sorted(map(int, re.findall(r"\d+", answer))) == list(numbers)
    assert eval(re.sub(r"(\d+)", r"Fraction(\1)", answer), {"Fraction": Fraction}) == target


def legal(numbers: tuple[int, ...], target: int, text: str) -> bool:
    """The rule once more, written without regard to speed: every line's value computed, every set compared."""
    left = [Fraction(number) for number in numbers]
    for line in text.split("\n")[:-1]:
        if len(left) == 1:
            break
        parts = re.fullmatch(r"([0-9]+)([+\-*/])([0-9]+)=([0-9]+) \(([0-9]+(?: [0-9]+)*)\)", line)
        if parts is None or any(re.fullmatch("0[0-9]+", number) for number in re.findall("[0-9]+", line)):
            return False
        a, b = Fraction(parts[1]), Fraction(parts[3])
        if a not in left or b not in left or (a == b and left.count(a) < 2) or (parts[2] == "/" and b == 0):
            return False
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else Fraction(-1)}[parts[2]]
        if value < 0 or value.denominator != 1 or value != Fraction(parts[4]):
            return False
        left.remove(a)
        left.remove(b)
        left.append(value)
        if sorted(left) != sorted(Fraction(number) for number in parts[5].split(" ")):
            return False
    return len(left) == 1 and left[0] == target


@given(rngs, st.data())
def test_a_mutated_derivation_fails_unless_still_legal(rng: Random, data: st.DataObject) -> None:
    numbers, target, lines = draw(rng)
    at = data.draw(st.integers(0, len(lines) - 1))
    edit = data.draw(st.sampled_from(["replace", "insert", "delete", "swap lines"]))
    character = data.draw(st.sampled_from("0123456789+-*/=() \n٣x"))
    if edit == "replace":
        mutated = lines[:at] + character + lines[at + 1 :]
    elif edit == "insert":
        mutated = lines[:at] + character + lines[at:]
    elif edit == "delete":
        mutated = lines[:at] + lines[at + 1 :]
    else:
        first, second, *rest = lines.splitlines(keepends=True)
        mutated = "".join([second, first, *rest])
    assume(mutated != lines)
    assert Countdown(numbers, target).reward(mutated) == float(legal(numbers, target, mutated))


@given(rngs, st.text(alphabet="0123456789+-*/=() \nab", max_size=30))
def test_what_follows_a_terminal_text_changes_nothing(rng: Random, more: str) -> None:
    numbers, target, lines = draw(rng)
    task = Countdown(numbers, target)
    for text in (lines, lines[: lines.index("\n")] + "1\n"):
        assert task.is_terminal(text)
        assert task.is_terminal(text + more)
        assert task.reward(text + more) == task.reward(text)


@given(st.text(max_size=60))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    assert PROBLEM.reward(text) in (0.0, 1.0)
    PROBLEM.is_terminal(text)
    PROBLEM.answer(text)


@pytest.mark.parametrize(
    ("numbers", "target", "name"),
    [
        ((3,), 3, "numbers"),
        ((1, 2, 3, 4, 5, 6, 7), 3, "numbers"),
        ((0, 3), 3, "numbers"),
        ((-1, 3), 3, "numbers"),
        ((3, 10_000), 3, "numbers"),
        ((3, 2.0), 3, "numbers"),
        ((3, True), 3, "numbers"),
        ("37", 3, "numbers"),
        (7, 3, "numbers"),
        (None, 3, "numbers"),
        ((3, 7), -1, "target"),
        ((3, 7), 1_000_000, "target"),
        ((3, 7), 2.0, "target"),
        ((3, 7), False, "target"),
        ((3, 7), "4", "target"),
    ],
)
def test_bad_problems_are_refused(numbers: object, target: object, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Countdown(numbers, target)  # type: ignore[arg-type]
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": 100_001}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 1, "seed": -1}, "seed"),
        ({"n": 1, "seed": "0"}, "seed"),
        ({"n": 1, "split": "dev"}, "split"),
        ({"n": 1, "split": None}, "split"),
    ],
)
def test_bad_draws_are_refused(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        problems(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == name


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_problems_belong_to_their_split_and_are_distinct(split: countdown.DataSplit) -> None:
    drawn = problems(200, seed=3, split=split)
    assert len(set(drawn)) == 200
    assert {split_of(task.numbers, task.target) for task in drawn} == {split}


def test_problems_are_deterministic_and_a_longer_list_starts_with_the_shorter() -> None:
    assert problems(40, seed=5) == problems(40, seed=5)
    assert problems(40, seed=5) == problems(80, seed=5)[:40]
    assert problems(40, seed=5) != problems(40, seed=6)


def test_problems_and_splits_are_the_same_everywhere() -> None:
    # Figures that were published rest on these: a change of the draw or of the hash makes them incomparable.
    assert [(task.numbers, task.target) for task in problems(2)] == [((2, 11, 84), 93), ((6, 20, 56, 75), 105)]
    assert split_of((25, 3, 8, 7), 99) == split_of((3, 7, 8, 25), 99) == "test"


def test_the_splits_have_their_shares() -> None:
    rng = Random(0)
    splits = [split_of((rng.randint(1, 50), rng.randint(1, 50)), rng.randint(10, 100)) for _ in range(20_000)]
    assert splits.count("test") / 20_000 == pytest.approx(countdown.TEST_PERCENT / 100, abs=0.01)
    assert splits.count("validation") / 20_000 == pytest.approx(countdown.VALIDATION_PERCENT / 100, abs=0.005)
