"""What a burst of the device loop does for its rows, and what it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dendrite.engine.generation import Generation

if TYPE_CHECKING:
    from dendrite.grammar.walk import Walk


@dataclass(frozen=True, slots=True)
class Burst:
    """What a burst generated: [rows, steps] tokens and natural-log probabilities. A row is valid up to its end.

    Where some row has a grammar, `raw` [rows, steps] are the model's own log-probabilities, before grammars have taken
    any away, and `walk` tells how far the documents of the rows have come.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    raw: list[list[float]] | None = None
    walk: Walk | None = None

    @property
    def steps(self) -> int:
        """Steps that were run; fewer than were asked for where grammars left nothing to do."""
        return len(self.tokens[0])


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
