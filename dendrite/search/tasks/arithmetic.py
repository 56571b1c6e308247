"""Multi-digit arithmetic for a general model: worked examples, then one calculation to do step by step.

    Calculation: 34*27=          the end of the prompt
    34*20=680                    a thought: one line
    34*7=238
    680+238=918
    Answer: 918                  the line that ends it

The rule: the first complete line that begins with "Answer:" gives the answer, and what follows it is ignored. A line
that begins with "Calculation:" turns to another problem, so that this one stays without an answer. How the steps are
written is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias, get_args

from dendrite.config import MAX_SEED
from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole
from dendrite.search.task import Split, Task

Operator: TypeAlias = Literal["+", "-", "*"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

MAX_DIGITS = 18
"""Most digits of an operand."""

_MAX_OPERAND = 10**MAX_DIGITS - 1
_MAX_PROBLEMS = 100_000
_ANSWER = re.compile(r"[ \t]*(-?[0-9]{1,64})[ \t\r]*")
_PREAMBLE = """\
Do each calculation step by step, one step a line, and end with a line that gives the answer.

Calculation: 478+256=
400+200=600
70+50=120
8+6=14
600+120=720
720+14=734
Answer: 734

Calculation: 503-78=
503-70=433
433-8=425
Answer: 425

Calculation: 12-45=
45-12=33
12-45=-33
Answer: -33

Calculation: 216*34=
216*30=6480
216*4=864
6480+864=7344
Answer: 7344

"""


@dataclass(frozen=True, slots=True)
class Arithmetic(Task):
    """The problem of computing `a` `operator` `b`, such as 34*27; `a` and `b` from 0 to 10^18 - 1.

    Raises:
        InvalidArgument: An operand is not a whole number or out of range, or there is no such operator.
    """

    a: int
    b: int
    operator: Operator

    def __post_init__(self) -> None:
        for name, value in (("a", self.a), ("b", self.b)):
            check_whole(name, value, 0, _MAX_OPERAND)
        if self.operator not in OPERATORS:
            raise InvalidArgument("operator", self.operator, f"must be one of {', '.join(OPERATORS)}")

    @property
    def name(self) -> str:
        """The problem in short, such as "arithmetic 34*27"."""
        return f"arithmetic {self._calculation}"

    @property
    def prompt(self) -> str:
        """Worked examples of all operators, then the calculation."""
        return f"{_PREAMBLE}Calculation: {self._calculation}=\n"

    @property
    def split(self) -> Split:
        """A thought is a line: of at most the characters of an equation with a result, and some room for words."""
        return Split(4 * len(self._calculation) + 32, stop=("\n",))

    @property
    def max_depth(self) -> int:
        """Two lines for each digit, and some more."""
        return 2 * len(self._calculation) + 8

    @property
    def oracle(self) -> bool:
        """True: the reward compares with the computed result."""
        return True

    def is_terminal(self, text: str) -> bool:
        """Whether a complete line gives an answer, or turns to another calculation."""
        return any(line.startswith(("Answer:", "Calculation:")) for line in text.split("\n")[:-1])

    def reward(self, text: str) -> float:
        """1.0 if the answer is right, else 0.0."""
        return float(self.answer(text) == str(self._result))

    def answer(self, text: str) -> str | None:
        """The number on the first line that gives an answer, in plain digits; None if it gives none, or no number.

        A last line without its newline counts here, since a model may end the sequence there.
        """
        for line in text.split("\n"):
            if line.startswith("Answer:"):
                match = _ANSWER.fullmatch(line.removeprefix("Answer:"))
                return None if match is None else str(int(match[1]))
            if line.startswith("Calculation:"):
                return None
        return None

    @property
    def _calculation(self) -> str:
        return f"{self.a}{self.operator}{self.b}"

    @property
    def _result(self) -> int:
        if self.operator == "+":
            return self.a + self.b
        return self.a - self.b if self.operator == "-" else self.a * self.b


def problems(n: int, seed: int = 0, *, digits: int = 3, operators: Sequence[Operator] = OPERATORS) -> list[Arithmetic]:
    """Draw `n` distinct problems, the same for the same arguments everywhere; a longer list starts with the shorter.

    Args:
        n: How many.
        seed: Which draw.
        digits: Digits of both operands, neither of which begins with 0.
        operators: Those to draw from, each as likely as the others.

    Raises:
        InvalidArgument: `n` is not in 1 .. 100,000 or greater than the number of such problems, `seed` not in
            0 .. 2^63 - 1, `digits` not in 1 .. 18, or `operators` is empty or holds one twice or one that is not known.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    check_whole("digits", digits, 1, MAX_DIGITS)
    chosen = _operators(operators)
    check_whole("n", n, 1, min(_MAX_PROBLEMS, len(chosen) * (9 * 10 ** (digits - 1)) ** 2))
    rng = Random(f"arithmetic {digits} {' '.join(chosen)} {seed}")
    found: dict[Arithmetic, None] = {}
    while len(found) < n:
        a, b = _number(rng, digits), _number(rng, digits)
        found[Arithmetic(a, b, chosen[int(rng.random() * len(chosen))])] = None
    return list(found)


def _operators(given: Sequence[Operator]) -> list[Operator]:
    """Those of `given` in the order of `OPERATORS`, which a draw must not depend on."""
    known = ", ".join(OPERATORS)
    try:
        chosen = list(given)
    except TypeError as error:
        raise InvalidArgument("operators", given, f"must be some of {known}") from error
    if not chosen or not all(each in OPERATORS for each in chosen) or len(set(chosen)) < len(chosen):
        raise InvalidArgument("operators", given, f"must be some of {known}, each once")
    return sorted(chosen, key=OPERATORS.index)


def _number(rng: Random, digits: int) -> int:
    """A number of so many digits, each drawn by itself: one draw has too few bits for 18."""
    first = 1 + int(rng.random() * 9)
    return int("".join([str(first), *(str(int(rng.random() * 10)) for _ in range(digits - 1))]))
