from __future__ import annotations

import pickle
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations_with_replacement, permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.tasks.game24 import Game24, problems, puzzles

HANDS = list(combinations_with_replacement(range(1, 14), 4))
CLASSIC = puzzles()
BY_RULE = puzzles(by_rule=True)

hands = st.tuples(*[st.integers(1, 13)] * 4)


def values(numbers: tuple[Fraction, ...]) -> Iterator[Fraction]:
    """Every value of every expression over all `numbers`, by trying each pair, order and operation."""
    if len(numbers) == 1:
        yield numbers[0]
    for i, j in permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
        for result in (a + b, a - b, a * b, *([a / b] if b else [])):
            yield from values((*rest, result))


def derivations(left: tuple[int, ...], text: str = "") -> Iterator[str]:
    """Every derivation that the Countdown rule admits, written as it wants them."""
    if len(left) == 1:
        yield text
    for i, j in permutations(range(len(left)), 2):
        a, b = left[i], left[j]
        for operator, result in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b if b and a % b == 0 else -1)):
            if result >= 0:
                rest = (*(number for k, number in enumerate(left) if k not in (i, j)), result)
                yield from derivations(rest, f"{text}{a}{operator}{b}={result} ({' '.join(map(str, rest))})\n")


def test_the_totals() -> None:
    assert len(CLASSIC) == 1_362
    assert len(BY_RULE) == 1_346
    assert set(BY_RULE) < set(CLASSIC)


@pytest.mark.parametrize("puzzle_list", [CLASSIC, BY_RULE], ids=["classic", "by rule"])
def test_puzzles_are_distinct_and_in_ascending_order(puzzle_list: list[Game24]) -> None:
    numbers = [puzzle.numbers for puzzle in puzzle_list]
    assert numbers == sorted(set(numbers))
    assert all(type(puzzle) is Game24 and puzzle.target == 24 for puzzle in puzzle_list)


def agrees(hand: tuple[int, ...]) -> None:
    task = Game24(hand)
    assert (task in CLASSIC) == (Fraction(24) in values(tuple(map(Fraction, hand))))
    assert (task in BY_RULE) == any(task.reward(text) == 1.0 for text in derivations(hand))


@pytest.mark.parametrize("hand", Random(0).sample(HANDS, 15))
def test_brute_force_agrees_on_a_sample(hand: tuple[int, ...]) -> None:
    agrees(hand)


@pytest.mark.parametrize("puzzle", sorted(set(CLASSIC) - set(BY_RULE), key=lambda puzzle: puzzle.numbers), ids=str)
def test_brute_force_agrees_on_what_needs_fractions(puzzle: Game24) -> None:
    agrees(puzzle.numbers)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_brute_force_agrees_on_every_hand() -> None:
    for hand in HANDS:
        agrees(hand)


def test_it_is_countdown_with_target_24() -> None:
    task, same = Game24((8, 4, 7, 8)), Countdown((4, 7, 8, 8), 24)
    assert isinstance(task, Countdown)
    assert task.prompt == same.prompt == "Numbers: 4 7 8 8. Target: 24.\n"
    assert (task.split, task.max_depth, task.oracle) == (same.split, 3, False)
    assert task.name == "game24 4 7 8 8"
    solved = "8/8=1 (1 4 7)\n7-1=6 (4 6)\n6*4=24 (24)\n"
    assert task.is_terminal(solved)
    assert task.reward(solved) == 1.0
    assert task.answer(solved) == same.answer(solved)
    missed = "8+8=16 (4 7 16)\n16+7=23 (4 23)\n23+4=27 (27)\n"
    assert task.is_terminal(missed)
    assert task.reward(missed) == 0.0


def test_what_needs_fractions_is_no_puzzle_of_the_rule() -> None:
    task = Game24((3, 3, 8, 8))
    assert task in CLASSIC
    assert task not in BY_RULE


@given(hands)
def test_the_task_is_a_value_whatever_the_order(hand: tuple[int, ...]) -> None:
    task = Game24(hand)
    assert task == Game24(hand[::-1])
    assert hash(task) == hash(Game24(hand[::-1]))
    assert pickle.loads(pickle.dumps(task)) == task
    assert type(pickle.loads(pickle.dumps(task))) is Game24


@given(hands, st.text(alphabet="0123456789+-*/=() \n", max_size=30))
def test_rewards_are_in_range_and_a_terminal_text_keeps_its_own(hand: tuple[int, ...], text: str) -> None:
    task = Game24(hand)
    assert 0.0 <= task.reward(text) <= 1.0
    if task.is_terminal(text):
        assert task.is_terminal(text + "1\n")
        assert task.reward(text + "1\n") == task.reward(text)


@pytest.mark.parametrize(
    "numbers",
    [(1, 2, 3), (1, 2, 3, 4, 5), (0, 1, 2, 3), (1, 2, 3, 14), (1, 2, 3, 4.0), (1, 2, 3, True), "1234", 7, None],
)
def test_bad_hands_are_refused(numbers: object) -> None:
    with pytest.raises(InvalidArgument, match="4 whole numbers, 1 to 13") as caught:
        Game24(numbers)  # type: ignore[arg-type]
    assert caught.value.field == "numbers"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": 1_347}, "n"),
        ({"n": 1_363, "by_rule": False}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": 1, "seed": -1}, "seed"),
        ({"n": 1, "seed": 2**63}, "seed"),
        ({"n": 1, "seed": None}, "seed"),
    ],
)
def test_bad_draws_are_refused(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        problems(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == name


def test_a_draw_is_of_distinct_puzzles_that_the_rule_can_solve_unless_said_otherwise() -> None:
    drawn = problems(1_346)
    assert drawn != BY_RULE
    assert sorted(drawn, key=lambda puzzle: puzzle.numbers) == BY_RULE
    assert set(problems(1_362, by_rule=False)) == set(CLASSIC)


def test_a_draw_is_deterministic_and_a_longer_one_starts_with_the_shorter() -> None:
    assert problems(40, seed=5) == problems(80, seed=5)[:40]
    assert problems(40, seed=5) != problems(40, seed=6)


def test_a_draw_is_the_same_everywhere() -> None:
    # Figures that were published rest on this: a change of the draw makes them incomparable.
    assert [puzzle.numbers for puzzle in problems(2)] == [(1, 4, 10, 12), (2, 2, 4, 7)]
