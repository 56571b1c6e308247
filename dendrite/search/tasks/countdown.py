"""Countdown: reach a target from a few numbers with + - * /, one equation a line.

    Numbers: 3 7 8 25. Target: 92.      the prompt: numbers in ascending order
    7-3=4 (4 8 25)                      a thought: one equation, then the numbers that are left
    25*4=100 (8 100)
    100-8=92 (92)                       one number is left: the derivation is complete

The rule: every operand is one of the numbers left, each used once; the result is a non-negative integer, and
a division leaves no remainder; the numbers in brackets are exactly those left, in any order; all numbers must
be used. A line ends with a newline, and counts only then. What follows a complete derivation is ignored.

The packaged model was trained on derivations that write the larger operand first and the numbers left in
ascending order (see `draw`), then end the sequence. The rule asks for neither.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Literal, NamedTuple, TypeAlias, get_args

from dendrite.config import MAX_SEED
from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole, is_whole
from dendrite.search.task import Split, Task

DataSplit: TypeAlias = Literal["train", "validation", "test"]

MAX_NUMBER = 99
"""Problems are drawn with numbers from 1 to this."""
TARGETS = (10, 999)
"""Least and greatest target of a drawn problem."""
MAX_RESULT = 9_999
"""Greatest intermediate result of a drawn derivation. The rule knows no such limit."""
FOUR_NUMBERS = 0.85
"""Share of drawn problems with four numbers; the others have three."""
TEST_PERCENT, VALIDATION_PERCENT = 10, 2
"""Shares of all possible problems that are kept out of training, by hash."""

_MAX_COUNT, _MAX_GIVEN, _MAX_TARGET, _MAX_PROBLEMS = 6, 9_999, 999_999, 100_000
_NUMBER = "(0|[1-9][0-9]{0,30})"
_LINE = re.compile(rf"{_NUMBER}([-+*/]){_NUMBER}={_NUMBER} \(((?:[0-9]{{1,31}} )*[0-9]{{1,31}})\)")


@dataclass(frozen=True, slots=True)
class Countdown(Task):
    """The problem of reaching `target` from `numbers` (2 to 6 of them, kept in ascending order)."""

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        limit = f"must be 2 to {_MAX_COUNT} whole numbers, 1 to {_MAX_GIVEN}"
        try:
            numbers = tuple(self.numbers)
        except TypeError as error:
            raise InvalidArgument("numbers", self.numbers, limit) from error
        if not 2 <= len(numbers) <= _MAX_COUNT or not all(is_whole(n, 1, _MAX_GIVEN) for n in numbers):
            raise InvalidArgument("numbers", numbers, limit)
        check_whole("target", self.target, 0, _MAX_TARGET)
        object.__setattr__(self, "numbers", tuple(sorted(numbers)))

    @property
    def name(self) -> str:
        """The problem in short, such as "countdown 3 7 8 25 = 99"."""
        return f"countdown {_spaced(self.numbers)} = {self.target}"

    @property
    def prompt(self) -> str:
        """The problem in the words that the packaged model was trained on."""
        return f"Numbers: {_spaced(self.numbers)}. Target: {self.target}.\n"

    @property
    def split(self) -> Split:
        """A thought is a line: of at most the characters of one whose numbers have two digits more than any given."""
        digits = len(str(max(*self.numbers, self.target))) + 2
        return Split((len(self.numbers) + 2) * digits + len(self.numbers) + 5, stop=("\n",))

    @property
    def max_depth(self) -> int:
        """Each line leaves one number fewer."""
        return len(self.numbers) - 1

    def is_terminal(self, text: str) -> bool:
        """Whether one number is left, or a line breaks the rule. An incomplete last line is not judged."""
        left = self._follow(text)
        return left is None or len(left) == 1

    def reward(self, text: str) -> float:
        """1.0 if the derivation is complete, legal and ends at the target, else 0.0."""
        left = self._follow(text)
        return float(left is not None and len(left) == 1 and left[0].value == self.target)

    def answer(self, text: str) -> str | None:
        """What a complete and legal derivation computes, such as "(25*(7-3))-8"; None for any other text."""
        left = self._follow(text)
        return left[0].bare if left is not None and len(left) == 1 else None

    def _follow(self, text: str) -> list[_Term] | None:
        """The terms left after the complete lines of `text`; None once a line breaks the rule."""
        left = [_Term(number, str(number)) for number in self.numbers]
        for line in text.split("\n")[:-1]:
            if len(left) == 1:
                break
            if not _apply(line, left):
                return None
        return left


class _Term(NamedTuple):
    """A number that is left, and the expression over the given numbers that made it."""

    value: int
    bare: str

    @property
    def operand(self) -> str:
        return self.bare if self.bare.isdigit() else f"({self.bare})"


def _apply(line: str, left: list[_Term]) -> bool:
    """Replace the operands of `line` in `left` by its result; False, and `left` spoilt, if it is illegal."""
    match = _LINE.fullmatch(line)
    if match is None:
        return False
    operator = match[2]
    operands = [_take(int(text), left) for text in (match[1], match[3])]
    first, second = operands
    if first is None or second is None:
        return False
    result = _compute(first.value, operator, second.value)
    if result is None or result != int(match[4]):
        return False
    left.append(_Term(int(result), f"{first.operand}{operator}{second.operand}"))
    return sorted(match[5].split(" ")) == sorted(str(term.value) for term in left)


def _take(value: int, left: list[_Term]) -> _Term | None:
    for index, term in enumerate(left):
        if term.value == value:
            return left.pop(index)
    return None


def _compute(first: int, operator: str, second: int) -> Fraction | None:
    """The exact result; None where the rule has none (a division by zero, a fraction, a negative number)."""
    a, b = Fraction(first), Fraction(second)
    if operator == "/":
        result = a / b if b else None
    else:
        result = a + b if operator == "+" else a - b if operator == "-" else a * b
    return result if result is not None and result >= 0 and result.denominator == 1 else None


def problems(n: int, seed: int = 0, split: DataSplit = "test") -> list[Countdown]:
    """Draw `n` distinct problems of one split, the same for the same arguments everywhere.

    All can be solved: each was built from a random legal derivation, which is then forgotten. A longer list
    starts with the shorter ones.

    Raises:
        InvalidArgument: `n` is not in 1 .. 100,000, `seed` not in 0 .. 2^63 - 1, or there is no such split.
    """
    check_whole("n", n, 1, _MAX_PROBLEMS)
    check_whole("seed", seed, 0, MAX_SEED)
    if split not in get_args(DataSplit):
        raise InvalidArgument("split", split, f"must be one of {', '.join(get_args(DataSplit))}")
    rng = Random(f"countdown {split} {seed}")
    found: dict[Countdown, None] = {}
    while len(found) < n:
        numbers, target, _ = draw(rng)
        if split_of(numbers, target) == split:
            found[Countdown(numbers, target)] = None
    return list(found)


def split_of(numbers: Iterable[int], target: int) -> DataSplit:
    """The split that a problem belongs to: by a hash, hence the same in every process and release."""
    text = f"{_spaced(sorted(numbers))} = {target}"
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "validation" if bucket < TEST_PERCENT + VALIDATION_PERCENT else "train"


def draw(rng: Random) -> tuple[tuple[int, ...], int, str]:
    """Draw a random legal derivation: its numbers in ascending order, its target, and its lines.

    Each step joins two random numbers that are left by a random operation, the larger operand first. Of the
    operations that change nothing only `x*1` is drawn, and no result is 0. A derivation whose target or
    intermediate results are out of bounds is dropped, and another one drawn from new numbers.
    """
    low, high = TARGETS
    while True:
        count = 4 if rng.random() < FOUR_NUMBERS else 3
        numbers = tuple(sorted(1 + int(rng.random() * MAX_NUMBER) for _ in range(count)))
        left, lines = list(numbers), ""
        while len(left) > 1:
            small = left.pop(int(rng.random() * len(left)))
            large = left.pop(int(rng.random() * len(left)))
            if small > large:
                small, large = large, small
            choices = [("+", large + small), ("*", large * small)]
            if large > small:
                choices.append(("-", large - small))
            if small > 1 and large % small == 0:
                choices.append(("/", large // small))
            operator, result = choices[int(rng.random() * len(choices))]
            if result > MAX_RESULT:
                break
            left.append(result)
            left.sort()
            lines += f"{large}{operator}{small}={result} ({_spaced(left)})\n"
        else:
            if low <= left[0] <= high:
                return numbers, left[0], lines


def _spaced(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))
