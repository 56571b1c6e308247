"""Game of 24: make 24 of four numbers from 1 to 13 with + - * /, each number used once.

It is Countdown with target 24, prompt and rule alike, so that the packaged model plays it. Of the 1,820 hands of four,
1,362 can be solved where intermediate results may be any rational number. Countdown's rule admits only whole,
non-negative ones, under which 1,346 can: `8/(3-8/3)`, for one, has no derivation there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from random import Random
from typing import TypeAlias

from dendrite.config import MAX_SEED
from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole
from dendrite.search.tasks.countdown import Countdown

TARGET = 24
MAX_NUMBER = 13
"""Numbers are those of a deck of cards, 1 (the ace) to 13 (the king)."""

_COUNT = 4

Hand: TypeAlias = tuple[int, ...]
"""Numbers in ascending order."""


@dataclass(frozen=True, slots=True)
class Game24(Countdown):
    """The problem of reaching 24 from `numbers` (4 of them, 1 to 13, kept in ascending order)."""

    target: int = field(default=TARGET, init=False)

    def __post_init__(self) -> None:
        limit = f"must be {_COUNT} whole numbers, 1 to {MAX_NUMBER}"
        try:
            # Not `super()`: a dataclass with slots is a new class, which the cell that `super()` reads doesn't know.
            Countdown.__post_init__(self)
        except InvalidArgument as error:
            raise InvalidArgument("numbers", self.numbers, limit) from error
        if len(self.numbers) != _COUNT or max(self.numbers) > MAX_NUMBER:
            raise InvalidArgument("numbers", self.numbers, limit)

    @property
    def name(self) -> str:
        """The problem in short, such as "game24 4 7 8 8"."""
        return f"game24 {' '.join(map(str, self.numbers))}"


def puzzles(*, by_rule: bool = False) -> list[Game24]:
    """All hands that can be solved, in ascending order.

    Args:
        by_rule: Only the 1,346 that can be solved under the task's own rule, in whole, non-negative steps. Otherwise
            all 1,362, among them 16 whose reward no text earns.
    """
    solver = _Solver(whole=by_rule)
    hands = combinations_with_replacement(range(1, MAX_NUMBER + 1), _COUNT)
    return [Game24(hand) for hand in hands if solver.solves(hand)]


def problems(n: int, seed: int = 0, *, by_rule: bool = True) -> list[Game24]:
    """Draw `n` distinct puzzles, the same for the same arguments everywhere; a longer list starts with the shorter.

    Args:
        n: How many.
        seed: Which draw.
        by_rule: As for `puzzles`: whether all can be solved under the task's own rule.

    Raises:
        InvalidArgument: `n` is not in 1 .. the number of puzzles, or `seed` not in 0 .. 2^63 - 1.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    deck = puzzles(by_rule=by_rule)
    check_whole("n", n, 1, len(deck))  # there are no more puzzles
    rng = Random(f"game24 {seed}")
    rank = {puzzle: rng.random() for puzzle in deck}
    return sorted(deck, key=rank.__getitem__)[:n]


class _Solver:
    """Which hands make 24, by exact arithmetic over the ways to split a hand in two.

    What fewer than all numbers make is computed forwards, once for each hand. The last operation is undone instead:
    for each value of one part, the few values that the other would need are looked up.
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._known: dict[Hand, frozenset[Fraction]] = {}

    def solves(self, hand: Hand) -> bool:
        """Whether all the numbers of `hand` make 24."""
        for left, right in _splits(hand):
            others = self._makes(right)
            if any(need in others for value in self._makes(left) for need in _needed(value)):
                return True
        return False

    def _makes(self, hand: Hand) -> frozenset[Fraction]:
        """Every value that all the numbers of `hand` make."""
        if len(hand) == 1:
            return frozenset([Fraction(hand[0])])
        if hand not in self._known:
            results = {
                result
                for left, right in _splits(hand)
                for a in self._makes(left)
                for b in self._makes(right)
                for result in _joined(a, b)
                if not self._whole or (result >= 0 and result.denominator == 1)
            }
            self._known[hand] = frozenset(results)
        return self._known[hand]


def _splits(hand: Hand) -> Iterator[tuple[Hand, Hand]]:
    """Every way to part `hand` in two; the first part is the smaller one, and none is empty."""
    places = range(len(hand))
    for size in range(1, len(hand) // 2 + 1):
        for chosen in combinations(places, size):
            yield tuple(hand[i] for i in chosen), tuple(hand[i] for i in places if i not in chosen)


def _joined(a: Fraction, b: Fraction) -> Iterator[Fraction]:
    """What one operation makes of `a` and `b`, in either order."""
    yield from (a + b, a - b, b - a, a * b)
    if b:
        yield a / b
    if a:
        yield b / a


def _needed(a: Fraction) -> Iterator[Fraction]:
    """The values that one operation joins with `a` to make 24, in either order."""
    yield from (TARGET - a, a - TARGET, TARGET + a)
    if a:
        yield from (TARGET / a, a / TARGET, TARGET * a)
