"""What a search may spend, and the meter that keeps it within that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dendrite.errors import InvalidArgument

Limit: TypeAlias = Literal["tokens", "seconds", "expansions"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The most a search may spend; None sets no limit, but one limit there must be.

    `tokens` counts generated tokens (a prompt is free), `expansions` calls of `Backend.expand`, and `seconds`
    runs from the call of the search, its prefill included. No limit is ever passed: what is in flight counts
    as spent in full until it returns.

    Raises:
        InvalidArgument: A limit is not positive, or there is none.
    """

    tokens: int | None = None
    seconds: float | None = None
    expansions: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "expansions"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InvalidArgument(f"budget.{name}", value, "must be a whole number, at least 1")
        if self.seconds is not None and not (_is_number(self.seconds) and 0 < self.seconds < math.inf):
            raise InvalidArgument("budget.seconds", self.seconds, "must be a positive number")
        if self.tokens is None and self.seconds is None and self.expansions is None:
            raise InvalidArgument("budget", self, "must set at least one of tokens, seconds and expansions")


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to expand one node into `children`, of at most `tokens` tokens each."""

    children: int
    tokens: int


class Meter:
    """Counts what a search spends, and grants expansions so that no limit of its budget is passed.

    Tokens are reserved when an expansion is granted and settled when it returns, so that the limit holds
    however many expansions are in flight. Time is only reported here: cancelling at the deadline is the
    caller's part.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._start = clock()
        self._reserved = 0
        self._started = 0
        self.tokens = 0
        """Generated tokens of the expansions that returned."""
        self.expansions = 0
        """Expansions that returned."""

    @property
    def seconds(self) -> float:
        """Time since the search began."""
        return self._clock() - self._start

    def grant(self, children: int, tokens: int) -> Grant | None:
        """Reserve room for up to `children` of up to `tokens` tokens each.

        Fewer children are granted where the tokens left don't suffice. Where they don't suffice for one, the
        last of them are granted to a single shorter child, but only once nothing is in flight that might give
        room back. None means: not now, and if nothing is in flight, never again.
        """
        if self.spent is not None:
            return None
        if self._budget.expansions is not None and self._started >= self._budget.expansions:
            return None
        grant = self._fit(children, tokens)
        if grant is not None:
            self._started += 1
            self._reserved += grant.children * grant.tokens
        return grant

    def _fit(self, children: int, tokens: int) -> Grant | None:
        if self._budget.tokens is None:
            return Grant(children, tokens)
        room = self._budget.tokens - self.tokens - self._reserved
        if room >= tokens:
            return Grant(min(children, room // tokens), tokens)
        return Grant(1, room) if room > 0 and self._reserved == 0 else None

    def settle(self, grant: Grant, tokens: int) -> None:
        """Put the `tokens` that an expansion has generated in place of its reservation."""
        self._reserved -= grant.children * grant.tokens
        self.tokens += tokens
        self.expansions += 1

    def cancel(self, grant: Grant) -> None:
        """Give back the reservation of an expansion that failed or was cancelled."""
        self._reserved -= grant.children * grant.tokens
        self._started -= 1

    @property
    def spent(self) -> Limit | None:
        """The limit that has been reached, None while there is something left of each."""
        budget = self._budget
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return "tokens"
        if budget.expansions is not None and self.expansions >= budget.expansions:
            return "expansions"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return "seconds"
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
