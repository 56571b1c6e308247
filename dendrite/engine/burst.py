"""What a burst of the device loop does for its rows, and what it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from dendrite.engine.generation import Generation


@dataclass(frozen=True, slots=True)
class Burst:
    """What a burst generated: [rows, steps] tokens and natural-log probabilities. A row is valid up to its end.

    `log_mass` [rows] is the log of the probability that grammars have left of the model's, where a row has one; such a
    burst has one step.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    log_mass: list[float] | None = None

    def raw_logprobs(self, row: int) -> list[float]:
        """The model's own log-probabilities of a row's tokens, before a grammar has taken any away."""
        if self.log_mass is None:
            return self.logprobs[row]
        return [logprob + self.log_mass[row] for logprob in self.logprobs[row]]


@dataclass(frozen=True, slots=True)
class SampleKind:
    """What happens between logits and sampling for some row of a batch; a graph for each does no more than that."""

    filtered: bool = False
    masked: bool = False

    @classmethod
    def of(cls, generations: Sequence[Generation]) -> Self:
        """What the rows of a batch need."""
        return cls(
            any(_has_filter(generation) for generation in generations),
            any(generation.matcher is not None for generation in generations),
        )


def _has_filter(generation: Generation) -> bool:
    params = generation.params
    return bool(params.top_k) or params.top_p < 1.0 or params.min_p > 0.0
