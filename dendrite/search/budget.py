"""What a search may spend, and the meter that keeps it within that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from dendrite.errors import InvalidArgument
from dendrite.limits import check_whole

Limit: TypeAlias = Literal["tokens", "seconds", "expansions", "reward_calls", "kv_bytes"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The most a search may spend; None sets no limit, but one limit there must be.

    `tokens` counts generated tokens (a prompt is free), `expansions` calls of `Backend.expand` and `Backend.append`,
    and `seconds` runs from the call of the search, its prefill included. `reward_calls` counts texts that a value
    source other than the model itself was asked to judge (a callable, a judge's prompt, a reward model). `kv_bytes`
    bounds the KV pages that the search's tree owns at any time. No limit is ever passed: what is in flight counts as
    spent in full until it returns.

    Raises:
        InvalidArgument: A limit is not positive, or there is none but `kv_bytes`, which ends no search.
    """

    tokens: int | None = None
    seconds: float | None = None
    expansions: int | None = None
    reward_calls: int | None = None
    kv_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "expansions", "reward_calls", "kv_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_whole(f"budget.{name}", value, 1)
        if self.seconds is not None and not (_is_number(self.seconds) and 0 < self.seconds < math.inf):
            raise InvalidArgument("budget.seconds", self.seconds, "must be a positive number")
        if self.tokens is self.seconds is self.expansions is self.reward_calls is None:
            raise InvalidArgument(
                "budget", self, "must set at least one of tokens, seconds, expansions and reward_calls"
            )

    def to_dict(self) -> dict[str, Any]:
        """The limits that are set, as JSON values."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to expand one node into `children`, of at most `tokens` tokens each.

    `reward_calls` and `kv_bytes` are what the children may cost in all.
    """

    children: int
    tokens: int
    reward_calls: int = 0
    kv_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """What KV costs: a page holds `page_tokens` tokens in `page_bytes` bytes; both are 0 where it isn't counted."""

    page_tokens: int = 0
    page_bytes: int = 0

    def pages(self, tokens: int) -> int:
        """The pages that so many tokens fill, the last of them perhaps in part."""
        return -(-tokens // self.page_tokens) if self.page_tokens else 0

    def kv_bytes(self, tokens: int) -> int:
        """The most bytes of pages that a child of so many tokens may own: with a copy of its parent's tail page."""
        return (self.pages(tokens) + 1) * self.page_bytes


class Meter:
    """Counts what a search spends, and grants expansions so that no limit of its budget is passed.

    All is reserved when an expansion is granted and settled when it returns, so that the limits hold however many
    expansions are in flight. Time is only reported here: cancelling at the deadline is the caller's part.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._start = clock()
        self._reserved = 0
        self._reserved_calls = 0
        self._reserved_bytes = 0
        self._started = 0
        self._forfeited_tokens = 0
        self._forfeited = 0
        self.rates = Rates()
        """Set once the backend has told its page size."""
        self.judged = False
        """Whether each child costs a reward call."""
        self.tokens = 0
        """Generated tokens of the expansions that returned."""
        self.expansions = 0
        """Expansions that returned."""
        self.reward_calls = 0
        """Texts judged by a value source other than the model."""
        self.kv_bytes = 0
        """Bytes of the KV pages that the tree owns now."""

    @property
    def seconds(self) -> float:
        """Time since the search began."""
        return self._clock() - self._start

    def grant(self, children: int, tokens: int) -> Grant | None:
        """Reserve room for up to `children` of up to `tokens` tokens each.

        Fewer children are granted where what is left doesn't suffice. Where the tokens don't suffice for one, the last
        of them are granted to a single shorter child, but only once nothing is in flight that might give room back.
        None means: not now, and if nothing is in flight, never again, unless KV is released.
        """
        if self.spent is not None:
            return None
        if self._budget.expansions is not None and self._started >= self._budget.expansions:
            return None
        grant = self._fit(children, tokens)
        if grant is not None:
            self._started += 1
            self._reserve(grant, 1)
        return grant

    def over_memory(self, tokens: int) -> bool:
        """Whether the KV limit, and it alone, has no room for one more child of up to `tokens` tokens."""
        return self.spent is None and self._room_for_bytes(1, tokens) < 1

    def _fit(self, children: int, tokens: int) -> Grant | None:
        children = min(children, self._room_for_calls(children), self._room_for_bytes(children, tokens))
        if children < 1:
            return None
        if self._budget.tokens is not None:
            room = self._budget.tokens - self.tokens - self._forfeited_tokens - self._reserved
            if room < tokens:
                if room <= 0 or self._reserved:
                    return None
                children, tokens = 1, room
            children = min(children, room // tokens)
        return Grant(children, tokens, children * self.judged, children * self.rates.kv_bytes(tokens))

    def _room_for_calls(self, children: int) -> int:
        if self._budget.reward_calls is None or not self.judged:
            return children
        return self._budget.reward_calls - self.reward_calls - self._reserved_calls

    def _room_for_bytes(self, children: int, tokens: int) -> int:
        if self._budget.kv_bytes is None or not self.rates.page_bytes:
            return children
        return (self._budget.kv_bytes - self.kv_bytes - self._reserved_bytes) // self.rates.kv_bytes(tokens)

    def _reserve(self, grant: Grant, sign: int) -> None:
        self._reserved += sign * grant.children * grant.tokens
        self._reserved_calls += sign * grant.reward_calls
        self._reserved_bytes += sign * grant.kv_bytes

    def settle(self, grant: Grant, tokens: int, reward_calls: int = 0) -> None:
        """Put what an expansion has generated, and the calls made for it, in place of its reservation."""
        self._reserve(grant, -1)
        self.tokens += tokens
        self.reward_calls += reward_calls
        self.expansions += 1

    def cancel(self, grant: Grant) -> None:
        """Give back the reservation of an expansion that failed, or was cancelled as the search ended."""
        self._reserve(grant, -1)
        self._started -= 1

    def forfeit(self, grant: Grant) -> None:
        """Count an expansion cancelled while the search goes on as spent in full: nobody knows how far it came."""
        self._reserve(grant, -1)
        self._forfeited_tokens += grant.children * grant.tokens
        self._forfeited += 1

    @property
    def spent(self) -> Limit | None:
        """The limit that has been reached, None while there is something left of each; memory comes back, so not it."""
        budget = self._budget
        if budget.tokens is not None and self.tokens + self._forfeited_tokens >= budget.tokens:
            return "tokens"
        if budget.expansions is not None and self.expansions + self._forfeited >= budget.expansions:
            return "expansions"
        if budget.reward_calls is not None and self.reward_calls >= budget.reward_calls:
            return "reward_calls"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return "seconds"
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
