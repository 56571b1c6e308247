"""Drawing continuations without replacement.

A search that samples children one after another wastes tokens on repeats, most where the model is surest. Here the
probability that known continuations take is taken away, token by token: where the path so far is the beginning of known
continuations s, a token t is drawn with a weight of

    p(t) * (1 - sum over s that go on with t of P(s after t)),

so a draw follows the model's distribution given that it is none of the known ones (Shi, Bieber, Sutton, "Incremental
sampling without replacement for sequence models", ICML 2020, section 4). P is that of temperature 1, which is what
edges store, so at other temperatures, or with filters, the law is an approximation; what is excluded is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

from dendrite.config import Continuation

_LEAST_SHARE = 1e-9
"""What is left of a token's weight where known continuations take all of it, so that some token always can be drawn."""


class Without:
    """Follows one generation among the continuations that it must not repeat."""

    def __init__(self, continuations: Iterable[Continuation]) -> None:
        self._depth = 0
        self._known = [(each.tokens, _after(each.logprobs)) for each in continuations if each.tokens]

    def log_shares(self) -> dict[int, float]:
        """For each next token that known continuations go on with, the log of the share of its weight that is left."""
        taken: dict[int, float] = {}
        for tokens, after in self._known:
            token = tokens[self._depth]
            taken[token] = taken.get(token, 0.0) + math.exp(min(0.0, after[self._depth]))
        return {token: math.log(max(_LEAST_SHARE, 1.0 - share)) for token, share in taken.items()}

    def push(self, token: int) -> None:
        """Note the token that was drawn: known continuations that go on otherwise don't matter any more."""
        depth = self._depth
        self._depth = depth + 1
        self._known = [(t, after) for t, after in self._known if t[depth] == token and len(t) > depth + 1]


def _after(logprobs: tuple[float, ...]) -> list[float]:
    """At each index, the log-probability of all that follows that token."""
    backwards = list(accumulate(reversed(logprobs), initial=0.0))
    return backwards[-2::-1]
